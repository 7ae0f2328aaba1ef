"""Lines of an audit log, made from those that a real OpenBao has written.

`tests/vectors/vault_audit/openbao-2.7.2.jsonl` is the audit log of OpenBao 2.7.2, with
a device of type `file`; only the attempts' IDs were changed, to the numbers of `Real`.
"""

import base64
import json
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

VECTOR = Path(__file__).parents[2] / "vectors/vault_audit/openbao-2.7.2.jsonl"


class Real(IntEnum):
    """The calls of the vector, by the number that is their attempt's ID."""

    HASHED = 1
    """Signed, before the mount was tuned with `audit_non_hmac_response_keys`."""
    ISSUED = 2
    REFUSED_BY_ROLE = 3
    """Status 400."""
    NO_ROLE = 4
    """Status 400."""
    NO_ISSUER = 5
    """Status 500."""
    DENIED = 6
    """Status 403, by a policy."""
    BAD_TOKEN = 7
    """Status 403."""
    NO_MOUNT = 8
    """Status 404."""
    DER = 9
    """Asked for with `format=der`."""
    BUNDLE = 10
    """Asked for with `format=pem_bundle`."""
    TRANSIT = 11
    TRANSIT_NO_VERSION = 12
    """Status 500."""
    TRANSIT_NO_KEY = 13
    """Status 400."""
    TRANSIT_BATCH = 14
    LOOKUP = 15
    """`auth/token/lookup-self`."""
    LOST = 16
    """Signed; the client had closed the connection after it had sent the request."""
    TWO_HEADERS = 17
    """Signed; the header was there twice."""
    KILLED = 18
    """The server was killed before it had answered: there is no line `response`."""

    @property
    def attempt(self) -> str:
        """The ID of the attempt."""
        return f"{self:032x}"


def real_lines(call: Real) -> list[str]:
    """Return the lines of a call: `request` and, but for `KILLED`, `response`."""
    lines = VECTOR.read_text().splitlines(keepends=True)
    return [line for line in lines if f'"{call.attempt}"' in line]


def real_certificate(call: Real = Real.ISSUED) -> x509.Certificate:
    """Return the certificate of a call."""
    entry = json.loads(real_lines(call)[1])
    return x509.load_pem_x509_certificate(
        entry["response"]["data"]["certificate"].encode()
    )


def lines(
    call: Real,
    attempt: str,
    *,
    request: str = "",
    at: datetime | None = None,
    **data: Any,
) -> list[str]:
    """Return the lines of a call for another attempt.

    Args:
        call: The call whose lines are changed.
        attempt: The ID of the attempt.
        request: The ID of the request; by default one that belongs to the attempt.
        at: When both lines were logged; by default as in the vector.
        data: Replaces values of `response.data`.
    """
    changed = []
    for line in real_lines(call):
        entry = json.loads(line)
        entry["request"]["headers"] = {"x-meshca-attempt": [attempt]}
        entry["request"]["id"] = request or f"request-of-{attempt}"
        if at is not None:
            entry["time"] = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if data and entry["type"] == "response":
            entry["response"]["data"] |= data
        changed.append(json.dumps(entry, separators=(",", ":")) + "\n")
    return changed


def issued(leaf: x509.Certificate, attempt: str, **changed: Any) -> list[str]:
    """Return the lines of a call that was answered with `leaf`."""
    digits = f"{leaf.serial_number:040x}"
    values: dict[str, Any] = {
        "certificate": leaf.public_bytes(Encoding.PEM).decode().strip(),
        "serial_number": ":".join(
            digits[at : at + 2] for at in range(0, len(digits), 2)
        ),
        "not_before": int(leaf.not_valid_before_utc.timestamp()),
        "expiration": int(leaf.not_valid_after_utc.timestamp()),
    }
    return lines(Real.ISSUED, attempt, **values | changed)


def base64_der(certificate: x509.Certificate) -> str:
    """Return a certificate as a row of the ledger has it."""
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
