"""Linkerd's front: what goes in, what comes out, and what is never decided here."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge.errors import (
    AuthenticationError,
    BridgeError,
    LedgerError,
    MismatchError,
    OverloadedError,
    RequestError,
)
from bridge.identity.caller import TokenCredential
from bridge.metrics.instruments import Metrics
from bridge.policy.linkerd_names import subject_error
from bridge.resilience.budget import Budget
from bridge.server.front import FrontSettings
from bridge.server.linkerd import METHOD, LinkerdFront, LinkerdListener
from bridge.server.server import Server
from tests.support.harness.in_process_server import (
    ISSUED,
    WAIT_SECONDS,
    Held,
    ScriptedIssuance,
    linkerd_server,
)

REQUEST = CertifyRequest(
    identity="web.shop", token=b"a.b.c", certificate_signing_request=b"\x30\x00"
)


class Front:
    def __init__(self, folder: Path) -> None:
        self.issuance = ScriptedIssuance()
        self.metrics = Metrics()
        self.server: Server = linkerd_server(folder, self.issuance, self.metrics)
        self.server.start()
        self.channel = grpc.insecure_channel(self.server.linkerd_address)

    def raw(self, message: bytes, method: str = METHOD, **more: Any) -> bytes:
        reply: bytes = self.channel.unary_unary(method)(
            message, timeout=WAIT_SECONDS, **more
        )
        return reply

    def ask(self, **changed: Any) -> CertifyResponse:
        request = CertifyRequest()
        request.CopyFrom(REQUEST)
        for name, value in changed.items():
            setattr(request, name, value)
        return CertifyResponse.FromString(self.raw(request.SerializeToString()))


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    made = Front(tmp_path)
    yield made
    made.channel.close()
    made.server.drain(0)


def failure(front: Front, message: bytes, method: str = METHOD) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError, match=r".") as caught:
        front.raw(message, method)
    error: Any = caught.value
    return error.code().name, error.details()


def test_a_call_is_translated_and_nothing_is_decided(front: Front) -> None:
    front.ask(identity="Any.Thing.", token=b"\xff", certificate_signing_request=b"x")
    (call,) = front.issuance.calls
    assert (call.front, call.identity, call.csr) == ("linkerd", "Any.Thing.", b"x")
    # What is no text stays something else, and the cluster is the configuration's.
    assert call.credential == TokenCredential(("Bearer \xff",), ("second",))
    assert call.audiences == {"identity.l5d.io"}
    assert (call.ttl_seconds, call.cert_signer, call.impersonated) == (0, "", None)


@pytest.mark.parametrize(
    ("sent", "taken"),
    [(b"a.b.c", "a.b.c"), (b"a.b.c\n", "a.b.c"), (b"a.b.c\n\n", "a.b.c\n")],
)
def test_the_newline_of_a_token_file_is_no_part_of_the_token(
    front: Front, sent: bytes, taken: str
) -> None:
    front.ask(token=sent)
    (call,) = front.issuance.calls
    assert call.credential == TokenCredential((f"Bearer {taken}",), ("second",))


def test_without_a_token_there_is_no_credential(front: Front) -> None:
    front.ask(token=b"")
    (call,) = front.issuance.calls
    assert call.credential == TokenCredential((), ("second",))


def test_headers_are_no_credential_and_name_no_cluster(front: Front) -> None:
    headers = (("authorization", "Bearer other"), ("clusterid", "first"))
    front.raw(REQUEST.SerializeToString(), metadata=headers)
    (call,) = front.issuance.calls
    assert call.credential == TokenCredential(("Bearer a.b.c",), ("second",))


def test_a_proxy_sets_no_deadline_and_has_ours(front: Front) -> None:
    before = time.monotonic()
    front.channel.unary_unary(METHOD)(REQUEST.SerializeToString())
    (call,) = front.issuance.calls
    assert before < call.budget.deadline - 40 < time.monotonic()


def test_the_answer_is_der_and_says_how_long(front: Front) -> None:
    ends = datetime(2026, 5, 4, 3, 2, 1, 500_000, tzinfo=UTC)
    front.issuance.does = lambda _call: replace(ISSUED, valid_until=ends)
    reply = front.ask()
    assert reply.leaf_certificate == ISSUED.leaf
    assert [*reply.intermediate_certificates] == [*ISSUED.chain]
    assert reply.HasField("valid_until")
    assert reply.valid_until.ToDatetime(UTC) == ends


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MismatchError("w", rule="linkerd.x"), "FAILED_PRECONDITION", "w"),
        (
            AuthenticationError("w", rule="token.key"),
            "FAILED_PRECONDITION",
            "authentication token could not be authenticated",
        ),
        (OverloadedError("w"), "UNAVAILABLE", "overload: w"),
        (
            LedgerError("/a/b"),
            "UNAVAILABLE",
            "ledger: the CA cannot put issuances on record now",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_refusal_reaches_the_peer_as_linkerds_table_has_it(
    front: Front, error: BridgeError, code: str, text: str
) -> None:
    front.issuance.fails(error)
    assert failure(front, REQUEST.SerializeToString()) == (code, text)


def test_what_no_utf8_can_say_is_told_all_the_same(front: Front) -> None:
    # JSON, and so the subject of a token, may have half a surrogate pair.
    front.issuance.fails(subject_error("system:node:\ud800"))
    code, text = failure(front, REQUEST.SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert text == "Username must be in form system:TYPE:NS:SA: system:node:?"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(KeyError("/etc/secret"), id="any error"),
        pytest.param(grpc.RpcError("/etc/secret"), id="a plugin's own gRPC call"),
        pytest.param(BaseException("/etc/secret"), id="a panic in Rust"),
    ],
)
def test_a_bug_has_fixed_words(
    front: Front, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    front.issuance.fails(error)
    code, text = failure(front, REQUEST.SerializeToString())
    assert code == "INTERNAL"
    assert "secret" not in text
    assert "an unexpected error" in caplog.text


def test_it_is_ready_without_a_serving_certificate(front: Front) -> None:
    assert front.server.problems() == {}
    assert front.server.istio_address == front.server.mtls_address == ""


def test_calls_are_counted_as_a_server_in_go_counts_them(front: Front) -> None:
    front.ask()
    front.issuance.fails(MismatchError("w", rule="linkerd.x"))
    failure(front, REQUEST.SerializeToString())
    labels = {
        "grpc_type": "unary",
        "grpc_service": "io.linkerd.proxy.identity.Identity",
        "grpc_method": "Certify",
    }

    def value(name: str, **more: str) -> float | None:
        return front.metrics.registry.get_sample_value(
            f"grpc_server_{name}", labels | more
        )

    assert value("started_total") == 2
    assert value("handled_total", grpc_code="OK") == 1
    assert value("handled_total", grpc_code="FailedPrecondition") == 1
    assert value("handling_seconds_count") == 2
    assert value("handling_seconds_bucket", le="0.1") is not None


def test_the_readiness_has_no_part_that_is_not_there(front: Front) -> None:
    url = f"http://{front.server.admin_address}/readyz"
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
        parts = json.load(answer)["parts"]
    assert "serving certificate" not in parts
    assert parts["listeners"] == "ok"


@given(st.binary(max_size=200))
def test_any_message_is_translated_or_refused(message: bytes) -> None:
    settings = FrontSettings(audiences=frozenset({"a"}), deadline_seconds=1)
    pools: Any = None
    issuance: Any = ScriptedIssuance()
    made = LinkerdFront(issuance, Metrics(), pools, settings)
    try:
        call = made.translate(message, None, Budget.of_seconds(1))
    except RequestError:
        return
    assert call.front == "linkerd"


def test_who_waits_for_a_message_keeps_nobody_from_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinkerdListener, "message_seconds", 60.0)
    front, may = Front(tmp_path), threading.Event()

    def late() -> Iterator[bytes]:
        may.wait(WAIT_SECONDS)
        yield REQUEST.SerializeToString()

    # Two threads work on calls; these wait for their message beside them.
    begin = front.channel.stream_unary(METHOD)
    stalled = [begin.future(late()) for _ in range(10)]
    while (front.metrics.registry.get_sample_value("meshca_in_flight") or 0) < 10:
        threading.Event().wait(0.005)
    assert front.ask().leaf_certificate
    assert not any(one.done() for one in stalled)
    may.set()
    assert all(one.result(WAIT_SECONDS) for one in stalled)
    front.channel.close()
    front.server.drain(0)


def test_no_more_calls_are_worked_on_than_there_are_threads_for(front: Front) -> None:
    held = Held()
    front.issuance.does = held
    call = front.channel.unary_unary(METHOD)
    message = REQUEST.SerializeToString()
    waiting = [call.future(message, WAIT_SECONDS) for _ in range(6)]
    for _ in range(2):
        assert held.began.acquire(timeout=WAIT_SECONDS)
    while (front.metrics.registry.get_sample_value("meshca_in_flight") or 0) < 6:
        threading.Event().wait(0.005)
    assert not held.began.acquire(timeout=0.1)
    held.release.set()
    assert all(one.result() for one in waiting)
