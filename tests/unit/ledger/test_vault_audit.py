"""Audit logs of Vault and OpenBao: what a line says, and what is no line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import LedgerError
from bridge.ledger import vault_audit
from bridge.ledger.vault_audit import AuditLogs, LoggedCall, Step
from tests.support.harness.audit_log import (
    VECTOR,
    Real,
    real_certificate,
    real_lines,
)

Read = tuple[list[LoggedCall], list[str]]
"""The calls, and the complaints."""


def read(path: Path) -> Read:
    complaints: list[str] = []
    return list(AuditLogs(complaints.append).read(path)), complaints


def read_lines(
    folder: Path, *content: str | bytes
) -> tuple[list[LoggedCall], list[str]]:
    path = folder / "audit.log"
    path.write_bytes(
        b"".join(part if isinstance(part, bytes) else part.encode() for part in content)
    )
    return read(path)


ANSWERS = {
    Real.HASHED: (Step.ISSUED, "", ""),
    Real.ISSUED: (Step.ISSUED, "18af318c7b95c6404c6bc067a6912469ecdcfc0", ""),
    Real.REFUSED_BY_ROLE: (Step.REFUSED, "", ""),
    Real.NO_ROLE: (Step.REFUSED, "", ""),
    Real.NO_ISSUER: (Step.REFUSED, "", "unable to find PKI issuer"),
    Real.DENIED: (Step.REFUSED, "", "permission denied"),
    Real.BAD_TOKEN: (Step.REFUSED, "", "permission denied"),
    Real.NO_MOUNT: (Step.REFUSED, "", "unsupported path"),
    Real.DER: (Step.ISSUED, "3fe25d2dd5a854ab8c53b30f25118f1540edd538", ""),
    Real.BUNDLE: (Step.ISSUED, "561584d68a4c48fa34e6ac919429f11d0204a81e", ""),
    Real.TRANSIT: (Step.ISSUED, "", ""),
    Real.TRANSIT_NO_VERSION: (Step.REFUSED, "", "requested version for signing"),
    Real.TRANSIT_NO_KEY: (Step.REFUSED, "", "invalid request"),
    Real.TRANSIT_BATCH: (Step.ISSUED, "", ""),
    Real.LOST: (Step.ISSUED, "2927baa52696865befafae1a2dd1f0361f3a477f", ""),
}


@pytest.mark.parametrize("call", ANSWERS)
def test_a_real_line_says_how_the_call_was_answered(call: Real, tmp_path: Path) -> None:
    step, serial, reason = ANSWERS[call]
    (asked, answered), complaints = read_lines(tmp_path, *real_lines(call))
    assert (asked.step, asked.attempt) == (Step.ASKED, call.attempt)
    assert (answered.step, answered.attempt) == (step, call.attempt)
    assert (answered.serial, answered.request) == (serial, asked.request)
    assert reason in answered.reason
    assert answered.place == f"{tmp_path / 'audit.log'}:2"
    assert complaints == []


def test_a_call_without_an_answer_was_only_asked(tmp_path: Path) -> None:
    (asked,), complaints = read_lines(tmp_path, *real_lines(Real.KILLED))
    assert (asked.step, asked.at, complaints) == (Step.ASKED, 1795906132, [])


def test_the_certificate_and_its_validity_are_read(tmp_path: Path) -> None:
    certificate = real_certificate()
    _, answered = read_lines(tmp_path, *real_lines(Real.ISSUED))[0]
    assert answered.certificate == certificate.public_bytes(Encoding.DER)
    assert answered.not_before == certificate.not_valid_before_utc.timestamp()
    assert answered.not_after == certificate.not_valid_after_utc.timestamp()
    _, hashed = read_lines(tmp_path, *real_lines(Real.HASHED))[0]
    assert hashed.certificate == b""
    assert hashed.not_after == certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("call", [Real.DER, Real.BUNDLE])
def test_a_certificate_is_read_in_each_format(call: Real, tmp_path: Path) -> None:
    _, answered = read_lines(tmp_path, *real_lines(call))[0]
    leaf = x509.load_der_x509_certificate(answered.certificate)
    assert f"{leaf.serial_number:x}" == answered.serial


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value of a line, by its keys with dots between them."""
    *above, last = path.split(".")

    def changed(entry: dict[str, Any]) -> None:
        for name in above:
            entry = entry[name]
        if value is None:
            del entry[last]
        else:
            entry[last] = value

    return changed


def changed_line(call: Real, path: str, value: object) -> str:
    entry = json.loads(real_lines(call)[1])
    change(path, value)(entry)
    return json.dumps(entry) + "\n"


HEADERS = "request.headers"
DATA = "response.data"
DAMAGED = [
    (HEADERS, {"x-meshca-attempt": ["1", "2"]}, "one value of the header"),
    (HEADERS, {"x-meshca-attempt": []}, "one value of the header"),
    (HEADERS, {"x-meshca-attempt": "1" * 32}, "one value of the header"),
    (HEADERS, {"x-meshca-attempt": ["1" * 31]}, "32 hex digits"),
    (HEADERS, {"x-meshca-attempt": ["A" * 32]}, "32 hex digits"),
    (HEADERS, {"x-meshca-attempt": ["1" * 32 + "\n"]}, "32 hex digits"),
    (HEADERS, {"x-meshca-attempt": [7]}, "32 hex digits"),
    (HEADERS, "x", "headers as an object"),
    ("request", "x", "a field request"),
    ("request", None, "a field request"),
    ("type", "panic", "type request or response"),
    ("type", [], "type request or response"),
    ("type", None, "type request or response"),
    ("time", "2026-11-28T22:47:38", "a time with its zone"),
    ("time", "yesterday", "a time such as"),
    ("time", 7, "a time such as"),
    ("time", None, "a time such as"),
    (f"{DATA}.serial_number", "01:8x", "a serial number in hex"),
    (f"{DATA}.serial_number", ":", "a serial number in hex"),
    (f"{DATA}.serial_number", "01" * 33, "a serial number in hex"),
    (f"{DATA}.certificate", "no certificate", "PEM or base64"),
    (f"{DATA}.certificate", "AAAA!AAAA", "PEM or base64"),
    (f"{DATA}.certificate", "\N{EURO SIGN}", "PEM or base64"),
]


@pytest.mark.parametrize(("path", "value", "reason"), DAMAGED)
def test_a_damaged_line_is_told_and_the_rest_is_read(
    path: str, value: object, reason: str, tmp_path: Path
) -> None:
    line = changed_line(Real.ISSUED, path, value)
    calls, (complaint,) = read_lines(tmp_path, line, *real_lines(Real.LOST))
    assert complaint.startswith(f"{tmp_path / 'audit.log'}:1: ")
    assert reason in complaint
    assert [call.attempt for call in calls] == [Real.LOST.attempt] * 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json\n", "this is not JSON"),
        (b"\n", "this is not JSON"),
        (b'{"type":"request"\n', "this is not JSON"),
        (b'{"type":"\xff"}\n', "this is not JSON"),
        (b"[]\n", "a JSON object"),
        (b"7\n", "a JSON object"),
        (b"[" * 100_000 + b"\n", ""),
        (b'{"type":' + b"9" * 10_000 + b"}\n", "this is not JSON"),
    ],
)
def test_a_line_that_is_no_entry_is_told(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    calls, (complaint,) = read_lines(tmp_path, line, *real_lines(Real.LOST))
    assert complaint.startswith(f"{tmp_path / 'audit.log'}:1: ")
    assert reason in complaint
    assert len(calls) == 2


def test_a_line_that_is_cut_off_is_told(tmp_path: Path) -> None:
    asked, answered = real_lines(Real.ISSUED)
    for end in (-1, -2, -500):
        calls, complaints = read_lines(tmp_path, asked, answered[:end])
        assert [call.step for call in calls] == [Step.ASKED]
        assert complaints == [f"{tmp_path / 'audit.log'}:2: the line is cut off"]


def test_a_line_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_audit, "_LONGEST", 4096)
    long = '{"type": "' + "x" * 10_000 + '"}\n'
    calls, complaints = read_lines(tmp_path, long, *real_lines(Real.LOST))
    assert complaints == [f"{tmp_path / 'audit.log'}:1: the line is cut off"]
    assert [call.line for call in calls] == [2, 3]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("request.path", "auth/token/lookup-self"),
        ("request.path", "pki/issuer/design/json"),
        ("request.path", None),
        (HEADERS, None),
        (HEADERS, {}),
        (HEADERS, {"x-request-id": ["1" * 32]}),
    ],
)
def test_a_line_of_another_call_is_left_out(
    path: str, value: object, tmp_path: Path
) -> None:
    line = changed_line(Real.ISSUED, path, value)
    assert read_lines(tmp_path, line) == ([], [])
    assert read_lines(tmp_path, *real_lines(Real.LOOKUP)) == ([], [])


@pytest.mark.parametrize(
    ("path", "value", "step"),
    [
        (DATA, {}, Step.UNCLEAR),
        (DATA, None, Step.UNCLEAR),
        (DATA, "hmac-sha256:00", Step.UNCLEAR),
        ("response", None, Step.UNCLEAR),
        ("response", {"wrap_info": {"ttl": 60}}, Step.UNCLEAR),
        ("response", {"wrap_info": {}, "data": {"error": "x"}}, Step.REFUSED),
        ("response", {"wrap_info": {"ttl": 1}, "data": {"error": "x"}}, Step.UNCLEAR),
        (DATA, {"error": "hmac-sha256:00"}, Step.REFUSED),
        (DATA, {"error": "no such role"}, Step.REFUSED),
        (DATA, {"batch_results": [{"error": "hmac-sha256:00"}]}, Step.UNCLEAR),
        (DATA, {"batch_results": [{}, {"signature": "x"}]}, Step.ISSUED),
        (DATA, {"error": "x", "certificate": "hmac-sha256:00"}, Step.ISSUED),
        (DATA, {"error": "x", "signature": "hmac-sha256:00"}, Step.ISSUED),
        (DATA, {"error": "x", "serial_number": "0a"}, Step.ISSUED),
    ],
)
def test_an_answer_is_no_refusal_unless_it_is_an_error_alone(
    path: str, value: object, step: Step, tmp_path: Path
) -> None:
    line = changed_line(Real.ISSUED, path, value)
    (call,), complaints = read_lines(tmp_path, line)
    assert (call.step, complaints) == (step, [])


@pytest.mark.parametrize(
    "value", [-1, 1 << 40, 1.5, True, "1795909658", 10**400, float("inf")]
)
def test_a_validity_that_no_row_can_hold_is_not_known(
    value: object, tmp_path: Path
) -> None:
    line = changed_line(Real.ISSUED, f"{DATA}.expiration", value)
    (call,), complaints = read_lines(tmp_path, line)
    assert (call.not_after, complaints) == (0, [])


def test_text_of_the_log_does_not_control_a_terminal(tmp_path: Path) -> None:
    line = changed_line(Real.NO_ISSUER, "error", "\x1b[2J\x00\ud800" + "x" * 1000)
    (call,), _ = read_lines(tmp_path, line)
    assert call.reason.isprintable()
    assert len(call.reason) == 300


def test_a_hashed_attempt_is_counted(tmp_path: Path) -> None:
    value = {"x-meshca-attempt": ["hmac-sha256:" + "0" * 64]}
    path = tmp_path / "audit.log"
    path.write_text(changed_line(Real.ISSUED, HEADERS, value))
    logs = AuditLogs(pytest.fail)
    assert list(logs.read(path)) == []
    assert (logs.hashed, logs.lines) == (1, 1)


def test_a_packed_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.log.1.gz"
    path.write_bytes(gzip.compress(VECTOR.read_bytes()))
    plain, _ = read(VECTOR)
    calls, (complaint, again) = read(path)
    assert [call.attempt for call in calls] == [call.attempt for call in plain]
    assert "one value of the header" in complaint
    assert "one value of the header" in again


def test_a_packed_log_that_ends_too_early_is_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.log.gz"
    content = "".join(real_lines(Real.ISSUED) * 200)
    path.write_bytes(gzip.compress(content.encode())[:-20])
    calls, (complaint,) = read(path)
    assert len(calls) > 100
    assert complaint.startswith(f"{path}:{len(calls) + 1}: cannot be read: ")
    path.write_bytes(b"not packed")
    calls, (complaint,) = read(path)
    assert (calls, complaint.startswith(f"{path}:1: cannot be read: ")) == ([], True)


def test_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"audit\.log: cannot be read: No such file"):
        read(tmp_path / "audit.log")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
PLACES = st.sampled_from(
    (
        *("type", "time", "error", "auth", "request", "request.path", "request.id"),
        *(HEADERS, f"{HEADERS}.x-meshca-attempt", "response", DATA),
        *(f"{DATA}.{name}" for name in ("certificate", "serial_number", "error")),
        *(f"{DATA}.{name}" for name in ("not_before", "expiration", "signature")),
        *(f"{DATA}.batch_results", "response.wrap_info"),
    )
)


@settings(max_examples=300, deadline=None)
@given(place=PLACES, value=JSON)
def test_no_value_of_a_line_ends_the_reading(
    place: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = changed_line(Real.ISSUED, place, {} if value is None else value)
    require_read(tmp_path_factory.mktemp("log"), line.encode())


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), at=st.integers(0, 1500), cut=st.integers(0, 99))
def test_no_bytes_of_a_line_end_the_reading(
    content: bytes, at: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = real_lines(Real.ISSUED)[1].encode()
    require_read(tmp_path_factory.mktemp("log"), line[:at] + content + line[at + cut :])


def require_read(folder: Path, line: bytes) -> None:
    # Each line is told, or has what a row of the ledger can hold; the next one is read.
    calls, complaints = read_lines(
        folder, line, b"" if line.endswith(b"\n") else b"\n", *real_lines(Real.LOST)
    )
    assert [call.attempt for call in calls][-2:] == [Real.LOST.attempt] * 2
    for call in calls:
        assert call.attempt == call.attempt.lower()
        assert len(call.attempt) == 32
        assert len(call.serial) <= 64
        assert 0 <= call.not_after < 1 << 40
        assert (call.path + call.reason + call.request).isprintable()
    assert all(complaint.isprintable() for complaint in complaints)
