"""What `meshca ledger` is asked for: an odd value is refused.

The answer to a question that is mistyped would be `nothing found`, and read as `it was
never issued`.
"""

import re
from datetime import UTC, datetime, timedelta

import typer

from bridge.ledger.events import (
    EARLIER_KINDS,
    Accepted,
    Closed,
    Intent,
    Opened,
    Outcome,
    Resumed,
    Summary,
)

KINDS = (
    *(row.kind for row in (Intent, Summary, Opened, Closed, Resumed, Accepted)),
    *(outcome.value for outcome in Outcome),
    *EARLIER_KINDS,
)
"""Kinds of the ledger's entries."""

_SPAN = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DIGITS = re.compile(r"[0-9a-f]+")
_DIGEST_DIGITS = 64


def serial(value: str) -> str:
    """Return a serial number in hex digits, as tools write it or empty."""
    digits = _plain(value).removeprefix("0x")
    if value and not _DIGITS.fullmatch(digits):
        raise _bad("--serial", "hex digits, such as 0a:1b or 0x0a1b", value)
    return digits


def digest(value: str, option: str) -> str:
    """Return a SHA-256 in hex digits, as tools write it or empty."""
    digits = _plain(value)
    if value and not (len(digits) == _DIGEST_DIGITS and _DIGITS.fullmatch(digits)):
        raise _bad(option, "a SHA-256 in 64 hex digits", value)
    return digits


def kind(value: str) -> str:
    """Return the kind of an entry, or empty."""
    if value and value not in KINDS:
        raise _bad("--kind", f"one of {', '.join(KINDS)}", value)
    return value


def moment(value: str, option: str) -> int | None:
    """Return a time or a span before now in microseconds since 1970-01-01 UTC."""
    if not value:
        return None
    try:
        if match := _SPAN.fullmatch(value):
            found = datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            found = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        expected = "a time such as 2026-11-23T08:00, or a span such as 24h"
        raise _bad(option, expected, value) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return round(found.timestamp() * 1e6)


def _plain(value: str) -> str:
    return value.replace(":", "").strip().lower()


def _bad(option: str, expected: str, found: str) -> typer.BadParameter:
    return typer.BadParameter(f"{option}: expected {expected} (found {found!r})")
