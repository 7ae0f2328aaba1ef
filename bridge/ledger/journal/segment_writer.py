"""The segment writer: chains the rows of one writer and brings them to the disk."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from bridge import __version__
from bridge.errors import LedgerError
from bridge.ledger.chain import Head, Pending, encode, link, microseconds
from bridge.ledger.events import Closed, Event, Opened, Resumed
from bridge.ledger.journal import segments
from bridge.ledger.journal.group_commit import NO_ROOM_RULE
from bridge.ledger.journal.segments import JournalFile
from bridge.system.clock import Clock
from bridge.system.files import PASSING_ERRORS

ObserveCommit = Callable[[float, int], None]
"""Gets the seconds and the number of rows of each commit."""

_NO_ROOM = PASSING_ERRORS | {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors after which the disk has lost no row: the next try may succeed."""
_ROOM_BYTES = 1 << 20
"""The free space that ends a stall. With less, the next batch fails again."""


class SegmentWriter:
    """Writes one segment after the other. One thread at a time may call it.

    Args:
        folder: The folder of the writer; its name is the writer's.
        clock: Gives the time for rows of the segment writer itself.
        segment_bytes: A segment of this size is closed.
        open_file: Makes the file of a segment.
        observe: Gets the seconds and the number of rows of each commit.
        publish: Gets the last row that is on disk, after each commit.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        segment_bytes: int,
        open_file: Callable[[Path], JournalFile],
        observe: ObserveCommit,
        publish: Callable[[Head], None],
    ) -> None:
        self.head = Head(0, -1, "")
        """The last row that is on disk."""
        self.busy_since = 0.0
        """When the current write began, by `time.perf_counter`; 0 without one."""
        self._folder = folder
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._open_file = open_file
        self._observe = observe
        self._publish = publish
        self._file: JournalFile | None = None
        self._segment = 0
        self._size = 0
        self._full_since = 0
        self._full = ""

    @property
    def is_open(self) -> bool:
        """Whether there is an open segment."""
        return self._file is not None

    def begin(self, head: Head, events: Sequence[Event]) -> None:
        """Begin the segment after `head`; one write has its first row and `events`.

        Raises:
            LedgerError: The segment cannot be written.
        """
        self.head, self._segment = head, head.segment
        self._begin_segment(events)

    def write(self, batch: Sequence[Pending]) -> None:
        """Write `batch` and return when the disk has it.

        Raises:
            LedgerError: The batch may not be on disk. With rule `ledger.room` it is
                not, and `mend` may end that. With any other rule it is not known what
                the file ends in.
        """
        rows = [row for row in batch if row.parts]
        if not rows:
            return
        if self._file is not None and self._size >= self._segment_bytes:
            self._append([self.own(Closed(reason="rollover"))])
            self._file.close()
            self._begin_segment([])
        self._append(rows)

    def mend(self) -> None:
        """Cut the file after its last durable row, and continue there.

        For a write that failed for want of room. Every row up to `head` was synced
        before, and no caller was told that a later row is on disk. There is no such way
        back from a failed sync, because it is not known what it leaves.

        Raises:
            LedgerError: See `write`.
        """
        resumed = Resumed(since=self._full_since, detail=self._full)
        try:
            free = os.statvfs(self._folder)
            if free.f_bavail * free.f_frsize < _ROOM_BYTES:
                raise self._no_room(self._full)
            if self._file is not None and self._size:
                path = segments.segment_path(self._folder, self._segment)
                segments.require_ends_in(path, self._size, self.head)
                self._file.cut(self._size)
                self._append([self.own(resumed)])
            else:
                self._give_up_segment()
                self._begin_segment([resumed])
        except OSError as error:
            if error.errno in PASSING_ERRORS:
                raise self._unwritten(error) from error
            raise self._failed(error) from error
        self._full_since, self._full = 0, ""

    def close(self) -> None:
        """Close the file, unless a write hangs: then closing it would hang as well."""
        if self._file is not None and not self.busy_since:
            self._file.close()
            self._file = None

    def own(self, event: Event) -> Pending:
        """Encode a row of the segment writer itself."""
        return encode(event, microseconds(self._clock))

    def _give_up_segment(self) -> None:
        # The segment has no row, so its number is free.
        self.close()
        segments.segment_path(self._folder, self._segment).unlink(missing_ok=True)
        self._segment -= 1

    def _begin_segment(self, events: Sequence[Event]) -> None:
        self._segment += 1
        path = segments.segment_path(self._folder, self._segment)
        try:
            self._file = self._open_file(path)
        except OSError as error:
            self._file = None
            raise self._unwritten(error) from error
        self._size = 0
        opened = Opened(
            writer=self._folder.name, segment=self._segment, version=__version__
        )
        self._append([self.own(event) for event in (opened, *events)])

    def _append(self, rows: Sequence[Pending]) -> None:
        self.busy_since = started = time.perf_counter()
        head, data = self._linked(rows)
        try:
            self._put(data)
        finally:
            self.busy_since = 0.0
        # After the write: the head in memory is never newer than the disk.
        self.head = head
        self._publish(head)
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
        file = self._file
        if file is None:
            raise self._failed(OSError("there is no open segment"))
        try:
            _write_all(file, data)
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            file.sync()
        except OSError as error:
            raise self._failed(error) from error
        self._size += len(data)

    def _unwritten(self, error: OSError) -> LedgerError:
        if error.errno in _NO_ROOM:
            return self._no_room(f"{self._folder}: {error.strerror}")
        return self._failed(error)

    def _no_room(self, detail: str) -> LedgerError:
        self._full_since = self._full_since or int(self._clock().timestamp())
        self._full = detail
        return LedgerError(
            "the ledger's disk has no room", rule=NO_ROOM_RULE, detail=detail
        )

    def _failed(self, error: OSError) -> LedgerError:
        return LedgerError(
            "the ledger cannot be written",
            rule="ledger.write",
            detail=f"{self._folder}: {error.strerror or error}",
        )


def _write_all(file: JournalFile, data: bytes) -> None:
    written = file.write(data)
    while written < len(data):
        # A disk that is nearly full writes a part; the next attempt gets the error.
        more = file.write(data[written:])
        if more <= 0:
            raise OSError("the disk wrote no byte")
        written += more
