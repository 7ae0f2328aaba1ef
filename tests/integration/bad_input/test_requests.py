"""Bad requests over the wire: lifetimes, names, metadata, messages, headers."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Value

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.identity.service_account_token import LONGEST_TOKEN
from tests.support.clients.istio_raw import (
    DEVELOPMENT,
    FOREIGN,
    Answer,
    Metadata,
    Wire,
    bearer,
    channel,
    padded_token,
    request,
    token,
)
from tests.support.harness.core import csr as new_csr

pytestmark = pytest.mark.xdist_group("bad-input-requests")

ATTEMPTS = 5
"""Of Istio's client, after RESOURCE_EXHAUSTED among others."""
DAY = 86_400
SERVICE = "/istio.v1.auth.IstioCertificateService"


def caller() -> tuple[str, Metadata]:
    """Return a caller of its own, by whom a call's row is found, and its headers."""
    account = f"request-{uuid.uuid4()}"
    value = token(account=account, pod=None)
    return f"spiffe://corp.example/ns/shop/sa/{account}", bearer(value)


def require_on_record(
    wire: Wire, answer: Answer, code: str, rule: str, caller: str
) -> None:
    assert answer.code == code
    assert answer.text.startswith(f"{rule}: ")
    row = wire.new_outcome()
    assert (row["kind"], row["status"], row["rule"]) == ("refused", code, rule)
    assert row["caller"] == caller
    assert row["attempt"] == ""


# Lifetimes.


@pytest.mark.parametrize("seconds", [-1, 0, -(2**63)])
def test_no_wanted_lifetime_means_the_default(wire: Wire, seconds: int) -> None:
    answer = wire.ask(ttl_seconds=seconds)
    assert answer.code == "OK"
    leaf = answer.leaf
    validity = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert validity == timedelta(seconds=DAY, minutes=2)
    assert wire.new_outcome()["kind"] == "issued"


@pytest.mark.parametrize(
    ("seconds", "rule"),
    [
        (1, "ttl.minimum"),
        (299, "ttl.minimum"),
        (DAY + 1, "ttl.maximum"),
        (10 * 365 * DAY, "ttl.maximum"),
        (2**31, "ttl.maximum"),
        (2**62, "ttl.maximum"),  # nanoseconds in 64 bits would make 0 of it
        (2**63 - 1, "ttl.maximum"),
    ],
)
def test_a_lifetime_out_of_bounds_is_refused(
    wire: Wire, seconds: int, rule: str
) -> None:
    name, headers = caller()
    answer = wire.ask(headers, ttl_seconds=seconds)
    require_on_record(wire, answer, "INVALID_ARGUMENT", rule, name)


@pytest.mark.parametrize("seconds", [300, DAY])
def test_a_lifetime_at_the_bounds_is_given(wire: Wire, seconds: int) -> None:
    answer = wire.ask(ttl_seconds=seconds)
    left = answer.leaf.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(seconds=seconds - 30) < left <= timedelta(seconds=seconds)
    assert wire.new_outcome()["kind"] == "issued"


# Names.


@pytest.mark.parametrize("namespace", ["payments", "kube-system", "sandbox-2"])
def test_a_cluster_gets_no_names_of_foreign_namespaces(
    wire: Wire, namespace: str
) -> None:
    value = DEVELOPMENT.token(namespace, "api", now=datetime.now(UTC))
    answer = wire.ask(bearer(value, "development"))
    name = f"spiffe://corp.example/ns/{namespace}/sa/api"
    require_on_record(wire, answer, "PERMISSION_DENIED", "cluster.namespace", name)


def test_a_cluster_gets_names_of_its_own_namespaces(wire: Wire) -> None:
    value = DEVELOPMENT.token("sandbox", "api", now=datetime.now(UTC))
    answer = wire.ask(bearer(value, "development"))
    assert answer.uris == ["spiffe://corp.example/ns/sandbox/sa/api"]
    assert wire.new_outcome()["cluster"] == "development"


def test_names_outside_the_constraints_are_not_even_tried(wire: Wire) -> None:
    value = FOREIGN.token("shop", "web", now=datetime.now(UTC))
    answer = wire.ask(bearer(value, "foreign"))
    name = "spiffe://other.example/ns/shop/sa/web"
    require_on_record(wire, answer, "PERMISSION_DENIED", "constraint.permitted", name)


# What the metadata of a request may say.


@pytest.mark.parametrize("key", ["CertSigner", "ImpersonatedIdentity"])
def test_metadata_without_a_value_is_refused(wire: Wire, key: str) -> None:
    made = IstioCertificateRequest(csr=new_csr())
    made.metadata.fields[key].CopyFrom(Value())
    answer = wire.send(made.SerializeToString(), bearer(token()))
    require_on_record(wire, answer, "INVALID_ARGUMENT", "request.metadata", "")


@pytest.mark.parametrize(
    "signer", ["silver", "GOLD", "gold ", "gold,silver", "../gold", "g\0ld", "x" * 9000]
)
def test_an_unknown_signer_is_refused(wire: Wire, signer: str) -> None:
    name, headers = caller()
    answer = wire.ask(headers, extra={"CertSigner": signer})
    require_on_record(wire, answer, "INVALID_ARGUMENT", "signer.unknown", name)


@pytest.mark.parametrize("signer", ["", "gold"])
def test_a_known_signer_or_none_is_taken(wire: Wire, signer: str) -> None:
    assert wire.ask(extra={"CertSigner": signer, "Other": [1, 2]}).code == "OK"
    assert wire.new_outcome()["kind"] == "issued"


@pytest.mark.parametrize(
    "identity",
    [
        "",
        "spiffe://corp.example/ns/shop/sa/web",  # its own
        "spiffe://corp.example/ns/payments/sa/api",
        "spiffe://corp.example/ns/a/sa/b,DNS:evil.example",
        "spiffe://other.example/ns/shop/sa/web",
        "not an identity",
        "spiffe://corp.example/" + "x/" * 4000,
    ],
)
def test_nobody_acts_for_another_workload(wire: Wire, identity: str) -> None:
    name, headers = caller()
    answer = wire.ask(headers, extra={"ImpersonatedIdentity": identity})
    require_on_record(wire, answer, "PERMISSION_DENIED", "impersonation", name)


# Messages.


def deep(levels: int) -> bytes:
    """Nest a Struct in a Struct, as no parser follows without an end."""
    value = Value(number_value=1)
    for _ in range(levels):
        outer = Value()
        outer.struct_value.fields["a"].CopyFrom(value)
        value = outer
    made = IstioCertificateRequest(csr="x")
    made.metadata.fields["a"].CopyFrom(value)
    return made.SerializeToString()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\xff", id="no tag"),
        pytest.param(b"\x0a", id="no length"),
        pytest.param(b"\x0a\x05abc", id="too short"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f", id="length of 4 GiB"),
        pytest.param(b"\x0a\x02\xc3\x28", id="no UTF-8"),
        pytest.param(b"\x0a\x03\xed\xa0\x80", id="a surrogate"),
        pytest.param(b"\x18" + b"\xff" * 11, id="varint without an end"),
        pytest.param(b"\x0b\x0b\x0b", id="groups that do not end"),
        pytest.param(b"\x22\x02\xff\xff", id="broken metadata"),
        pytest.param(b"\x00\x00\x00\x00\x00", id="zeros"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(b"\x0b" * 60_000, id="deep groups"),
        pytest.param(deep(99), id="deep metadata"),
    ],
)
def test_a_broken_message_is_refused_and_on_record(wire: Wire, message: bytes) -> None:
    answer = wire.send(message, bearer(token()))
    # Not INTERNAL, as the transport would say: Istio's client sends that again.
    require_on_record(wire, answer, "INVALID_ARGUMENT", "request.protobuf", "")


def test_an_empty_message_is_a_request_for_nothing(wire: Wire) -> None:
    name, headers = caller()
    answer = wire.send(b"", headers)
    require_on_record(wire, answer, "INVALID_ARGUMENT", "csr.pem", name)


def test_a_call_without_a_message_is_refused(wire: Wire) -> None:
    call = wire.channel.stream_unary(f"{SERVICE}/CreateCertificate")
    answer = _code(lambda: call(iter(()), timeout=10, metadata=bearer(token())))
    assert answer == "INVALID_ARGUMENT"
    wire.require_no_outcome()


def test_a_second_message_gets_nothing(wire: Wire) -> None:
    call = wire.channel.stream_unary(f"{SERVICE}/CreateCertificate")
    messages = iter((request(), request()))
    assert _code(lambda: call(messages, timeout=10, metadata=bearer(token()))) == "OK"
    assert wire.new_outcome()["kind"] == "issued"
    wire.require_healthy()


@pytest.mark.parametrize(
    "method",
    [
        f"{SERVICE}/createcertificate",
        f"{SERVICE}/DeleteCertificate",
        f"{SERVICE}/",
        f"{SERVICE}/CreateCertificate/x",
        "/istio.v1.auth.IstioCertificateService",
        "/istio.v2.auth.IstioCertificateService/CreateCertificate",
        "/",
        "/a/../istio.v1.auth.IstioCertificateService/CreateCertificate",
    ],
)
def test_an_unknown_method_is_not_served(wire: Wire, method: str) -> None:
    answer = wire.send(request(), bearer(token()), method=method)
    assert answer.code == "UNIMPLEMENTED"
    wire.require_no_outcome()


# Headers.


def test_headers_that_must_not_wait_get_our_refusal(wire: Wire) -> None:
    more = tuple((f"x-{number}", "") for number in range(400))
    own = channel(wire.bridge)  # the bridge closes the connection
    try:
        answer = wire.send(request(), (*bearer(token()), *more), on=own)
    finally:
        own.close()
    require_on_record(wire, answer, "INVALID_ARGUMENT", "request.headers", "")


def test_many_headers_beside_a_good_token_do_no_harm(wire: Wire) -> None:
    more = tuple((f"x-{number}", "v" * 50) for number in range(150))
    assert wire.ask((*bearer(token()), *more)).code == "OK"
    assert wire.new_outcome()["kind"] == "issued"


@pytest.mark.parametrize(
    ("kibibytes", "codes"),
    [
        (15, {"OK"}),
        # The share that is refused grows from none to all.
        (24, {"OK", "RESOURCE_EXHAUSTED"}),
    ],
)
def test_some_headers_over_16_kib_are_refused(
    wire: Wire, kibibytes: int, codes: set[str]
) -> None:
    padded = (*bearer(token()), ("x", "v" * (kibibytes - 1) * 1024))
    own = channel(wire.bridge)
    try:
        answers = [wire.send(request(), padded, on=own) for _ in range(30)]
    finally:
        own.close()
    wire.require_healthy()
    assert {answer.code for answer in answers} == codes


def test_the_longest_token_passes_in_the_attempts_of_istios_client(wire: Wire) -> None:
    longest = padded_token(LONGEST_TOKEN, token)
    for _ in range(20):
        codes: list[str] = []
        while len(codes) < ATTEMPTS and "OK" not in codes:
            codes.append(wire.ask(bearer(longest)).code)
        # With it, the headers are somewhat over 16 KiB.
        assert codes == ["RESOURCE_EXHAUSTED"] * (len(codes) - 1) + ["OK"]
    wire.require_healthy()


@pytest.mark.parametrize("kibibytes", [33, 500, 2048])
def test_headers_over_32_kib_are_the_transports_to_refuse(
    wire: Wire, kibibytes: int
) -> None:
    own = channel(wire.bridge)
    try:
        answer = wire.send(request(), bearer("A" * kibibytes * 1024), on=own)
    finally:
        own.close()
    # Istio's client asks again after both.
    assert answer.code in {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    wire.require_no_outcome()


def _code(call: Callable[[], Any]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        raised: Any = error
        return str(raised.code().name)
    return "OK"
