"""Two fronts in one process: each has its own listener, and they end together."""

import socket
import threading
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
from bridge.server.linkerd import METHOD, LinkerdListener
from bridge.x509.key_pair import KeyPair
from tests.support.harness.in_process_server import (
    ISSUED,
    WAIT_SECONDS,
    Held,
    ListenerCA,
    Served,
)
from tests.support.parts import netports

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


def test_a_connection_without_a_call_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = "grpc.max_connection_idle_ms"
    options = dict(module._OPTIONS)
    assert options[idle] == 5 * 60 * 1000
    shorter = tuple((options | {idle: 200}).items())
    monkeypatch.setattr(module, "_OPTIONS", shorter)
    with Served(tmp_path, fronts=LINKERD) as served:
        host, port = served.server.linkerd_address.split(":")
        with socket.create_connection((host, int(port)), WAIT_SECONDS) as peer:
            # As every client of HTTP/2 begins; the bounds are acknowledged.
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            peer.sendall(preface + bytes(3) + b"\4" + bytes(5))
            peer.sendall(bytes(3) + b"\4\1" + bytes(4))
            while peer.recv(65_536):
                pass
