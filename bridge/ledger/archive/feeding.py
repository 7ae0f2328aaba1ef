"""Carries a writer's rows from its journal into the archive: which, when, how many.

Done by a thread (`bridge.ledger.archive.feeder`) or by a process of its own
(`bridge.ledger.archive.feedmain`). Imports nothing that takes long.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

from bridge.errors import LedgerError
from bridge.ledger.archive.feedlock import RETRY_RULE, FeedLock
from bridge.ledger.chain import Chain, Head, entry, parse
from bridge.ledger.journal.segments import segment_path, segments

if TYPE_CHECKING:
    # It imports SQLAlchemy, which the start of the server need not wait for.
    from bridge.ledger.archive.archive import Archive, Position

_T = TypeVar("_T")
_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_BATCH_ROWS = 1000
_ROWS_AT_ONCE = 100
"""That are read without a rest."""
_LATE_ROWS = 1500
"""So many are too many to take one's time."""
_TOGETHER_SECONDS = 0.5
"""Under load, rows wait this long for others: digests are random, so that a small batch
writes nearly as many pages of the indexes as a large one."""


class Report(NamedTuple):
    """What feeding tells its writer, between one batch and the next."""

    seq: int | None
    """Of the last row that the archive has; None while the archive is not open."""
    trouble: str = ""
    """Why the last try did not succeed; empty when it did."""
    pause_seconds: float = 0.0
    """How long there is nothing to do."""


class Goal(NamedTuple):
    """What the writer answers: how far to feed, and until when."""

    head: Head
    """Rows after it may yet be lost, and the archive must not hold a row that the
    journal does not."""
    seconds_left: float | None = None
    """Until feeding has to end; None while nobody wants that."""


Exchange = Callable[[Report], Goal]
"""Tells, waits for as long as there is nothing to do, and hears."""


class Pace(Protocol):
    """How fast the work is done, beside threads that sign on the same core."""

    def begin(self, *, is_late: bool) -> None:
        """Begin a batch, which is late or can take its time."""

    def do(self, step: Callable[[], _T]) -> _T:
        """Do a piece of the work, of a few milliseconds, and return what it does."""

    def rest(self) -> None:
        """Let others go first; called between two pieces."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When rows that have come are enough, and when they are too many."""

    together_rows: int
    together_seconds: float
    late_rows: int

    @classmethod
    def below(cls, entries: int, seconds: float) -> Self:
        """Return what keeps well below the rows and seconds where issuing stops."""
        return cls(
            together_rows=min(_BATCH_ROWS, entries // 4),
            together_seconds=min(_TOGETHER_SECONDS, seconds / 4),
            late_rows=min(_LATE_ROWS, entries // 4),
        )


class Feeding:
    """Feeds one writer. It ends for good at the first row that does not verify.

    Args:
        folder: The writer's folder; its name is the writer's.
        exchange: Asks the writer how far to feed.
        open_archive: Called by `run`, again when the archive was replaced.
        pace: How fast to go.
        bounds: How many rows wait for others.
    """

    def __init__(
        self,
        folder: Path,
        exchange: Exchange,
        open_archive: "Callable[[], Archive]",
        pace: Pace,
        bounds: Bounds,
    ) -> None:
        self._folder = folder
        self._exchange = exchange
        self._open_archive = open_archive
        self._pace = pace
        self._bounds = bounds
        self._lock = FeedLock(folder)
        self._archive: Archive | None = None
        self._position: Position | None = None
        self._trouble = ""
        self._fed = time.monotonic()
        self._deadline = float("inf")
        self._goal = self._ask(0)
        self._seen = self._goal.head.seq

    def run(self) -> None:
        """Feed until the writer wants an end.

        Raises:
            ConfigError: The archive's URL cannot be used.
            LedgerError: The journal or the archive are not what they should be.
            OSError: The journal cannot be read.
        """
        try:
            while True:
                # Looked at first: what was written before the end is still fed.
                is_stopping = self._is_stopping
                try:
                    self._feed(self._opened())
                    self._trouble = ""
                except LedgerError as error:
                    if error.rule != RETRY_RULE:
                        raise
                    self._trouble = error.detail or str(error)
                if is_stopping and self._has_done():
                    return
                self._ask(_RETRY_SECONDS if self._trouble else _POLL_SECONDS)
        finally:
            if self._archive is not None:
                self._archive.close()
            self._lock.release()

    def report(self, pause_seconds: float = 0.0) -> Report:
        """Return how far it is."""
        seq = None if self._position is None else self._position.head.seq
        return Report(seq, self._trouble, pause_seconds)

    @property
    def _is_stopping(self) -> bool:
        return self._goal.seconds_left is not None

    def _has_done(self) -> bool:
        # Another worker that is ending, too, may have been in the way.
        return not self._trouble or time.monotonic() >= self._deadline

    def _ask(self, pause_seconds: float) -> Goal:
        self._goal = goal = self._exchange(self.report(pause_seconds))
        if goal.seconds_left is not None:
            self._deadline = time.monotonic() + goal.seconds_left
        return goal

    def _opened(self) -> "Archive":
        # Nobody else feeds this writer: before its position is read.
        self._lock.take()
        archive = self._archive
        if archive is not None and archive.moved():
            # Deleted or replaced: what is there now is fed anew.
            self._position = self._archive = None
            archive.close()
            archive = None
        if archive is None:
            self._archive = archive = self._open_archive()
            self._position = archive.position(self._folder.name)
        return archive

    def _feed(self, archive: "Archive") -> None:
        goal, position = self._goal.head, self._position
        if position is None:
            return
        self._require_same(position.head, goal)
        if not self._is_time(goal.seq - position.head.seq, goal.seq):
            return
        while position.head.seq < goal.seq and time.monotonic() < self._deadline:
            behind = self._goal.head.seq - position.head.seq
            is_late = behind > self._bounds.late_rows
            self._pace.begin(is_late=is_late or self._is_stopping)
            after, rows = self._read(position, goal.seq)
            pace = None if is_late else self._pace
            archive.add(self._folder.name, position, after, rows, pace)
            self._position = position = after
            if position.head.seq < goal.seq:
                self._ask(0)

    def _is_time(self, rows: int, tip: int) -> bool:
        is_quiet, self._seen = tip == self._seen, tip
        since = time.monotonic() - self._fed
        if not (
            is_quiet
            or rows >= self._bounds.together_rows
            or since >= self._bounds.together_seconds
            or self._is_stopping
        ):
            return False
        self._fed = time.monotonic()
        return True

    def _require_same(self, read: Head, goal: Head) -> None:
        if read.seq > goal.seq or (read.seq == goal.seq and read != goal):
            raise LedgerError(
                f"{self._folder}: the archive holds row {read.seq} of this writer, and "
                f"the journal ends at row {goal.seq} or holds another: one of them was "
                "restored from an older copy",
                rule="ledger.cut",
            )

    def _read(
        self, position: "Position", last: int
    ) -> "tuple[Position, Sequence[Mapping[str, Any]]]":
        # A batch of rows after `position`, up to row `last`, all of one segment.
        count = min(_BATCH_ROWS, last - position.head.seq)
        lines = self._pace.do(partial(self._lines, position, count))
        if not lines:
            return self._next_segment(position), []
        batch = _Batch(self._folder, position)
        for at in range(0, len(lines), _ROWS_AT_ONCE):
            piece = lines[at : at + _ROWS_AT_ONCE]
            self._pace.do(partial(batch.take, piece))
            if len(piece) == _ROWS_AT_ONCE:
                self._pace.rest()
        return type(position)(batch.offset, batch.chain.head), batch.rows

    def _lines(self, position: "Position", count: int) -> list[bytes]:
        if not position.head.segment:
            return []
        path = segment_path(self._folder, position.head.segment)
        with path.open("rb") as file:
            file.seek(position.byte_offset)
            # Whole lines only: the rest is being written.
            return [line for line in islice(file, count) if line.endswith(b"\n")]

    def _next_segment(self, position: "Position") -> "Position":
        later = [
            number
            for number, _ in segments(self._folder)
            if number > position.head.segment
        ]
        if not later:
            raise LedgerError(
                f"{self._folder}: the journal ends after row {position.head.seq}, "
                "before what was written",
                rule="ledger.chain",
            )
        return type(position)(0, position.head._replace(segment=later[0]))


def reason_of(error: Exception) -> str:
    """Return why feeding has ended for good."""
    return getattr(error, "detail", "") or str(error)


class _Batch:
    # Rows of one segment, as far as they are read.
    def __init__(self, folder: Path, position: "Position") -> None:
        self._folder = folder
        self._segment = position.head.segment
        self.offset = position.byte_offset
        self.chain = Chain(folder.name, position.head)
        self.rows: list[Mapping[str, Any]] = []
        if not self.offset:
            self.chain.enter(self._segment)

    def take(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            try:
                row = parse(line[:-1])
            except ValueError:
                raise self._broken("this is not a row") from None
            if problem := self.chain.problem(row):
                raise self._broken(problem)
            self.rows.append(entry(self._folder.name, row))
            self.offset += len(line)

    def _broken(self, reason: str) -> LedgerError:
        path = segment_path(self._folder, self._segment)
        return LedgerError(
            f"{path}: at byte {self.offset}: {reason}", rule="ledger.chain"
        )
