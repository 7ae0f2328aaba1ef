"""The journal: the append-only, chained file that a signature waits for.

A journal has one writer, one folder, and one open segment. `group_commit` decides when
rows are written, `segment_writer` writes them, and `recovery` verifies the folder at a
start.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bridge.errors import LedgerError
from bridge.ledger.chain import Head, encode, microseconds
from bridge.ledger.events import Accepted, Closed, Event
from bridge.ledger.journal import segments
from bridge.ledger.journal.group_commit import GroupCommit
from bridge.ledger.journal.progress import Progress
from bridge.ledger.journal.recovery import recover
from bridge.ledger.journal.segment_writer import ObserveCommit, SegmentWriter
from bridge.ledger.journal.segments import JournalFile
from bridge.system.background import BackgroundLoop
from bridge.system.clock import Clock

_MEND_SECONDS = 0.5


def unobserved(_seconds: float, _rows: int) -> None:
    """Ignore a commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalOptions:
    """Sizes and times of a journal, its file, and what its start needs."""

    segment_bytes: int = 16 << 20
    """A segment of this size is closed, and the next one begins. A start reads the
    last one whole, which must not take long."""
    flush_seconds: float = 0.05
    """The longest time that a row waits for the batch of another row."""
    pending_rows: int = 100_000
    """More waiting rows are refused."""
    patience_seconds: float = 5.0
    """How long a caller waits while the disk does not answer."""
    open_file: Callable[[Path], JournalFile] = JournalFile
    observe_commit: ObserveCommit = unobserved
    """Gets the seconds and the number of rows of each commit."""
    published: Head | None = None
    """The newest published head. A journal that does not hold it is refused."""
    accepted: Accepted | None = None
    """The row for a journal that an operator accepted; the start writes it."""


_DEFAULTS = JournalOptions()


class Journal:
    """The journal of one writer, open for appending. Safe to share between threads.

    The chain shows an edit to anybody who kept a later hash. The chain alone does not
    show that the newest rows were cut off, or that all rows were replaced. The
    published heads show that.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        options: JournalOptions,
        progress: Progress,
        lock_fd: int,
    ) -> None:
        """Prepare; `open` is the way to get one."""
        self.folder = folder
        """The folder with the segments of this writer."""
        self._clock = clock
        self._options = options
        self._writer = SegmentWriter(
            folder,
            clock,
            segment_bytes=options.segment_bytes,
            open_file=options.open_file,
            observe=options.observe_commit,
            publish=progress.publish,
        )
        self._queue = GroupCommit(
            self._writer.write,
            self._writer.mend,
            pending_rows=options.pending_rows,
            patience_seconds=options.patience_seconds,
        )
        self._lock_fd = lock_fd
        self.progress = progress
        """Shared with the archive feeder: what is on disk, and what is archived."""
        self._mend_at = 0.0
        name = f"ledger-flush-{folder.name}"
        self._flusher = BackgroundLoop(name, self._flush, options.flush_seconds)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        writer: str,
        clock: Clock,
        options: JournalOptions = _DEFAULTS,
    ) -> Self:
        """Verify the end of the journal, write missing outcomes, begin a segment.

        Every intent without an outcome gets the outcome `unknown` by the rule
        `ledger.restart`, in the same write as the new segment's first row.

        Args:
            folder: Has one folder for each writer; made when absent.
            writer: The name of this writer, the same after a restart.
            clock: Gives each row its time.
            options: See `JournalOptions`.

        Raises:
            LedgerError: Another process has the writer's folder, the journal does not
                verify, it ends before its published head, or it cannot be written.
        """
        path = segments.make_folder(folder, writer)
        with ExitStack() as undo:
            lock_fd = segments.lock(path)
            undo.callback(os.close, lock_fd)
            # First: what the file said of the life before does not hold any more.
            progress = Progress.make(path)
            undo.callback(progress.close)
            journal = cls(path, clock, options, progress, lock_fd)
            # Without a last row: there may be no whole first row.
            undo.callback(journal._writer.close)
            tail = recover(path, writer, options.published)
            events: list[Event] = [*tail.unknown]
            if options.accepted:
                events.append(options.accepted)
            journal._writer.begin(tail.head, events)
            undo.pop_all()
        journal._flusher.start()
        return journal

    @property
    def head(self) -> Head:
        """The last row that is on disk."""
        return self._writer.head

    def refusal(self) -> tuple[str, str] | None:
        """Return the rule by which no row can be written, and the reason; or None."""
        since = self._writer.busy_since
        if since and time.perf_counter() - since > self._options.patience_seconds:
            return "ledger.slow", f"{self.folder}: the disk does not answer"
        return self._queue.shut

    def append_durable(self, event: Event) -> None:
        """Write one row and return when it is on disk.

        Raises:
            LedgerError: The row may not be on disk. With rule `ledger.room` the disk is
                full, and later calls succeed once there is room. After any other failed
                write every later call raises as well, until a restart has read the
                journal: it is not known what the file ends in.
        """
        self._queue.wait(encode(event, microseconds(self._clock)))

    def append(self, event: Event) -> None:
        """Queue one row; it is written with the next batch, or after a short time.

        Raises:
            LedgerError: Too many rows wait, or the journal is shut.
        """
        self._queue.add(encode(event, microseconds(self._clock)))

    def flush(self) -> None:
        """Return when all appended rows are on disk.

        Raises:
            LedgerError: A row cannot be written, or the disk does not answer.
        """
        self._queue.flush()

    def finish(self) -> None:
        """Write all waiting rows and the segment's last row; refuse later rows.

        The folder stays locked until `close`.

        Raises:
            LedgerError: A row could not be written.
        """
        self._flusher.close()
        with suppress(LedgerError):
            self._queue.mend()
        if not self._writer.is_open:
            return
        try:
            self._queue.wait(self._writer.own(Closed(reason="shutdown")), last=True)
        finally:
            self._writer.close()

    def close(self) -> None:
        """Finish and unlock the folder. Rows that cannot be written are dropped."""
        with suppress(LedgerError):
            self.finish()
        if self._lock_fd >= 0:
            self.progress.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _flush(self) -> None:
        # The next caller of `append` gets the error; until then `problem` shows it.
        with suppress(LedgerError):
            if time.monotonic() >= self._mend_at:
                self._mend_at = time.monotonic() + _MEND_SECONDS
                self._queue.mend()
            self._queue.flush()
