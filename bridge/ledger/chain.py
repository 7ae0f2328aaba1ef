"""The chain: a row as one line of bytes, joined to the line before by its hash.

A line is canonical JSON: sorted keys, no blanks, UTF-8 with only the escapes that JSON
demands (RFC 8785, for strings and integers). Each kind of row has a template, made
once, because the signing path pays for every line.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from json.encoder import encode_basestring
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, get_args

from bridge.errors import LedgerError
from bridge.ledger.events import (
    COLUMNS,
    READABLE_FORMATS,
    Ending,
    Event,
    Intent,
    Opened,
)
from bridge.system.clock import Clock

GENESIS = "0" * 64
"""`prev` of a writer's first row."""

_CHARACTERS, _BYTES = 500, 600
"""The longest text that may come from a peer, and how long it may be as JSON."""

CHAIN_RULE = "ledger.chain"
"""The rule of a journal that does not verify."""
FORMAT_RULE = "ledger.format"
"""The rule of a segment that a newer version wrote."""

# JSON escapes control characters, so no finished row has this one. It marks the two
# values that only the chain knows.
_HOLE = "\0"


class Head(NamedTuple):
    """The last row of a writer's chain."""

    segment: int
    seq: int
    """The number of the row; -1 before the first."""
    digest: str
    """SHA-256 of the line without its newline, 64 hex digits."""


class Pending:
    """An encoded row that is not yet in the chain and not yet on disk."""

    __slots__ = ("done", "leads", "parts", "wakeup")

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts
        self.done = False
        """Set once the row is on disk."""
        self.leads = False
        """Set when the caller that waits for the row is the next leader."""
        self.wakeup: Lock | None = None
        """The lock that a waiting caller sleeps on; released when one of the two is
        set, or when the row cannot be written."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a journal that was read."""

    seq: int
    prev: str
    at: int
    kind: str
    digest: str
    line: bytes
    """Without its newline."""
    values: Mapping[str, Any]
    """All fields, with `seq`, `prev` and `at`."""


def canonical(values: Mapping[str, object]) -> bytes:
    """Return `values` as canonical JSON.

    A lone surrogate, which UTF-8 cannot hold, becomes a question mark.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def bounded(text: str) -> str:
    """Return the start of a text that may come from a peer, for a field of a row.

    It has at most 500 characters, and at most 600 bytes as JSON: there, a control
    character takes six, and one beyond ASCII up to four.
    """
    text = text[:_CHARACTERS]
    escaped = encode_basestring(text).encode("utf-8", "replace")
    if len(escaped) <= _BYTES:
        return text
    size, kept = 2, 0
    for char in text:
        size += len(encode_basestring(char).encode("utf-8", "replace")) - 2
        if size > _BYTES:
            break
        kept += 1
    return text[:kept]


def microseconds(clock: Clock) -> int:
    """Return the time as microseconds since 1970-01-01 UTC."""
    return round(clock().timestamp() * 1e6)


def encode(event: Event, at: int) -> Pending:
    """Encode `event` without its number and the hash of the row before."""
    template, values_of, encoders = _SHAPES[type(event)]
    values = zip(encoders, values_of(event), strict=True)
    text = template % (at, *[encoder(value) for encoder, value in values])
    return Pending(text.split(_HOLE))


def link(row: Pending, prev: str, seq: int) -> bytes:
    """Return the finished line of `row`, without a newline."""
    first, second, third = row.parts
    return f"{first}{prev}{second}{seq}{third}".encode("utf-8", "replace")


def parse(line: bytes) -> Row:
    """Read one line.

    Raises:
        ValueError: The line is not a row.
    """
    try:
        values = json.loads(line.decode("utf-8"))
        seq, prev, at, kind = (values[name] for name in ("seq", "prev", "at", "kind"))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a row") from error
    if not (type(seq) is type(at) is int and type(prev) is type(kind) is str):
        raise ValueError("not a row")
    if type(values.get("attempt", "")) is not str:
        raise ValueError("not a row")
    return Row(seq, prev, at, kind, sha256(line).hexdigest(), line, values)


def read_rows(path: Path, *, live: bool = False) -> Iterator[Row]:
    """Yield the rows of one segment, in order; the chain is not checked.

    Args:
        path: The segment's file.
        live: A writer may have the file open: an unfinished last line ends the reading
            and is no error.

    Raises:
        LedgerError: A line is not a row, or the last one is torn. The message names
            file and line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                if live:
                    return
                raise broken(path, number, "the entry is torn")
            try:
                yield parse(line[:-1])
            except ValueError:
                raise broken(path, number, "this is not a row") from None


def broken(path: Path, number: int, reason: str) -> LedgerError:
    """Build the error of a journal that does not verify."""
    return LedgerError(f"{path}:{number}: {reason}", rule=CHAIN_RULE)


class Chain:
    """The chain of one writer, followed row by row."""

    def __init__(self, writer: str, head: Head | None = None) -> None:
        self.writer = writer
        self.head = head or Head(0, -1, GENESIS)
        self._starts = False

    def enter(self, segment: int) -> None:
        """Continue with the first row of a segment."""
        self.head = self.head._replace(segment=segment)
        self._starts = True

    def problem(self, row: Row) -> str:
        """Advance to `row` and return nothing, or return why `row` is not the next.

        Raises:
            LedgerError: The row opens a segment of a format that this version cannot
                read (rule `ledger.format`).
        """
        if row.seq != self.head.seq + 1:
            return f"expected seq {self.head.seq + 1}, found {row.seq}"
        if row.prev != self.head.digest:
            return "the chain breaks here: prev is not the hash of the row before"
        if self._starts and (
            row.kind != Opened.kind
            or row.values.get("writer") != self.writer
            or row.values.get("segment") != self.head.segment
        ):
            return f"expected the opening of segment {self.head.segment}"
        if self._starts:
            _require_readable(row, self.writer)
        self._starts = False
        self.head = Head(self.head.segment, row.seq, row.digest)
        return ""


def _require_readable(opened: Row, writer: str) -> None:
    # A newer version may have written it. What its rows say must not be guessed.
    found = opened.values.get("format")
    if found not in READABLE_FORMATS:
        known = " and ".join(map(str, READABLE_FORMATS))
        raise LedgerError(
            f"the journal of {writer}: segment {opened.values.get('segment')} has rows "
            f"of format {found}, and this version of meshca-bridge reads the formats "
            f"{known}. Start version {opened.values.get('version')}, which wrote it, "
            "or a newer one",
            rule=FORMAT_RULE,
        )


def encode_list(value: Sequence[str]) -> str:
    """Return a list of strings as canonical JSON."""
    return f"[{','.join([encode_basestring(item) for item in value])}]"


def _mapping(value: dict[str, int]) -> str:
    items = [f"{encode_basestring(key)}:{value[key]:d}" for key in sorted(value)]
    return f"{{{','.join(items)}}}"


_ENCODERS: Mapping[object, Callable[[Any], str]] = {
    str: encode_basestring,
    int: int.__repr__,
    list[str]: encode_list,
    dict[str, int]: _mapping,
}

_Shape = tuple[
    str, Callable[[Event], tuple[Any, ...]], tuple[Callable[[Any], str], ...]
]


def _shape(event: type[Event]) -> _Shape:
    types: dict[str, object] = {field.name: field.type for field in fields(event)}
    types["kind"] = str
    own = sorted(types)
    places = dict.fromkeys(own, "%s")
    places |= {"at": "%d", "prev": f'"{_HOLE}"', "seq": _HOLE}
    template = ",".join(f'"{name}":{places[name]}' for name in sorted(places))
    encoders = tuple(_ENCODERS[types[name]] for name in own)
    return f"{{{template}}}", attrgetter(*own), encoders


_SHAPES: Mapping[type[Event], _Shape] = {
    event: _shape(event) for event in get_args(Event)
}


_TYPES = {field.name: field.type for kind in (Intent, Ending) for field in fields(kind)}
_TEXTS = tuple(name for name in COLUMNS if _TYPES.get(name) is str)
_NUMBERS = tuple(name for name in COLUMNS if _TYPES.get(name) is int)
_LISTS = tuple(name for name in COLUMNS if _TYPES.get(name) == list[str])


def entry(writer: str, row: Row) -> Mapping[str, Any]:
    """Return `row` by the columns of the archive.

    A text that the row does not have is empty there, and a number is null.
    """
    values = row.values
    columns: dict[str, Any] = {name: values.get(name, "") for name in _TEXTS}
    columns |= {name: values.get(name) for name in _NUMBERS}
    columns |= {name: encode_list(values.get(name, ())) for name in _LISTS}
    columns["writer"] = writer
    columns["seq"] = row.seq
    columns["at"] = row.at
    columns["body"] = row.line.decode("utf-8")
    columns["hash"] = row.digest
    return columns
