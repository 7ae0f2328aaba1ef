import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.errors import (
    AuthenticationError,
    BackendUnavailableError,
    BridgeError,
    DeniedError,
    OverloadedError,
)
from bridge.identity.caller import CertificateCredential, TokenCredential
from bridge.issuance.call import Call, Issued
from bridge.server.istio import METHOD, IstioListener
from tests.support.harness.in_process_server import (
    ISSUED,
    WAIT_SECONDS,
    Held,
    Served,
    eventually,
    silence,
)

REQUEST = IstioCertificateRequest(csr="pem", validity_duration=3600)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as running:
        yield running


def failure(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError, match=r".") as caught:
        call()
    error: Any = caught.value
    return error.code().name, error.details()


def test_the_reply_is_leaf_intermediates_and_anchors(served: Served) -> None:
    reply = served.stub()(REQUEST)
    assert list(reply.cert_chain) == [
        ISSUED.leaf_pem,
        "issuing\n",
        "regional\n",
        "root\n",
    ]


def test_a_call_is_translated_and_nothing_is_decided(served: Served) -> None:
    request = IstioCertificateRequest(csr="pem", validity_duration=-5)
    request.metadata.update({"CertSigner": "x", "ImpersonatedIdentity": "y"})
    served.stub()(
        request,
        metadata=(
            ("authorization", "Bearer one"),
            ("clusterid", "a"),
            ("authorization", "Bearer two"),
            ("clusterid", ""),
        ),
    )
    (call,) = served.issuance.calls
    assert call.front == "istio"
    assert call.csr == "pem"
    assert call.ttl_seconds == -5
    assert call.cert_signer == "x"
    assert call.impersonated == "y"
    assert call.audiences == {"istio-ca"}
    assert call.credential == TokenCredential(("Bearer one", "Bearer two"), ("a", ""))


def test_a_client_certificate_is_the_credential_whatever_the_headers_say(
    served: Served,
) -> None:
    client = served.ca.issue_client("spiffe://corp.example/ns/a/sa/b")
    headers = (("authorization", "Bearer x"), ("clusterid", "y"))
    served.stub(client)(REQUEST, metadata=headers)
    (call,) = served.issuance.calls
    assert isinstance(call.credential, CertificateCredential)
    assert call.credential.leaf.strip() == client.certificate_chain_pem.strip()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuthenticationError("no token"), "UNAUTHENTICATED"),
        (OverloadedError("later"), "RESOURCE_EXHAUSTED"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_refusal_reaches_the_peer_as_its_code_and_rule(
    served: Served, error: BridgeError, code: str
) -> None:
    served.issuance.fails(error)
    assert failure(lambda: served.stub()(REQUEST)) == (code, f"{error.rule}: {error}")
    labels = {"front": "istio", "code": code}
    assert served.counted("meshca_requests_total", labels) == 1


def test_long_headers_reach_us(served: Served) -> None:
    token = "Bearer " + "x" * 15_000
    served.stub()(REQUEST, metadata=(("authorization", token),))
    assert served.issuance.calls[0].credential == TokenCredential((token,), ())


def test_who_has_too_long_headers_does_not_wait(served: Served) -> None:
    # They would be held meanwhile; whether a message comes makes no difference.
    over = threading.Event()

    served.listener.pools.reaper.seconds = 9 * WAIT_SECONDS
    more = tuple((f"x-{number}", "") for number in range(330))
    call = served.channel().stream_unary(METHOD)
    code, text = failure(
        lambda: call(silence(over), metadata=more, timeout=WAIT_SECONDS)
    )
    over.set()
    assert code == "INVALID_ARGUMENT"
    assert text == "request.headers: the headers of the call are too long"
    (refused,) = served.issuance.refused
    assert refused.rule == "request.headers"
    assert not served.issuance.calls
    # No client sends such headers by accident.
    closed = {"reason": "junk"}
    eventually(lambda: served.counted("meshca_connections_closed_total", closed) == 1)


def test_refused_headers_are_let_go_at_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[BridgeError]] = []

    def refuse(error: BridgeError, **_: str) -> None:
        kept.append(weakref.ref(error))

    monkeypatch.setattr(served.issuance, "refuse", refuse)
    more = tuple((f"x-{number}", "") for number in range(330))
    call = served.channel().unary_unary(METHOD)
    # The collector of cycles runs seldom where the bridge serves.
    gc.disable()
    try:
        failure(lambda: call(b"", metadata=more, timeout=WAIT_SECONDS))
        eventually(lambda: kept[0]() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "kind", [BackendUnavailableError, ValueError], ids=["failed", "unexpected"]
)
def test_a_connection_keeps_its_streams_where_calls_fail(
    served: Served, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(call: Call) -> Issued:
        served.issuance.calls.clear()  # which would keep them
        error = kind(call.front)
        kept = error  # noqa: F841 - so the error is in its own traceback
        raise error

    # pytest keeps what is logged, with its traceback.
    monkeypatch.setattr(logging.getLogger("bridge.server.front"), "disabled", True)
    served.issuance.does = fail
    call = served.stub()
    # The collector of cycles runs seldom where the bridge serves.
    gc.disable()
    try:
        for _ in range(3 * IstioListener.streams):
            failure(lambda: call(REQUEST, timeout=WAIT_SECONDS))
        served.issuance.does = lambda _call: ISSUED
        assert call(REQUEST, timeout=WAIT_SECONDS)
    finally:
        gc.enable()


def test_without_a_deadline_of_the_clients_ours_counts(tmp_path: Path) -> None:
    with Served(tmp_path, limits="{threads: 1, deadline: 7s}") as served:
        before = time.monotonic()
        served.stub()(REQUEST)
        deadline = served.issuance.calls[0].budget.deadline
    assert before < deadline - 7 < time.monotonic()


def test_an_earlier_deadline_of_the_clients_counts(tmp_path: Path) -> None:
    with Served(tmp_path, limits="{threads: 1, deadline: 90s}") as served:
        before = time.monotonic()
        served.stub()(REQUEST, timeout=30)
        deadline = served.issuance.calls[0].budget.deadline
    # grpc sends it in whole milliseconds.
    assert before + 29 < deadline < time.monotonic() + 30


def test_a_call_that_cannot_be_answered_in_time_is_not_begun(served: Served) -> None:
    stub = served.stub()
    stub(REQUEST)

    def is_shed() -> bool:
        # Who answers first, our server or the client's own clock, is not the point.
        failure(lambda: stub(REQUEST, timeout=0.1))
        return served.counted("meshca_shed_total", {"reason": "deadline"}) > 0

    eventually(is_shed)
    assert len(served.issuance.calls) == 1


def test_a_call_knows_when_its_caller_has_gone(served: Served) -> None:
    held = Held()
    served.issuance.does = held
    future = served.stub().future(REQUEST)
    assert held.began.acquire(timeout=WAIT_SECONDS)
    is_active = served.issuance.calls[0].budget.is_active
    assert is_active()
    future.cancel()
    eventually(lambda: not is_active())
    held.release.set()


def test_a_call_whose_caller_left_in_the_queue_is_dropped(tmp_path: Path) -> None:
    held = Held()
    with Served(tmp_path, limits="{threads: 1}") as served:
        served.issuance.does = held
        stub = served.stub()
        first = stub.future(REQUEST)
        assert held.began.acquire(timeout=WAIT_SECONDS)
        second = stub.future(REQUEST)
        eventually(lambda: served.counted("meshca_in_flight") == 2)
        second.cancel()
        third = stub.future(REQUEST)
        eventually(lambda: served.counted("meshca_in_flight") == 3)
        held.release.set()
        first.result(WAIT_SECONDS)
        third.result(WAIT_SECONDS)
        eventually(lambda: served.counted("meshca_in_flight") == 0)
        assert len(served.issuance.calls) == 2
        assert served.counted("meshca_shed_total", {"reason": "gone"}) == 1
        gone = {"front": "istio", "code": "CANCELLED"}
        assert served.counted("meshca_requests_total", gone) == 1


def test_above_the_bound_calls_are_refused_at_once(tmp_path: Path) -> None:
    # All threads are at work, so this also shows that a refusal needs none of them.
    held = Held()
    with Served(tmp_path, limits="{threads: 2, in_flight: 3}") as served:
        served.issuance.does = held
        stub = served.stub()
        futures = [stub.future(REQUEST) for _ in range(3)]
        for _ in range(2):
            assert held.began.acquire(timeout=WAIT_SECONDS)
        eventually(lambda: served.counted("meshca_in_flight") == 3)
        code, text = failure(lambda: stub(REQUEST, timeout=WAIT_SECONDS))
        held.release.set()
        for future in futures:
            future.result(WAIT_SECONDS)
        assert (code, text.split(":")[0]) == (
            "RESOURCE_EXHAUSTED",
            "overload.in-flight",
        )
        assert served.counted("meshca_shed_total", {"reason": "in_flight"}) == 1
        stub(REQUEST)  # and there is room again


def test_a_call_that_waited_too_long_is_refused_while_all_threads_are_at_work(
    tmp_path: Path,
) -> None:
    held = Held()
    with Served(tmp_path, limits="{threads: 1}") as served:
        served.issuance.does = held
        stub = served.stub()
        first = stub.future(REQUEST)
        assert held.began.acquire(timeout=WAIT_SECONDS)
        served.listener.pools.calls.queue_seconds = 0.05  # not for the first one
        code, text = failure(lambda: stub(REQUEST, timeout=WAIT_SECONDS))
        held.release.set()
        first.result(WAIT_SECONDS)
        assert (code, text.split(":")[0]) == ("RESOURCE_EXHAUSTED", "overload.queue")
        assert len(served.issuance.calls) == 1
        assert served.counted("meshca_shed_total", {"reason": "queue"}) == 1


def test_a_message_that_never_comes_frees_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.server.listener.Listener.message_seconds", 1.0)
    with Served(tmp_path, limits="{threads: 1}") as served:
        over, peers = threading.Event(), list[str]()
        monkeypatch.setattr(served.listener.pools.guard, "junk", peers.append)

        stalled = served.channel().stream_unary(METHOD)
        future = stalled.future(silence(over))
        served.stub()(REQUEST, timeout=WAIT_SECONDS)
        code, text = failure(lambda: future.result(WAIT_SECONDS))
        # Istio's client asks again after this, and does not after CANCELLED.
        assert (code, text.split(":")[0]) == ("RESOURCE_EXHAUSTED", "overload.stalled")
        assert served.counted("meshca_shed_total", {"reason": "stalled"}) == 1
        assert len(peers) == 1, "it is junk"
        over.set()


@pytest.mark.parametrize(
    ("method", "message", "error", "junk"),
    [
        ("/x/y", b"", None, 1),
        (METHOD, b"", None, 0),
        (METHOD, b"\xff", None, 1),
        (METHOD, b"", AuthenticationError("no token"), 1),
        (METHOD, b"", DeniedError("not you"), 0),
        (METHOD, b"", OverloadedError("later"), 0),
    ],
    ids=["method", "good", "message", "token", "policy", "overload"],
)
def test_a_peers_own_faults_are_junk(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    message: bytes,
    error: BridgeError | None,
    junk: int,
) -> None:
    peers: list[str] = []
    monkeypatch.setattr(served.listener.pools.guard, "junk", peers.append)
    if error is not None:
        served.issuance.fails(error)
    call = served.channel().unary_unary(method)
    if junk or error:
        failure(lambda: call(message, timeout=WAIT_SECONDS))
    else:
        call(message, timeout=WAIT_SECONDS)
    assert len(peers) == junk
    assert all(peer.startswith("ipv4:127.0.0.1:") for peer in peers)
