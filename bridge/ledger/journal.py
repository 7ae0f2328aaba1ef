"""The part of the ledger that a signature waits for: an append-only, chained file.

One writer, one folder, one open segment. Who writes when is `bridge.ledger.commit`'s;
what a start finds in the folder is `bridge.ledger.recovery`'s.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from bridge.clock import Clock
from bridge.errors import LedgerError
from bridge.ledger import segments
from bridge.ledger.commit import GroupCommit
from bridge.ledger.events import Closed, Event, Opened
from bridge.ledger.recovery import recover
from bridge.ledger.rows import GENESIS, Head, Pending, encode, link, microseconds
from bridge.ledger.segments import DiskFile, JournalFile

ObserveCommit = Callable[[float, int], None]
"""Is told of each commit: its seconds and its rows."""


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
        self.head = Head(0, -1, GENESIS)
        """The tip: everything up to it is on disk."""
        self._version = version
        self._clock = clock
        self._options = options
        self._observe: ObserveCommit = unobserved
        self._queue = GroupCommit(
            self._write,
            pending_rows=options.pending_rows,
            patience_seconds=options.patience_seconds,
        )
        self._file: JournalFile | None = None
        self._segment = 0
        self._size = 0
        self._lock_fd = -1
        self._writing_since = 0.0
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
        journal._observe = observe_commit
        journal._lock_fd = segments.lock(path)
        try:
            tail = recover(path, writer, options.published)
            journal.head, journal._segment = tail.head, tail.head.segment
            journal._begin_segment(tail.unknown)
        except BaseException:
            journal.close()
            raise
        journal._flusher.start()
        return journal

    def problem(self) -> str | None:
        """Return why nothing can be written, or None."""
        since = self._writing_since
        if since and time.perf_counter() - since > self._options.patience_seconds:
            return f"{self.folder}: the disk does not answer"
        return self._queue.shut or None

    def append_durable(self, event: Event) -> None:
        """Write one row and return when the disk has it.

        Raises:
            LedgerError: The row may not be on disk. After a failed write every later
                call raises too: what the file ends in is not known until a restart
                has looked.
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
        if self._file is None:
            return
        try:
            self._queue.wait(self._own(Closed(reason="shutdown")), last=True)
        finally:
            # A write that hangs keeps its file: closing it would hang as well.
            if not self._writing_since:
                self._file.close()
                self._file = None

    def close(self) -> None:
        """Finish and give up the folder. What cannot be written is left behind."""
        with suppress(LedgerError):
            self.finish()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _own(self, event: Event) -> Pending:
        return encode(event, microseconds(self._clock))

    def _flush_often(self) -> None:
        while not self._closing.wait(self._options.flush_seconds):
            # Whoever appends next gets the error; `problem` shows it meanwhile.
            with suppress(LedgerError):
                self._queue.flush()

    # The rest is called by one thread at a time: by the leader of a group commit, or
    # by `open` before anybody else knows the journal.

    def _write(self, batch: Sequence[Pending]) -> None:
        rows = [row for row in batch if row.parts]
        if not rows:
            return
        if self._file is not None and self._size >= self._options.segment_bytes:
            self._append([self._own(Closed(reason="rollover"))])
            self._file.close()
            self._begin_segment([])
        self._append(rows)

    def _begin_segment(self, outcomes: Sequence[Event]) -> None:
        self._segment += 1
        try:
            path = segments.segment_path(self.folder, self._segment)
            self._file = self._options.open_file(path)
        except OSError as error:
            self._file = None
            raise self._failed(error) from error
        self._size = 0
        opened = Opened(
            writer=self.folder.name, segment=self._segment, version=self._version
        )
        self._append([self._own(event) for event in (opened, *outcomes)])

    def _append(self, rows: Sequence[Pending]) -> None:
        self._writing_since = started = time.perf_counter()
        head, data = self._linked(rows)
        try:
            self._put(data)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._writing_since = 0.0
        # Only now: the head in memory never runs ahead of the disk.
        self.head = head
        self._observe(time.perf_counter() - started, len(rows))

    def _linked(self, rows: Sequence[Pending]) -> tuple[Head, bytes]:
        _, seq, digest = self.head
        lines = []
        for row in rows:
            seq += 1
            line = link(row, digest, seq)
            digest = sha256(line).hexdigest()
            lines.append(line)
        lines.append(b"")
        return Head(self._segment, seq, digest), b"\n".join(lines)

    def _put(self, data: bytes) -> None:
        if self._file is None:
            raise OSError("there is no open segment")
        written = self._file.write(data)
        while written < len(data):
            # A disk that is nearly full takes a part; the next attempt says why.
            more = self._file.write(data[written:])
            if more <= 0:
                raise OSError("the disk took no byte")
            written += more
        self._file.sync()
        self._size += len(data)

    def _failed(self, error: OSError) -> LedgerError:
        return LedgerError(
            "the ledger cannot be written",
            rule="ledger.write",
            detail=f"{self.folder}: {error.strerror or error}",
        )
