"""Descriptors and threads that run out, under real limits of the system."""

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from bridge.errors import BackendRefusedError
from bridge.server.istio import METHOD
from tests.support.clients.istio_raw import bearer, channel, request
from tests.support.harness.workers import WAIT_SECONDS, Supervised, await_true

pytestmark = pytest.mark.xdist_group("resources")
FEW_DESCRIPTORS = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
CLOSED, RELOADS = "meshca_connections_closed_total", "meshca_reloads_total"
SHORT_SEGMENTS = """
from bridge.ledger.journal.journal import JournalOptions
JournalOptions.__init__.__kwdefaults__["segment_bytes"] = 16 * 1024
"""
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
        await_true(lambda: descriptors(worker) > _OF_THE_PROCESS)
        most = max(most, descriptors(worker))
        assert _OF_THE_PROCESS < most <= _FOR_CONNECTIONS + _OF_THE_PROCESS
        # Each address has a quarter of Istio's, and all have three quarters of a port.
        await_true(lambda: bridge.metric(CLOSED, reason="idle") > 0)
        assert bridge.get("/readyz")[0] == 200
        # A reload starts a process, and its ledger begins a segment.
        bridge.hang_up()
        bridge.await_reloads("ok", ok + 1)
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
    bridge.await_reloads("ok", ok + 1)
    bridge.ask("other")


def test_a_worker_without_a_descriptor_waits_with_its_next_segment(
    tmp_path: Path,
) -> None:
    # A segment has 16 MiB: too many certificates for a test.
    (tmp_path / "sitecustomize.py").write_text(SHORT_SEGMENTS)
    short = ("env", f"PYTHONPATH={tmp_path}", *FEW_DESCRIPTORS)
    both = ("istio", "linkerd")
    with (
        Supervised(tmp_path / "served", prefix=short, fronts=both) as bridge,
        ExitStack() as stack,
    ):
        own = stack.enter_context(channel(bridge))
        call = own.unary_unary(METHOD)

        def ask() -> None:
            call(request(), WAIT_SECONDS, bearer(bridge.token()))

        def ask_often() -> None:
            for _ in range(100):
                ask()

        def segments() -> int:
            return len([*(bridge.folder / "journal").glob("*/*.jsonl")])

        def issues_in_new_segments() -> None:
            first = segments()
            while segments() < first + 3:
                ask()

        ask()
        # Idle connections to the bound leave descriptors for segments.
        idle = stack.enter_context(ExitStack())
        for address in (bridge.address, bridge.mtls_address, bridge.linkerd_address):
            for _ in range(150):
                with suppress(OSError):
                    idle.enter_context(connected(address))
        await_true(lambda: descriptors(bridge.worker) > _OF_THE_PROCESS)
        issues_in_new_segments()
        # Then nothing has, as where another thread took the last one.
        before = resource.prlimit(bridge.worker, resource.RLIMIT_NOFILE)
        held = {int(one.name) for one in Path(f"/proc/{bridge.worker}/fd").iterdir()}
        lowest = min({*range(len(held) + 1)} - held)
        resource.prlimit(bridge.worker, resource.RLIMIT_NOFILE, (lowest, before[1]))
        with pytest.raises(grpc.RpcError, match="on record now"):
            ask_often()
        with pytest.raises(grpc.RpcError, match="on record now"):
            ask()
        resource.prlimit(bridge.worker, resource.RLIMIT_NOFILE, before)
        await_true(lambda: bridge.get("/readyz")[0] == 200)
        issues_in_new_segments()
        idle.close()
        issues_in_new_segments()
        assert bridge.rows(kind="resumed")
    bridge.require_sound_ledger()


def descriptors(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def connected(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), timeout=5)
