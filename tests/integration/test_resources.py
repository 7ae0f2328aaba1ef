"""Descriptors and threads that run out, under real limits of the system."""

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bridge.errors import BackendRefusedError
from tests.support.harness.workers import Supervised, await_true

pytestmark = pytest.mark.xdist_group("resources")
FEW_DESCRIPTORS = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
CLOSED, RELOADS = "meshca_connections_closed_total", "meshca_reloads_total"
_FOR_CONNECTIONS = 256 // 2
_OF_THE_PROCESS = 64
"""A worker without a connection has fewer descriptors open."""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    folder = tmp_path_factory.mktemp("resources") / "served"
    with Supervised(
        folder,
        overrides={"limits": {"drain": "1s"}},
        prefix=FEW_DESCRIPTORS,
        fronts=("istio", "linkerd"),
    ) as served:
        yield served
    served.require_sound_ledger()


def test_connections_cannot_take_every_descriptor(bridge: Supervised) -> None:
    ports = bridge.address, bridge.mtls_address, bridge.linkerd_address
    ok = bridge.metric(RELOADS, result="ok")
    await_true(lambda: len(bridge.children()) == 1)
    worker, most = bridge.worker, 0
    with ExitStack() as idle:
        for address in ports:
            for _ in range(150):
                with suppress(OSError):
                    idle.enter_context(connected(address))
                most = max(most, descriptors(worker))
        assert _OF_THE_PROCESS < most <= _FOR_CONNECTIONS + _OF_THE_PROCESS
        # Each address has a quarter of Istio's, and all have three quarters of a port.
        await_true(lambda: bridge.metric(CLOSED, reason="idle") > 0)
        assert bridge.get("/readyz")[0] == 200
        # A reload starts a process, and its ledger begins a segment.
        bridge.hang_up()
        await_reloaded(bridge, ok + 1)
        bridge.ask()


def test_a_reload_without_more_threads_is_refused_whole(bridge: Supervised) -> None:
    kinds = resource.RLIMIT_STACK, resource.RLIMIT_AS
    before = [resource.prlimit(bridge.pid, kind) for kind in kinds]
    refused = bridge.metric(RELOADS, result="refused")
    # A thread has a stack of this size, and an address space has no room for one.
    for kind, (_, most), soft in zip(kinds, before, (1 << 40, 1 << 38), strict=True):
        resource.prlimit(bridge.pid, kind, (soft, most))
    bridge.change(fronts__istio__audiences=["istio-ca", "other"])
    bridge.await_reloads("refused", refused + 1)
    for kind, limit in zip(kinds, before, strict=True):
        resource.prlimit(bridge.pid, kind, limit)
    status, page = bridge.get("/readyz")
    told = json.loads(page)["warnings"]["configuration"]
    assert (status, "can't start new thread" in told) == (200, True)
    bridge.ask()
    with pytest.raises(BackendRefusedError, match="UNAUTHENTICATED"):
        bridge.ask("other")
    ok = bridge.metric(RELOADS, result="ok")
    bridge.hang_up()
    await_reloaded(bridge, ok + 1)
    bridge.ask("other")


def await_reloaded(bridge: Supervised, count: float) -> None:
    # A worker may take 30 s for its start.
    seconds = 60
    await_true(lambda: bridge.metric(RELOADS, result="ok") == count, seconds)
    await_true(lambda: len(bridge.children()) == bridge.metric("meshca_worker_up"))


def descriptors(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def connected(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), timeout=5)
