"""Since when a caller renews by certificate alone, by the rows of the ledger.

Each intent has the time at which a token last proved its caller. A renewal by
certificate takes the time over from the row of the certificate that was shown.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.ledger.events import Intent, Outcome, Purpose

_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCertificate:
    """What is looked up of a client certificate. All of it must fit the rows."""

    serial: int
    certificate_sha256: str
    key_sha256: str
    """SHA-256 of the SubjectPublicKeyInfo in DER."""
    caller: str
    """The SPIFFE ID."""


def proven_at(entries: Iterable[_Row], shown: ShownCertificate) -> int | None:
    """Return when a token last proved the caller that got this certificate.

    Args:
        entries: All rows of all attempts with the serial number, by the columns of the
            archive.
        shown: The certificate.

    Returns:
        Seconds since 1970-01-01 UTC; 0 where that is not on record, as for a renewal in
        a journal of an earlier version; None if no workload got this certificate.
    """
    attempts: dict[str, list[_Row]] = defaultdict(list)
    for one in entries:
        attempts[one["attempt"]].append(one)
    found = [
        _proven_at(intent)
        for rows in attempts.values()
        for intent in rows
        if intent["kind"] == Intent.kind and _is_of(intent, rows, shown)
    ]
    return max(found, default=None)


def _is_of(intent: _Row, rows: Iterable[_Row], shown: ShownCertificate) -> bool:
    found = intent["purpose"], intent["caller"], intent["key_sha256"]
    wanted = Purpose.WORKLOAD, shown.caller, shown.key_sha256
    return found == wanted and all(_may_be(row, shown) for row in rows)


def _may_be(row: _Row, shown: ShownCertificate) -> bool:
    # After a crash the outcome of a certificate that was released may be `unknown`,
    # without its digest. A certificate that came back and was not released has one.
    digest = row["certificate_sha256"]
    if not digest:
        return row["kind"] not in {Outcome.REFUSED, Outcome.FAILED}
    return (row["kind"], digest) == (Outcome.ISSUED, shown.certificate_sha256)


def _proven_at(intent: _Row) -> int:
    values = json.loads(intent["body"])
    if "proven_at" in values:
        return int(values["proven_at"])
    # A row of an earlier version.
    is_token = values.get("credential") == "token"
    return int(intent["at"]) // 1_000_000 if is_token else 0
