"""The part of the ledger that a signature waits for: an append-only, chained file.

One writer, one folder, one open segment. `group_commit` decides when rows are written,
`segment_writer` writes them, and `recovery` reads what a start finds in the folder.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bridge.errors import LedgerError
from bridge.ledger.chain import Head, encode, microseconds
from bridge.ledger.events import Accepted, Closed, Event
from bridge.ledger.journal import segments
from bridge.ledger.journal.group_commit import GroupCommit
from bridge.ledger.journal.recovery import recover
from bridge.ledger.journal.segment_writer import ObserveCommit, SegmentWriter
from bridge.ledger.journal.segments import DiskFile, JournalFile
from bridge.system.clock import Clock

_MEND_SECONDS = 0.5


def unobserved(_seconds: float, _rows: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalOptions:
    """Sizes and times of a journal, and the file that it writes to."""

    segment_bytes: int = 16 << 20
    """A segment that has grown to this is closed and the next one begun. A start reads
    the last one whole, and has little time for it."""
    flush_seconds: float = 0.05
    """The longest that a row waits for a batch of somebody else."""
    pending_rows: int = 100_000
    """More waiting rows than this are refused."""
    patience_seconds: float = 5.0
    """How long a caller waits while the disk does not answer."""
    open_file: Callable[[Path], JournalFile] = DiskFile
    published: Head | None = None
    """The newest published head: a journal that does not hold it is refused."""
    accepted: Accepted | None = None
    """Put on record at the start: why an operator let this journal go on."""


_DEFAULTS = JournalOptions()


class Journal:
    """One writer's journal, open for appending. Safe to share between threads.

    The chain shows an edit to whoever kept a later hash. It cannot by itself show that
    the newest rows were cut off or that everything was written anew: that is what the
    published heads are for.
    """

    def __init__(
        self, folder: Path, version: str, clock: Clock, options: JournalOptions
    ) -> None:
        """Prepare; `open` is the way to get one."""
        self.folder = folder
        """Holds the segments of this writer."""
        self._clock = clock
        self._options = options
        self._writer = SegmentWriter(
            folder,
            version,
            clock,
            segment_bytes=options.segment_bytes,
            open_file=options.open_file,
            observe=unobserved,
        )
        self._queue = GroupCommit(
            self._writer.write,
            self._writer.mend,
            pending_rows=options.pending_rows,
            patience_seconds=options.patience_seconds,
        )
        self._lock_fd = -1
        self._closing = threading.Event()
        self._flusher = threading.Thread(
            target=self._flush_often, name=f"ledger-flush-{folder.name}", daemon=True
        )

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        writer: str,
        version: str,
        clock: Clock,
        observe_commit: ObserveCommit = unobserved,
        options: JournalOptions = _DEFAULTS,
    ) -> Self:
        """Verify the end of the journal, settle what it left open, begin a segment.

        Every own intent without an outcome gets the outcome `unknown` by the rule
        `ledger.restart`, in the same write as the new segment's first row.

        Args:
            folder: Holds one folder per writer; made when absent.
            writer: The name of this writer, the same after a restart.
            version: Of the bridge, for the segment's first row.
            clock: Gives each row its time.
            observe_commit: Is told the seconds and the rows of each commit.
            options: Sizes, times, and the file to write to.

        Raises:
            LedgerError: Another process has the writer's folder, the journal does not
                verify, it ends before its published head, or it cannot be written.
        """
        path = segments.make_folder(folder, writer)
        journal = cls(path, version, clock, options)
        journal._writer.observe = observe_commit
        journal._lock_fd = segments.lock(path)
        try:
            tail = recover(path, writer, options.published)
            events: list[Event] = [*tail.unknown]
            if options.accepted:
                events.append(options.accepted)
            journal._writer.begin(tail.head, events)
        except BaseException:
            # First: a segment that has no whole first row gets no last one.
            journal._writer.close()
            journal.close()
            raise
        journal._flusher.start()
        return journal

    @property
    def head(self) -> Head:
        """The tip: everything up to it is on disk."""
        return self._writer.head

    def problem(self) -> str | None:
        """Return why nothing can be written, or None."""
        refusal = self.refusal()
        return refusal and refusal[1]

    def refusal(self) -> tuple[str, str] | None:
        """Return by which rule nothing can be written, and why; or None."""
        since = self._writer.busy_since
        if since and time.perf_counter() - since > self._options.patience_seconds:
            return "ledger.slow", f"{self.folder}: the disk does not answer"
        return self._queue.shut

    def append_durable(self, event: Event) -> None:
        """Write one row and return when the disk has it.

        Raises:
            LedgerError: The row may not be on disk. With rule `ledger.room`, the disk
                is full, and rows are taken again when it is not. After any other
                failed write every later call raises too: what the file ends in is not
                known until a restart has looked.
        """
        self._queue.wait(encode(event, microseconds(self._clock)))

    def append(self, event: Event) -> None:
        """Queue one row; it is written with the next batch, or soon.

        Raises:
            LedgerError: Too many rows wait, or the journal is shut.
        """
        self._queue.add(encode(event, microseconds(self._clock)))

    def flush(self) -> None:
        """Return when everything that was appended so far is on disk.

        Raises:
            LedgerError: It cannot be written, or the disk does not answer.
        """
        self._queue.flush()

    def finish(self) -> None:
        """Write what waits and the segment's last row, and take no more.

        The folder stays locked until `close`.

        Raises:
            LedgerError: Something could not be written.
        """
        self._closing.set()
        if self._flusher.is_alive():
            self._flusher.join()
        with suppress(LedgerError):
            self._queue.mend()
        if not self._writer.is_open:
            return
        try:
            self._queue.wait(self._writer.own(Closed(reason="shutdown")), last=True)
        finally:
            self._writer.close()

    def close(self) -> None:
        """Finish and give up the folder. What cannot be written is left behind."""
        with suppress(LedgerError):
            self.finish()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _flush_often(self) -> None:
        mend_at = 0.0
        while not self._closing.wait(self._options.flush_seconds):
            # Whoever appends next gets the error; `problem` shows it meanwhile.
            with suppress(LedgerError):
                if time.monotonic() >= mend_at:
                    mend_at = time.monotonic() + _MEND_SECONDS
                    self._queue.mend()
                self._queue.flush()
