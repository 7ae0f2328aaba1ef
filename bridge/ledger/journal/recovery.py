"""Recovery: a start verifies the end of a journal and repairs what a crash left."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import LedgerError
from bridge.ledger.chain import (
    CHAIN_RULE,
    Chain,
    Head,
    Row,
    broken,
    parse,
    read_rows,
)
from bridge.ledger.events import (
    SHARED_FIELDS,
    Closed,
    Ending,
    Intent,
    Opened,
    Outcome,
    Published,
)
from bridge.ledger.journal.segments import (
    cut_error,
    require_no_ahead,
    rewrite,
    segment_path,
    segments,
    set_aside,
    unusable,
    way_out,
)
from bridge.system.files import lines_backwards

RESTART_RULE = "ledger.restart"
"""The rule of the outcome that a restart gives to an attempt that had none."""

_SEQ = re.compile(rb'"seq":(\d+)')
_PUBLISHED = b'"kind":"published"'
OF_A_START = frozenset({Opened.kind, Closed.kind})
"""The kinds of rows that a journal may have before its first head is published."""
_REACH_MICROSECONDS = 60_000_000
"""The longest time that an attempt can take. Its deadline is some seconds."""
_OUTCOMES = frozenset(Outcome)


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a journal, and the outcomes that it lacks."""

    head: Head
    unknown: list[Ending]
    """An outcome for each intent that has none."""


def recover(folder: Path, writer: str, published: Head | None = None) -> Tail:
    """Verify the end of a journal and move a torn tail aside.

    The last segment is on disk before the return, because the next one continues its
    chain.

    The last segment is verified row by row, and the ones before by their first and
    last rows. What is not checked here, `bridge.ledger.verify.verify` checks.

    Args:
        folder: The writer's folder, locked.
        writer: The writer's name.
        published: The newest head of this writer that was published.

    Raises:
        LedgerError: The chain is broken, or it ends before `published`.
    """
    try:
        require_no_ahead(folder)
        files = segments(folder)
        move_torn_aside(folder, published)
        ends = [end for number, path in files if (end := _ends(number, path))]
        newest = _Attempts()
        head = _linked(ends, writer, newest).head
        if published is not None:
            _require_contains(folder, head, published)
        for _, path, _, last in ends[-1:]:
            if last.kind != Closed.kind:
                rewrite(path)
        left = _open_intents(ends, newest)
        # A crash may leave a last segment without a row, and its number is taken.
        head = head._replace(segment=files[-1][0] if files else 0)
        return Tail(head, [_unknown(intent) for intent in left.values()])
    except OSError as error:
        raise unusable(folder, error) from error
    except LedgerError as error:
        if error.rule != CHAIN_RULE:
            raise
        raise LedgerError(
            f"{error}. Put the journal back as it was; {way_out(writer)}",
            rule=CHAIN_RULE,
        ) from error


def require_new(folder: Path, sink: Path) -> None:
    """Raise if a journal that has no published head holds an intent or an outcome.

    A server publishes its first head before its first intent. So the heads of such a
    journal are lost.

    Raises:
        LedgerError: The journal holds such rows, or it cannot be read.
    """
    if not folder.is_dir():
        return
    try:
        for _, path in segments(folder):
            for row in read_rows(path, live=True):
                if row.kind not in OF_A_START:
                    raise LedgerError(
                        f"{folder}: the journal has entries, and {sink} has no head of "
                        "it: the file of heads was deleted or replaced, or another one "
                        f"is configured. Put it back; {way_out(folder.name)}",
                        rule="ledger.heads",
                    )
    except OSError as error:
        raise unusable(folder, error) from error


def last_published(folder: Path, after: int) -> Published | None:
    """Return the newest row `published` of a journal, or None.

    Args:
        folder: The writer's folder.
        after: Only rows behind this one count. What earlier ones say, the newest head
            in the sink says as well.

    Raises:
        LedgerError: The journal cannot be read.
    """
    try:
        for _, path in reversed(segments(folder) if folder.is_dir() else []):
            for _, line in lines_backwards(path):
                if not (found := _SEQ.search(line)):
                    continue
                if int(found[1]) <= after:
                    return None
                if _PUBLISHED in line and (row := _row(line)) is not None:
                    return published_of(row)
    except OSError as error:
        raise unusable(folder, error) from error
    return None


def published_of(row: Row) -> Published:
    """Return what a row `published` says; nothing in a sink fits what it lacks."""
    line, size = (row.values.get(name) for name in ("line", "size"))
    return Published(
        line=line if isinstance(line, int) else -1,
        size=size if isinstance(size, int) else -1,
        sha256=str(row.values.get("sha256", "")),
    )


def move_torn_aside(folder: Path, published: Head | None) -> None:
    """Move what follows the last row of the last segment into a file `.torn` beside it.

    A caller is told of a row after the whole row is on disk. After the last row a crash
    may leave any bytes: a part of a row, NUL bytes, newlines among them. They are moved
    if no row follows them, and if no head of a row among them was published. The caller
    checks the rows before them.

    Raises:
        LedgerError: A head of a row among these bytes was published.
        OSError: The disk fails.
    """
    files = [path for _, path in segments(folder)]
    if not files:
        return
    path = files[-1]
    size, last = readable(path)
    if size == path.stat().st_size:
        return
    if published is not None:
        newest = last.seq if last else _last_seq(files[:-1])
        if newest < published.seq:
            raise cut_error(folder, newest, published)
    set_aside(path, size)


def readable(path: Path) -> tuple[int, Row | None]:
    """Return the byte offset at which the last row of a segment ends, and this row."""
    # A line without its newline is no whole row.
    for offset, line in lines_backwards(path):
        if (row := _row(line)) is not None:
            return offset + len(line) + 1, row
    return 0, None


_End = tuple[int, Path, Row, Row]
"""Number, file, first and last row of a segment."""


class _Attempts:
    # The attempts that the rows of one segment open and end.

    def __init__(self) -> None:
        self.opened: dict[str, Mapping[str, Any]] = {}
        self.ended: set[str] = set()

    def note(self, row: Row) -> None:
        if row.kind == Intent.kind:
            self.opened[row.values.get("attempt", "")] = row.values
        elif row.kind in _OUTCOMES:
            self.ended.add(row.values.get("attempt", ""))


def _ends(number: int, path: Path) -> _End | None:
    size = path.stat().st_size
    if not size:
        return None
    with path.open("rb") as file:
        first = _row(file.readline().removesuffix(b"\n"))
    end, last = readable(path)
    if first is None or last is None or end < size:
        raise broken(path, 1, "its first or its last line is not a row")
    return number, path, first, last


def _linked(ends: list[_End], writer: str, newest: _Attempts) -> Chain:
    chain = Chain(writer)
    for number, path, first, last in ends[:-1]:
        chain.enter(number)
        if problem := chain.problem(first):
            raise broken(path, 1, problem)
        chain.head = Head(number, last.seq, last.digest)
    for number, path, _, _ in ends[-1:]:
        chain.enter(number)
        for line, row in enumerate(read_rows(path), 1):
            if problem := chain.problem(row):
                raise broken(path, line, problem)
            newest.note(row)
    return chain


def _require_contains(folder: Path, head: Head, published: Head) -> None:
    if published.seq < 0:
        return  # an operator accepted the empty journal
    found = head.digest if head.seq == published.seq else None
    path = segment_path(folder, published.segment)
    if found is None and published.seq < head.seq and path.exists():
        rows = (row.digest for row in read_rows(path) if row.seq == published.seq)
        found = next(rows, None)
    if found != published.digest:
        raise cut_error(folder, head.seq, published)


def _open_intents(ends: list[_End], newest: _Attempts) -> dict[str, Mapping[str, Any]]:
    # Backwards from the newest segment, until all earlier attempts have their outcomes:
    # each start gives an outcome to every attempt that the last run left open.
    left: dict[str, Mapping[str, Any]] = {}
    over: set[str] = set()
    for path in _unsettled(ends):
        attempts = newest
        if path != ends[-1][1]:
            attempts = _Attempts()
            for row in read_rows(path):
                attempts.note(row)
        over |= attempts.ended
        opened = attempts.opened
        left = {key: opened[key] for key in opened if key not in over} | left
    return left


def _unknown(intent: Mapping[str, Any]) -> Ending:
    return Ending(
        kind=Outcome.UNKNOWN,
        rule=RESTART_RULE,
        detail="the process ended before the outcome was on record",
        **{name: str(intent.get(name, "")) for name in SHARED_FIELDS},
    )


def _unsettled(ends: list[_End]) -> Iterator[Path]:
    newest = 0
    for index in range(len(ends) - 1, -1, -1):
        _, path, _, last = ends[index]
        newest = newest or last.at
        yield path
        if not index:
            return
        before = ends[index - 1][3]
        if before.kind == Closed.kind and before.values.get("reason") == "rollover":
            if before.at < newest - _REACH_MICROSECONDS:
                return
        elif _start_was_complete(path):
            return
        else:
            newest = before.at


def _start_was_complete(path: Path) -> bool:
    # A start writes its first row and all outcomes of the last run in one write. A row
    # of any other kind shows that this write was complete.
    return any(
        row.kind != Opened.kind and row.values.get("rule") != RESTART_RULE
        for row in read_rows(path)
    )


def _last_seq(files: list[Path]) -> int:
    for path in reversed(files):
        _, last = readable(path)
        if last is not None:
            return last.seq
    return -1


def _row(line: bytes) -> Row | None:
    try:
        return parse(line)
    except ValueError:
        return None
