"""When a token last proved the caller of a certificate, by its rows."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from bridge.ledger.lineage import ShownCertificate, proven_at

WEB = "spiffe://corp.example/ns/shop/sa/web"
SHOWN = ShownCertificate(
    serial=0xABC, certificate_sha256="c" * 64, key_sha256="d" * 64, caller=WEB
)
TOLD = 1_700_000_000
Rows = list[Mapping[str, Any]]


def intent(*, body: Mapping[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    values = {"credential": "token", "proven_at": TOLD} if body is None else body
    row = {
        "kind": "intent",
        "attempt": "a",
        "purpose": "workload",
        "caller": WEB,
        "key_sha256": SHOWN.key_sha256,
        "certificate_sha256": "",
        "at": 1_600_000_000_000_000,
        "body": json.dumps(values),
    }
    return {**row, **changed}


def ending(kind: str = "issued", digest: str = "", attempt: str = "a") -> Any:
    digest = digest or SHOWN.certificate_sha256
    return {**intent(attempt=attempt), "kind": kind, "certificate_sha256": digest}


def open_ending(kind: str) -> dict[str, Any]:
    return {**intent(), "kind": kind}


def test_the_intent_says_when_a_token_proved_the_caller() -> None:
    assert proven_at([intent(), ending()], SHOWN) == TOLD


def test_an_outcome_that_a_crash_took_with_it_says_nothing_against_it() -> None:
    assert proven_at([intent()], SHOWN) == TOLD
    assert proven_at([intent(), open_ending("unknown")], SHOWN) == TOLD


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"credential": "token"}, 1_600_000_000),
        ({"credential": "certificate"}, 0),
        ({"credential": "certificate", "proven_at": 0}, 0),
        ({"credential": "certificate", "proven_at": 5}, 5),
    ],
)
def test_a_row_of_an_earlier_version_counts_only_with_a_token(
    body: Mapping[str, Any], told: int
) -> None:
    assert proven_at([intent(body=body), ending()], SHOWN) == told


def cases_of_others() -> Iterator[tuple[str, Rows]]:
    yield "no row", []
    yield "an outcome alone", [ending()]
    yield "another key", [intent(key_sha256="e" * 64), ending()]
    yield "another caller", [intent(caller=f"{WEB}2"), ending()]
    yield "of the bridge itself", [intent(purpose="serving"), ending()]
    yield "a probe", [intent(purpose="probe"), ending()]
    yield "another certificate", [intent(), ending(digest="f" * 64)]
    yield "not released", [intent(), ending("unknown")]
    yield "refused", [intent(), open_ending("refused")]
    yield "failed", [intent(), open_ending("failed")]
    yield "the outcome of another attempt", [intent(key_sha256=""), ending(attempt="b")]


@pytest.mark.parametrize(
    "rows", [pytest.param(rows, id=name) for name, rows in cases_of_others()]
)
def test_a_certificate_that_no_row_fits_has_no_lineage(rows: Rows) -> None:
    assert proven_at(rows, SHOWN) is None


def test_of_two_attempts_with_one_serial_the_fitting_one_counts() -> None:
    other = [intent(attempt="b", key_sha256="e" * 64), ending(attempt="b")]
    assert proven_at([*other, intent(), ending()], SHOWN) == TOLD
    assert proven_at(other, replace(SHOWN, key_sha256="0" * 64)) is None
