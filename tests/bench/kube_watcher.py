"""What the watcher of `verify: bound` needs, and how many watches a bridge has."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from bridge.kubernetes.objects import KINDS
from tests.bench.kube_cluster import ISSUER, Cluster
from tests.bench.kube_verdicts import BOUND, REVIEW, Listed, Watches
from tests.bench.load import SERVER_CORE, BenchError
from tests.soak.ground import TRUST_DOMAIN, Look
from tests.support.clients.istio_raw import Wire, bearer
from tests.support.harness.processes import watchers
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import Supervised, await_true
from tests.support.parts.token_reviews import ReviewServer

_WATCHED = ("pods", "serviceaccounts")
_WAIT_SECONDS = 120.0
_WORKERS = 4
_HELD_CALLS = 20
"""So many certificates are asked for while a stream is held in its middle."""
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
)
_EVENT = '{"type": "%s", "object": {"metadata": {%s}}}\n'
_END = _EVENT % (
    "BOOKMARK",
    '"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}',
)


def is_bound(bridge: Bridge) -> bool:
    """Return whether all workers verify tokens by the watch now."""
    name = "meshca_token_verification"
    ways = {way: bridge.metric(name, verified_by=way) for way in (BOUND, REVIEW)}
    return ways[BOUND] > 0 and not ways[REVIEW]


def bridge_of(cluster: Cluster, folder: Path, tokens: dict[str, Any]) -> Supervised:
    """Make a bridge on the server's core that is not started yet.

    Args:
        cluster: Has the keys of the tokens.
        folder: New.
        tokens: The section of its cluster; without any, keys in a file.
    """
    one = {"name": "Kubernetes", "namespaces": ["*"], "tokens": tokens}
    return Supervised(
        folder,
        overrides={"clusters": [one]} if tokens else {},
        issuers=[cluster.issuer],
        trust_domain=TRUST_DOMAIN,
        ca_key="rsa2048",
        prefix=("taskset", "-c", SERVER_CORE),
    )


def empty_kb(cluster: Cluster, folder: Path) -> int:
    """Return what a watcher of a cluster without pods holds."""
    with bridge_of(cluster, folder, cluster.section(BOUND)) as bridge:
        await_true(lambda: is_bound(bridge), _WAIT_SECONDS)
        return Look.at(*watchers(bridge.pid)).resident_kb


def listed(cluster: Cluster, folder: Path, empty: int) -> Listed:
    """Measure a watcher that lists the real cluster."""
    source = f"{len(cluster.pods):,} real pods"
    bridge = bridge_of(cluster, folder, cluster.section(BOUND))
    with bridge, _asking(bridge, cluster) as asked:
        await_true(lambda: asked.once() and is_bound(bridge), _WAIT_SECONDS)
        return asked.found(source, empty)


def listed_stream(cluster: Cluster, folder: Path, empty: int, pods: int) -> Listed:
    """Measure a watcher that lists a recorded pod under many names.

    The stream is held in its middle until callers have their certificates.
    """
    source = f"{pods:,} recorded pods"
    folder.mkdir()
    with ReviewServer(folder) as server:
        stream = _Stream(cluster, pods)
        server.streams = {
            "/api/v1/pods": stream.say,
            "/api/v1/serviceaccounts": _saying_nothing,
        }
        server.objects["/openid/v1/jwks"] = cluster.issuer.jwks()
        tokens = server.section | {"verify": BOUND, "issuer": ISSUER}
        bridge = bridge_of(cluster, folder / "bridge", tokens)
        with bridge, _asking(bridge, cluster) as asked:
            await_true(stream.is_held.is_set, _WAIT_SECONDS)
            for _ in range(_HELD_CALLS):
                asked.once()
            stream.may_go_on.set()
            await_true(lambda: is_bound(bridge), _WAIT_SECONDS)
            return asked.found(source, empty)


def watches(cluster: Cluster, folder: Path) -> Iterator[Watches]:
    """Count the watches of a bridge with four workers, also after a reload."""
    before = {name: cluster.server.watches(name) for name in KINDS}

    def counted(when: str) -> Watches:
        more = {
            name: int(cluster.server.watches(name) - count)
            for name, count in before.items()
        }
        return Watches(when=when, by_resource=more)

    bridge = bridge_of(cluster, folder, cluster.section(BOUND))
    bridge.change(workers=_WORKERS)
    with bridge:
        await_true(lambda: is_bound(bridge), _WAIT_SECONDS)
        yield counted(f"{_WORKERS} workers")
        bridge.change(fronts__istio__audiences=["istio-ca", "other"])
        bridge.await_reloads("ok")
        await_true(lambda: is_bound(bridge), _WAIT_SECONDS)
        yield counted(f"{_WORKERS} workers, after a reload")


class _Stream:
    def __init__(self, cluster: Cluster, pods: int) -> None:
        self._cluster = cluster
        self._pods = pods
        self.is_held = Event()
        self.may_go_on = Event()

    def say(self, server: ReviewServer, sock: socket.socket, _: str) -> None:
        sock.sendall(_HEAD)
        for number, event in enumerate(self._cluster.recorded(self._pods)):
            if number == self._pods // 2:
                self.is_held.set()
                self.may_go_on.wait(_WAIT_SECONDS)
            sock.sendall(event)
        sock.sendall(_END.encode())
        server.over.wait()


def _saying_nothing(server: ReviewServer, sock: socket.socket, _: str) -> None:
    sock.sendall(_HEAD + _END.encode())
    server.over.wait()


@dataclass
class _Asked:
    bridge: Bridge
    wire: Wire
    tokens: Iterator[str]
    refused: int = 0

    def once(self) -> bool:
        """Ask for a certificate; True, so that it can stand in a condition."""
        answer = self.wire.ask(bearer(next(self.tokens)))
        self.refused += answer.code != "OK"
        return True

    def found(self, source: str, empty: int) -> Listed:
        """Return what the watcher needed, which has just listed all."""
        (pid,) = watchers(self.bridge.pid)
        cpu = Look.at(pid).cpu_seconds
        return Listed(
            source=source,
            resident_kb=_most_resident_kb(pid),
            empty_kb=empty,
            cpu_seconds=cpu,
            reviewed=len(self.bridge.rows(kind="intent", verified_by=REVIEW)),
            refused=self.refused,
        )


@contextmanager
def _asking(bridge: Bridge, cluster: Cluster) -> Iterator[_Asked]:
    with Wire(bridge) as wire:
        yield _Asked(bridge, wire, cluster.tokens(1_000_000))


def _most_resident_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise BenchError(f"process {pid} has no VmHWM")
