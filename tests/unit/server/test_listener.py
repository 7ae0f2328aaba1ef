"""Two fronts in one process: each has its own listener, and they end together."""

import socket
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge._proto.linkerd_identity_pb2 import CertifyRequest
from bridge.errors import BackendUnavailableError
from bridge.server import listener as module
from bridge.server.istio import IstioFront
from bridge.server.linkerd import METHOD, LinkerdListener
from bridge.server.listener import grpc_options
from bridge.x509.key_pair import KeyPair
from tests.support.clients import http2
from tests.support.harness.in_process_server import (
    ISSUED,
    WAIT_SECONDS,
    Held,
    ListenerCA,
    Served,
    eventually,
)
from tests.support.parts import netports

PENDING = "grpc.server.max_pending_requests"
TAKEN = 2
"""Calls that Python has, or is about to have, while its thread is kept."""
AGE = "grpc.max_connection_age_ms"
HOUR = timedelta(hours=1)
LINKERD = 'linkerd: {listen: "127.0.0.1:0"}'
REQUEST = CertifyRequest(identity="a").SerializeToString()


def certify(served: Served) -> Any:
    channel = grpc.insecure_channel(served.server.linkerd_address)
    served._channels.append(channel)
    return channel.unary_unary(METHOD)


def test_both_are_served_and_each_on_its_own_port(tmp_path: Path) -> None:
    with Served(tmp_path, fronts=LINKERD) as served:
        assert served.stub()(IstioCertificateRequest(csr="pem")).cert_chain
        assert certify(served)(REQUEST, WAIT_SECONDS)
        assert [call.front for call in served.issuance.calls] == ["istio", "linkerd"]
        ports = {
            served.server.istio_address,
            served.server.mtls_address,
            served.server.linkerd_address,
        }
        assert len(ports) == 3


def test_linkerd_is_served_while_istio_waits_for_its_certificate(
    tmp_path: Path,
) -> None:
    ca, may = ListenerCA(), threading.Event()

    def issue(names: Sequence[str], ttl: timedelta) -> KeyPair:
        if not may.is_set():
            raise BackendUnavailableError("no issuing CA answers")
        return ca.issue_serving(names, ttl)

    with Served(tmp_path, fronts=LINKERD, issue_serving=issue) as served:
        assert certify(served)(REQUEST, WAIT_SECONDS)
        assert served.server.istio_address == ""
        assert served.server.problems() == {
            "serving certificate": "no issuing CA answers",
            "listeners": "waiting for the serving certificate",
        }
        may.set()
        while served.server.problems():
            threading.Event().wait(0.01)
        served.ca = ca
        served.stub()(IstioCertificateRequest(csr="pem"))


def test_a_listener_that_cannot_open_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        # The other port can be had, and is not asked for again.
        free = netports.address()
        absent = "{certificate: absent.pem, key: absent.key}"
        with Served(tmp_path, tls=absent, listen=free, mtls_listen=address) as served:
            served.serving.close()
            pair = served.ca.issue_serving(["meshca.istio-system.svc"], HOUR)
            (tmp_path / "absent.pem").write_bytes(pair.certificate_chain_pem)
            (tmp_path / "absent.key").touch(0o600)
            (tmp_path / "absent.key").write_bytes(pair.private_key_pem)
            assert served.serving.refresh()
            for _ in range(2):
                served.serving.on_pair()
                assert served.server.problems() == {
                    "listeners": f"fronts.istio.mtls_listen: cannot listen on {address}"
                }
            taken.close()
            for _ in range(2):
                served.serving.on_pair()
            assert caplog.text.count("a front cannot listen") == 1
            assert served.server.problems() == {}
            assert served.stub()(IstioCertificateRequest(csr="pem")).cert_chain


def test_the_bounds_of_one_front_are_not_those_of_the_other(tmp_path: Path) -> None:
    with Served(
        tmp_path, fronts=LINKERD, limits="{threads: 2, in_flight: 1}"
    ) as served:
        _, listener = served.server._listeners
        assert isinstance(listener, LinkerdListener)
        calls = listener.pools.calls
        assert (calls.in_flight, calls.queue_seconds) == (4096, 30)
        held = Held()
        served.issuance.does = held
        first = served.stub().future(IstioCertificateRequest(csr="pem"))
        assert held.began.acquire(timeout=WAIT_SECONDS)
        # Istio's front has all that it can take; Linkerd's has not.
        served.issuance.does = lambda _call: ISSUED
        assert certify(served)(REQUEST, WAIT_SECONDS)
        held.release.set()
        assert first.result(WAIT_SECONDS)


def test_draining_finishes_the_calls_of_both(tmp_path: Path) -> None:
    held = Held()
    with Served(tmp_path, fronts=LINKERD) as served:
        served.issuance.does = held
        running = [
            served.stub().future(IstioCertificateRequest(csr="pem")),
            certify(served).future(REQUEST),
        ]
        for _ in running:
            assert held.began.acquire(timeout=WAIT_SECONDS)
        ending = threading.Thread(target=served.server.drain, args=(WAIT_SECONDS,))
        ending.start()
        while not served.server._draining:
            threading.Event().wait(0.005)
        held.release.set()
        assert all(future.result(WAIT_SECONDS) for future in running)
        ending.join(WAIT_SECONDS)
        assert not ending.is_alive()


@pytest.mark.parametrize(
    ("bounds", "shorter"),
    [
        ({"grpc.max_connection_idle_ms": 5 * 60 * 1000}, 200),
        # The peer does not answer pings, as one that is gone.
        (
            {"grpc.keepalive_time_ms": 30_000, "grpc.http2.ping_timeout_ms": 10_000},
            200,
        ),
    ],
)
def test_a_connection_without_a_call_is_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bounds: dict[str, int],
    shorter: int,
) -> None:
    options = dict(module._OPTIONS)
    assert bounds.items() <= options.items()
    changed = options | dict.fromkeys(bounds, shorter)
    monkeypatch.setattr(module, "_OPTIONS", tuple(changed.items()))
    with Served(tmp_path, fronts=LINKERD) as served, connected(served) as peer:
        while peer.recv(65_536):
            pass


@pytest.mark.parametrize("front", ["istio", "linkerd"])
def test_a_connection_ends_by_its_age_and_its_calls_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front: str
) -> None:
    def short(**given: Any) -> tuple[tuple[str, int], ...]:
        assert dict(grpc_options(**given))[AGE] == 30 * 60 * 1000
        return grpc_options(**given, age_seconds=1)

    monkeypatch.setattr(module, "grpc_options", short)
    held, answer = Held(), [http2.HEADERS, http2.DATA, http2.HEADERS]
    with Served(tmp_path, fronts=LINKERD) as served:
        served.issuance.does = held
        with connected(served, front) as peer:
            call = http2.begun(1, path=http2.METHODS[front])
            peer.sendall(call + http2.frame(http2.DATA, 1, 1, http2.framed(REQUEST)))
            assert held.began.acquire(timeout=WAIT_SECONDS)
            kinds = []
            # To the end of the connection, which the client does not close.
            for frame in http2.frames(peer, WAIT_SECONDS):
                if frame.kind == http2.PING:
                    assert http2.GOAWAY in kinds  # else it comes of the keepalive
                    peer.sendall(http2.frame(frame.kind, http2.ACK, 0, frame.payload))
                if frame.kind == http2.GOAWAY:
                    held.release.set()
                if frame.kind == http2.GOAWAY or frame.stream == 1:
                    kinds.append(frame.kind)
            assert kinds[0] == http2.GOAWAY
            assert [kind for kind in kinds if kind != http2.GOAWAY] == answer


def test_calls_above_what_grpc_may_hold_are_shed_and_those_below_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(module._OPTIONS)
    # One connection of a sidecar never comes so far.
    assert LinkerdListener.streams < options[PENDING] < options[f"{PENDING}_hard_limit"]
    shorter = options | {PENDING: 10, f"{PENDING}_hard_limit": 10}
    monkeypatch.setattr(module, "_OPTIONS", tuple(shorter.items()))
    began, release = threading.Semaphore(0), threading.Event()
    arrived = IstioFront.service

    def slow(front: IstioFront, details: Any) -> Any:
        began.release()
        assert release.wait(WAIT_SECONDS)
        return arrived(front, details)

    monkeypatch.setattr(IstioFront, "service", slow)
    with Served(tmp_path) as served:
        junk, honest = served.stub(), served.stub()
        request = IstioCertificateRequest(csr="pem")
        calls = [junk.future(request) for _ in range(50)]
        assert began.acquire(timeout=WAIT_SECONDS)
        eventually(lambda: sum(call.done() for call in calls) >= 50 - 10 - TAKEN)
        release.set()
        codes = Counter(call.code().name for call in calls)
        assert {*codes} == {"OK", "CANCELLED"}
        assert 10 <= codes["OK"] <= 10 + TAKEN
        assert honest(request).cert_chain


def connected(served: Served, front: str = "linkerd") -> socket.socket:
    """Connect as every client of HTTP/2 begins, and acknowledge the bounds."""
    peer = served.connected(front)
    settings = http2.frame(http2.SETTINGS), http2.frame(http2.SETTINGS, http2.ACK)
    peer.sendall(http2.PREFACE + b"".join(settings))
    return peer
