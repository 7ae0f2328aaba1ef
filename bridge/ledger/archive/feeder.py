"""Feeds the archive from the journals of all writers: which rows, when, how many.

One feeder works on a folder of journals. It goes through the folders of the writers and
takes rows up to the last one that the writer says is on disk, see
`bridge.ledger.journal.progress`. So the archive never has a row that the journal may
lose. Each row is read by the chain: the first that does not verify ends the feeding of
its writer.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.archive.archive import Archive, Position
from bridge.ledger.archive.database import RETRY_RULE
from bridge.ledger.chain import CHAIN_RULE, Chain, Head, entry, parse
from bridge.ledger.journal.progress import FeederState, Progress
from bridge.ledger.journal.segments import (
    is_locked,
    segment_path,
    segments,
    writer_folders,
)

_LOCK = "feeder.lock"
_BATCH_ROWS = 1000
_TOGETHER_SECONDS = 0.5
"""Under load, rows wait this long for others: digests are random, so that a small batch
writes nearly as many pages of the indexes as a large one."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchSize:
    """When enough rows have come for a batch."""

    rows: int = _BATCH_ROWS
    seconds: float = _TOGETHER_SECONDS

    @classmethod
    def below(cls, entries: int, seconds: float) -> Self:
        """Return what keeps well below the rows and seconds where issuing stops."""
        return cls(
            rows=min(_BATCH_ROWS, entries // 4),
            seconds=min(_TOGETHER_SECONDS, seconds / 4),
        )


class ArchiveFeeder:
    """Feeds one archive from all journals in a folder. For one thread.

    Args:
        journal: Holds one folder per writer.
        open_archive: Opens the archive; called again when the archive was replaced.
        batch: When enough rows have come.
        batch_rows: The most rows of a batch.
    """

    def __init__(
        self,
        journal: Path,
        open_archive: Callable[[], Archive],
        batch: BatchSize,
        *,
        batch_rows: int = _BATCH_ROWS,
    ) -> None:
        self._journal = journal
        self._open_archive = open_archive
        self._batch = batch
        self._batch_rows = batch_rows
        self._lock_fd: int | None = None
        self._archive: Archive | None = None
        self._writers: dict[str, _Writer] = {}
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Why the last pass did not reach the archive; empty when it did."""
        return self._trouble

    @property
    def archive(self) -> Archive | None:
        """The archive, where the last pass has reached it."""
        return None if self._trouble else self._archive

    def run_pass(self, *, at_once: bool = False) -> bool:
        """Feed at most one batch of each writer.

        Errors are reported to the writers and logged, see `Progress.report`.

        Args:
            at_once: Do not wait for more rows.

        Returns:
            Whether there are more rows to be fed now.
        """
        if not self._is_alone():
            return False
        writers = self._find_writers()
        state, trouble, more = FeederState.FEEDING, "", False
        try:
            archive = self._opened()
            for writer in writers:
                more = writer.feed(archive, at_once=at_once) or more
        except (LedgerError, ConfigError) as error:
            # The archive's: those of one journal are reported by `_Writer.feed`.
            may_retry = isinstance(error, LedgerError) and error.rule == RETRY_RULE
            state = FeederState.RETRYING if may_retry else FeederState.BROKEN
            trouble, more = _reason_of(error), False
            for writer in writers:
                writer.report(state, trouble)
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                _log.warning("the archive: %s", trouble)
        return more

    def has_live_writer(self) -> bool:
        """Return whether a process writes one of the journals."""
        return any(is_locked(folder) for folder in self._folders())

    def close(self) -> None:
        """Close the archive, and let another feeder work on the folder."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._archive is not None:
            self._archive.close()
            self._archive = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _is_alone(self) -> bool:
        # A bridge that was killed leaves its feeder for a moment, in which the next
        # bridge may have begun. Where the journals are on a disk that does not answer,
        # the writers say so.
        if self._lock_fd is not None:
            return True
        try:
            fd = os.open(
                self._journal / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._lock_fd = fd
        return True

    def _folders(self) -> list[Path]:
        try:
            return writer_folders(self._journal)
        except OSError:
            return []

    def _find_writers(self) -> "list[_Writer]":
        found: dict[str, _Writer] = {}
        for folder in self._folders():
            writer = self._writers.pop(folder.name, None)
            if writer is not None and not writer.progress.is_of(folder):
                writer.close()
                writer = None
            if writer is None and (progress := Progress.find(folder)) is not None:
                writer = _Writer(folder, progress, self._batch, self._batch_rows)
            if writer is not None:
                found[folder.name] = writer
        for writer in self._writers.values():
            writer.close()
        self._writers = found
        return list(found.values())

    def _opened(self) -> Archive:
        archive = self._archive
        if archive is not None and archive.moved():
            # Deleted or replaced: the file that is there now is fed from the first row.
            self._archive = None
            for writer in self._writers.values():
                writer.begin_rebuild()
            archive.close()
        if self._archive is None:
            self._archive = self._open_archive()
        return self._archive


class _Writer:
    # The feeding of one journal.
    def __init__(
        self, folder: Path, progress: Progress, batch: BatchSize, batch_rows: int
    ) -> None:
        self.progress = progress
        self._folder = folder
        self._batch = batch
        self._batch_rows = batch_rows
        self._position: Position | None = None
        self._life = 0
        self._broken = self._unread = ""
        self._seen = -1
        self._fed_at = time.monotonic()

    def feed(self, archive: Archive, *, at_once: bool) -> bool:
        # See `ArchiveFeeder.run_pass`. Raises a `LedgerError` of the archive.
        more, unread = False, ""
        try:
            more = self._feed(archive, at_once=at_once)
        except LedgerError as error:
            if error.rule == RETRY_RULE:
                # It may have the rows all the same: its position is read again.
                self._position = None
                raise
            self._broken = _reason_of(error)
            _log.error("the journal %s is not fed: %s", self._folder, self._broken)
        except OSError as error:
            # Nothing is wrong with the rows: of files, say, there are too many open.
            unread = str(error)
            if unread != self._unread:
                _log.warning("the journal %s cannot be read: %s", self._folder, unread)
        self._unread = unread
        self.report(FeederState.RETRYING if unread else FeederState.FEEDING, unread)
        return more

    def report(
        self, state: FeederState = FeederState.FEEDING, reason: str = ""
    ) -> None:
        position = self._position
        fed = None if position is None else position.head.seq
        if self._broken:
            state, reason = FeederState.BROKEN, self._broken
        # A new feeder does not know yet, and the archive has what it had before.
        self.progress.report(self.progress.fed if fed is None else fed, state, reason)

    def begin_rebuild(self) -> None:
        self._position = None
        self.progress.begin_rebuild()
        state = FeederState.BROKEN if self._broken else FeederState.FEEDING
        self.progress.report(None, state, self._broken)

    def close(self) -> None:
        self.progress.close()

    def _feed(self, archive: Archive, *, at_once: bool) -> bool:
        durable = self.progress.durable()
        if durable is None or durable.head.seq < 0:
            return False  # the writer has not finished its start
        if durable.life != self._life:
            self._life, self._position, self._broken = durable.life, None, ""
        if self._broken:
            return False
        if self._position is None:
            self._position = archive.position(self._folder.name)
            if self.progress.note_opened(self._position.head.seq):
                _log.info("the archive is built from the journal %s", self._folder)
        position, tip = self._position, durable.head
        self._require_same(position.head, tip)
        if position.head.seq == tip.seq or not (at_once or self._is_time(tip.seq)):
            return False
        after, rows = self._read(position, tip.seq)
        archive.add(self._folder.name, position, after, rows)
        self._position, self._fed_at = after, time.monotonic()
        return after.head.seq < tip.seq

    def _is_time(self, tip: int) -> bool:
        is_quiet, self._seen = tip == self._seen, tip
        position = self._position
        fed = -1 if position is None else position.head.seq
        return (
            is_quiet
            or tip - fed >= self._batch.rows
            or time.monotonic() - self._fed_at >= self._batch.seconds
        )

    def _require_same(self, read: Head, tip: Head) -> None:
        if read.seq > tip.seq or (read.seq == tip.seq and read != tip):
            raise LedgerError(
                f"{self._folder}: the archive holds row {read.seq} of this writer, and "
                f"the journal ends at row {tip.seq} or holds another: one of them was "
                "restored from an older copy. Put the newer one back; if that is the "
                "journal alone, move the archive away: it is made anew",
                rule="ledger.cut",
            )

    def _read(
        self, position: Position, last: int
    ) -> tuple[Position, Sequence[Mapping[str, Any]]]:
        # A batch of rows after `position`, up to row `last`, all of one segment.
        lines = self._lines(position, min(self._batch_rows, last - position.head.seq))
        if not lines:
            position = self._next_segment(position)
            count = min(self._batch_rows, last - position.head.seq)
            lines = self._lines(position, count)
        chain, offset = Chain(self._folder.name, position.head), position.byte_offset
        if not offset:
            chain.enter(position.head.segment)
        rows = []
        for line in lines:
            try:
                row = parse(line[:-1])
            except ValueError:
                raise self._broken_at(position, offset, "this is not a row") from None
            if problem := chain.problem(row):
                raise self._broken_at(position, offset, problem)
            rows.append(entry(self._folder.name, row))
            offset += len(line)
        return Position(offset, chain.head), rows

    def _broken_at(self, position: Position, offset: int, reason: str) -> LedgerError:
        path = segment_path(self._folder, position.head.segment)
        return LedgerError(f"{path}: at byte {offset}: {reason}", rule=CHAIN_RULE)

    def _lines(self, position: Position, count: int) -> list[bytes]:
        if not position.head.segment:
            return []
        path = segment_path(self._folder, position.head.segment)
        with path.open("rb") as file:
            file.seek(position.byte_offset)
            # Whole lines only: the rest is being written.
            return [line for line in islice(file, count) if line.endswith(b"\n")]

    def _next_segment(self, position: Position) -> Position:
        for number, _ in segments(self._folder):
            if number > position.head.segment:
                return Position(0, position.head._replace(segment=number))
        raise LedgerError(
            f"{self._folder}: the journal ends after row {position.head.seq}, before "
            "what was written",
            rule=CHAIN_RULE,
        )


def _reason_of(error: Exception) -> str:
    return getattr(error, "detail", "") or str(error)
