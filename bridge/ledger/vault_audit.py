"""Reads audit logs of Vault and OpenBao: what was asked, and how it was answered.

A plugin sends the ID of an attempt in the header `X-Meshca-Attempt`. An audit device of
type `file` writes one JSON object a line, and two lines a call: one of type `request`
before the call is done, and one of type `response` before it is answered. A call that a
standby forwards is in the log of the active node alone.
"""

import base64
import binascii
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from bridge.errors import LedgerError
from bridge.system.files import failure_text

HEADER = "x-meshca-attempt"
"""The name of the header as audit logs write it."""
_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_SIGN = re.compile(r"(^|/)(sign|issue)(-[a-z]+)?(/|$)")
"""In the path of a call that signs: `pki/issuer/ID/sign/ROLE`, `transit/sign/KEY`."""
_HASHED = "hmac-sha256:"
_PEM_BEGIN, _PEM_END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_LONGEST = 64 << 20
"""Bytes of a line. Vault takes no request above 32 MiB."""
_SERIAL_BYTES = 32
"""More do not fit the archive; RFC 5280, 4.1.2.2 allows 20."""
_TIMES = range(1 << 40)
_REASON_CHARACTERS = 300


class Step(StrEnum):
    """What a line of the log tells of a call."""

    ASKED = "asked"
    """The call came in."""
    ISSUED = "issued"
    """It was answered with a certificate or a signature."""
    REFUSED = "refused"
    """It was answered with an error, and nothing else."""
    UNCLEAR = "unclear"
    """It was answered, and the line does not show with what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCall:
    """A line of an audit log that tells of a call with an attempt's ID."""

    file: str
    line: int
    """From 1."""
    step: Step
    attempt: str
    """32 hex digits."""
    request: str
    """The ID of the call at the server; the same in both of its lines."""
    at: int
    """When the line was logged, in seconds since 1970-01-01 UTC."""
    path: str
    serial: str = ""
    """Lower-case hex; empty where the log has none, or a hash of it."""
    certificate: bytes = b""
    """In DER; empty where the log has none, or a hash of it. Not verified."""
    not_before: int = 0
    """In seconds since 1970-01-01 UTC, as the line has it; 0 if it does not."""
    not_after: int = 0
    """See `not_before`."""
    reason: str = ""
    """The error, where the log shows it."""

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"


class AuditLogs:
    """Reads audit logs line by line. For one thread.

    Args:
        complain: Gets a sentence with file and line for each line that cannot be read.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self.lines = 0
        """All lines that were read."""
        self.hashed = 0
        """Lines of calls whose attempt is hashed, so that it cannot be read."""

    def read(self, path: Path) -> Iterator[LoggedCall]:
        """Yield the calls of one file that sign and name an attempt.

        A line that cannot be read is complained of, and left out. So is the rest of a
        file that cannot be read any further.

        Args:
            path: The file; one that ends in `.gz` is unpacked.

        Raises:
            LedgerError: The file cannot be opened.
        """
        name = shown(path)
        try:
            file = _opened(path)
        except OSError as error:
            reason = failure_text(Path(name), error)
            raise LedgerError(f"{name}: cannot be read: {reason}") from error
        number = 0
        with file:
            try:
                for number, line in enumerate(_lines(file), 1):
                    if (call := self._try_call(name, number, line)) is not None:
                        yield call
            except (OSError, EOFError, zlib.error) as error:
                reason = shown(error)
                self._complain(f"{name}:{number + 1}: cannot be read: {reason}")

    def _try_call(self, file: str, number: int, line: bytes) -> LoggedCall | None:
        self.lines += 1
        try:
            return self._call(file, number, line)
        except (ValueError, RecursionError) as error:
            self._complain(f"{file}:{number}: {shown(error)}")
            return None

    def _call(self, file: str, number: int, line: bytes) -> LoggedCall | None:
        if not line.endswith(b"\n"):
            # Whoever cut it, or writes it now: it says nothing that can be relied on.
            raise ValueError("the line is cut off")
        entry = _mapping(_parsed(line), "expected a JSON object")
        kind, request = _text(entry.get("type")), entry.get("request")
        if kind not in {"request", "response"}:
            raise ValueError("expected an entry of type request or response")
        request = _mapping(request, "expected a field request")
        path = _text(request.get("path"))
        if not _SIGN.search(path):
            return None
        attempt = self._attempt(request)
        if not attempt:
            return None
        values: dict[str, Any] = {"step": Step.ASKED}
        if kind == "response":
            values = _answer(entry)
        return LoggedCall(
            file=file,
            line=number,
            attempt=attempt,
            request=shown(_text(request.get("id"))),
            at=_seconds(entry.get("time")),
            path=shown(path),
            **values,
        )

    def _attempt(self, request: Mapping[str, Any]) -> str:
        headers = request.get("headers")
        if headers is None:
            return ""  # none of the request's headers is audited
        found = _mapping(headers, "expected headers as an object").get(HEADER)
        if found is None:
            return ""
        if not isinstance(found, list) or len(found) != 1:
            raise ValueError(f"expected one value of the header {HEADER}")
        if _text(found[0]).startswith(_HASHED):
            self.hashed += 1
            return ""
        if not _ATTEMPT.fullmatch(_text(found[0])):
            raise ValueError(f"expected 32 hex digits in the header {HEADER}")
        return str(found[0])


def _answer(entry: Mapping[str, Any]) -> dict[str, Any]:
    # What a line of type `response` tells. Whatever else it says: with a certificate
    # or a signature, something was issued.
    response = entry.get("response")
    data = response.get("data") if isinstance(response, dict) else None
    if not isinstance(data, dict):
        data = {}
    if _has_signature(data):
        return {
            "step": Step.ISSUED,
            "serial": _serial(data.get("serial_number")),
            "certificate": _der(data.get("certificate")),
            "not_before": _whole(data.get("not_before")),
            "not_after": _whole(data.get("expiration")),
        }
    is_wrapped = isinstance(response, dict) and response.get("wrap_info")
    reason, hidden = _text(entry.get("error")), _text(data.get("error"))
    if is_wrapped or not (reason or hidden):
        return {"step": Step.UNCLEAR}
    if not hidden.startswith(_HASHED):
        reason = hidden or reason
    return {"step": Step.REFUSED, "reason": shown(reason)}


def _has_signature(data: Mapping[str, Any]) -> bool:
    results = data.get("batch_results")
    items = [data, *(results if isinstance(results, list) else ())]
    return any(
        bool(item.get(name))
        for item in items
        if isinstance(item, dict)
        for name in ("certificate", "signature", "serial_number")
    )


def _serial(value: object) -> str:
    # As the server writes it: bytes in hex, with colons between them.
    digits = _text(value)
    if not digits or digits.startswith(_HASHED):
        return ""
    try:
        content = bytes.fromhex(digits.replace(":", ""))
    except ValueError:
        content = b""
    if not content or len(content) > _SERIAL_BYTES:
        raise ValueError("expected a serial number in hex")
    return f"{int.from_bytes(content):x}"


def _der(value: object) -> bytes:
    # PEM, PEM with the chain behind, or base64 of the DER, as the call has asked for.
    text = _text(value)
    if not text or text.startswith(_HASHED):
        return b""
    content = text.partition(_PEM_BEGIN)[2].partition(_PEM_END)[0] or text
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected a certificate in PEM or base64") from None


def _seconds(value: object) -> int:
    try:
        found = datetime.fromisoformat(_text(value))
    except ValueError:
        raise ValueError("expected a time such as 2026-11-23T08:00:00Z") from None
    if found.tzinfo is None:
        raise ValueError("expected a time with its zone")
    return int(found.timestamp())


def _whole(value: object) -> int:
    return value if type(value) is int and value in _TIMES else 0


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:  # also of bytes that are not UTF-8
        raise ValueError("this is not JSON") from None


def _mapping(value: object, expected: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(expected)  # noqa: TRY004 - one error for a line
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def shown(value: object) -> str:
    """Return `value` as one line of printable characters, cut when it is long."""
    text = " ".join(str(value).split())[:_REASON_CHARACTERS]
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    # A line that is too long comes without its end, and its rest not at all.
    while line := file.readline(_LONGEST):
        is_cut = not line.endswith(b"\n")
        yield line
        while is_cut and (rest := file.readline(_LONGEST)):
            is_cut = not rest.endswith(b"\n")
