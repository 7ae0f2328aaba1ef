"""The thread that carries a writer's rows from its journal into the archive."""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.clock import Clock
from bridge.config import LagConfig
from bridge.errors import ConfigError, LedgerError
from bridge.ledger.rows import Chain, Head, entry, parse
from bridge.ledger.segments import segment_path, segments

if TYPE_CHECKING:
    # It imports SQLAlchemy, which the start of the server need not wait for.
    from bridge.ledger.archive import Archive, Position

RETRY_RULE = "ledger.archive"
"""The rule of an error of the archive that may be gone at the next try."""

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_LAST_TRIES_SECONDS = 0.05
_BATCH_ROWS = 1000
_LATE_ROWS = 1500
"""So many are too many to take one's time."""
_TOGETHER_SECONDS = 0.5
"""Under load, rows wait this long for others: digests are random, so that a small batch
writes nearly as many pages of the indexes as a large one."""
_ROWS_TO_A_BREATH = 100
_BREATH_SECONDS = 0.016
"""A thread that has a certificate to sign waits for no more than so many rows, and a
batch is spread over most of the time until the next."""
_NICENESS = 3
"""A higher one leaves the thread less than it needs where the core is full."""
_NO_HURRY = LagConfig()


class Feeder:
    """Feeds one writer. It stops for good at the first row that does not verify."""

    def __init__(
        self,
        folder: Path,
        durable: Callable[[], Head],
        open_archive: "Callable[[], Archive]",
        clock: Clock,
        max_lag: LagConfig = _NO_HURRY,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            folder: The writer's folder; its name is the writer's.
            durable: Returns the journal's tip: rows after it may yet be lost, and
                the archive must not hold a row that the journal does not.
            open_archive: Called on the feeder's thread.
            clock: Says how far behind the archive is.
            max_lag: When issuing stops; rows wait for others no longer than a quarter
                of it.
        """
        self._folder = folder
        self._durable = durable
        self._open_archive = open_archive
        self._clock = clock
        self._began = self._seen = durable().seq
        self._fed = time.monotonic()
        self._together_rows = min(_BATCH_ROWS, max_lag.entries // 4)
        self._late_rows = min(_LATE_ROWS, max_lag.entries // 4)
        self._is_late = False
        self._together_seconds = min(_TOGETHER_SECONDS, max_lag.seconds / 4)
        self._position: Position | None = None
        self._caught_up: datetime = clock()
        self._problem = ""
        self._trouble = ""
        self._stop = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(
            target=self._run, name=f"ledger-feed-{folder.name}", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Feed what is left, for no longer than `timeout_seconds`, and end."""
        self._deadline = time.monotonic() + timeout_seconds
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def problem(self) -> str | None:
        """Return why the feeder has stopped for good, or None."""
        return self._problem or None

    def trouble(self) -> str:
        """Return why the last try did not succeed; empty when it did."""
        return self._trouble

    def lag(self) -> tuple[int, float]:
        """Return how many rows, and seconds, the archive is behind the journal.

        While the archive is not open, only the rows since the start are known to be
        missing, and the seconds run.
        """
        behind = self.behind()
        if self._position is not None and not behind:
            return 0, 0.0
        seconds = (self._clock() - self._caught_up).total_seconds()
        return behind, max(seconds, 0.0)

    def behind(self) -> int:
        """Return how many rows the archive is behind, see `lag`."""
        position = self._position
        read = self._began if position is None else position.head.seq
        return max(self._durable().seq - read, 0)

    def _run(self) -> None:
        _step_back()
        archive: Archive | None = None
        try:
            while True:
                # Looked at first: what was written before `stop` is still fed.
                stopping = self._stop.is_set()
                try:
                    if archive is not None and archive.moved():
                        # Deleted or replaced: what is there now is fed anew.
                        self._position = None
                        archive.close()
                        archive = None
                    if archive is None:
                        archive = self._open_archive()
                        self._position = archive.position(self._folder.name)
                    self._feed(archive)
                    self._trouble = ""
                except LedgerError as error:
                    if error.rule != RETRY_RULE:
                        raise
                    self._trouble = error.detail or str(error)
                if stopping and self._has_done():
                    return
                self._pause()
        except (LedgerError, ConfigError, OSError) as error:
            self._problem = getattr(error, "detail", "") or str(error)
        except BaseException as error:
            self._problem = f"the feeder of the archive died: {error!r}"
            raise
        finally:
            if archive is not None:
                archive.close()

    def _has_done(self) -> bool:
        # Another worker that is ending, too, may have been in the way.
        return not self._trouble or time.monotonic() >= self._deadline

    def _pause(self) -> None:
        if self._stop.is_set():
            time.sleep(_LAST_TRIES_SECONDS)
        else:
            self._stop.wait(_RETRY_SECONDS if self._trouble else _POLL_SECONDS)

    def _feed(self, archive: "Archive") -> None:
        now, goal = self._clock(), self._durable()
        position = self._position
        if position is None:
            return
        self._require_same(position.head, goal)
        if not self._is_time(goal.seq - position.head.seq, goal.seq):
            return
        while position.head.seq < goal.seq and time.monotonic() < self._deadline:
            self._is_late = self.behind() > self._late_rows
            after, rows = self._read(position, goal.seq)
            breathe = None if self._is_late else self._breathe
            archive.add(self._folder.name, position, after, rows, breathe)
            self._position = position = after
        if position.head.seq >= goal.seq:
            self._caught_up = now

    def _is_time(self, rows: int, tip: int) -> bool:
        is_quiet, self._seen = tip == self._seen, tip
        since = time.monotonic() - self._fed
        if not (
            is_quiet
            or rows >= self._together_rows
            or since >= self._together_seconds
            or self._stop.is_set()
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
        segment, offset = position.head.segment, position.byte_offset
        lines = self._lines(position, min(_BATCH_ROWS, last - position.head.seq))
        if not lines:
            return self._next_segment(position), []
        chain = Chain(self._folder.name, position.head)
        if not offset:
            chain.enter(segment)
        rows: list[Mapping[str, Any]] = []
        for number, line in enumerate(lines, 1):
            if not number % _ROWS_TO_A_BREATH:
                self._breathe()
            try:
                row = parse(line[:-1])
            except ValueError:
                raise self._broken(segment, offset, "this is not a row") from None
            if problem := chain.problem(row):
                raise self._broken(segment, offset, problem)
            rows.append(entry(self._folder.name, row))
            offset += len(line)
        return type(position)(offset, chain.head), rows

    def _breathe(self) -> None:
        # A batch takes longer than a caller should wait behind it.
        if not (self._is_late or self._stop.is_set()):
            self._is_late = self.behind() > self._late_rows
            time.sleep(_BREATH_SECONDS)

    def _broken(self, segment: int, offset: int, reason: str) -> LedgerError:
        path = segment_path(self._folder, segment)
        return LedgerError(f"{path}: at byte {offset}: {reason}", rule="ledger.chain")

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


def _step_back() -> None:
    # On the core that it shares with this process's signing, this thread comes last.
    # The priority of a thread is Linux's own idea; elsewhere it would be the process's.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
