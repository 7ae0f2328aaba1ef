"""What is durable before the segment is: a file whose blocks were laid out before.

Syncing a file that grows makes the filesystem commit its own journal as well. Writing
over blocks that are there, past the system's cache, is one write, and takes half of the
time and of the processor. So a batch goes into its segment, unsynced, and into this
file; when the file is full, the segment is synced and the file begun anew. What a power
cut takes from the end of a segment is in here, and a start puts it back.

The segments stay the journal: who reads them finds all rows while the system is up.
"""

import errno
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

from bridge.errors import LedgerError
from bridge.ledger.journal.segments import DiskFile, JournalFile, sync_folder
from bridge.ledger.journal.tail import way_out

NAME = "ahead"
"""Of the file, in the folder of a writer."""
_BYTES = 1 << 20
_BLOCK = 4096
_MOST_BYTES = 1 << 16
"""A larger batch is synced in its segment: there it costs little for each row."""
_HEADER = struct.Struct("<8sQQQ32s")
"""Magic, number of the segment, where in it the data begins, bytes of data, and the
SHA-256 of all that and the data."""
_MAGIC = b"mcahead1"
_DIRECT = getattr(os, "O_DIRECT", 0)


class Record(NamedTuple):
    """A batch as it is in a segment."""

    segment: int
    offset: int
    data: bytes


class Ahead:
    """The file of one writer, open. One thread at a time may call it."""

    def __init__(self, fd: int, buffer: mmap.mmap) -> None:
        """Take both over; `open` is the way to get one."""
        self._fd = fd
        self._at = 0
        self._buffer = buffer
        self._view = memoryview(buffer)

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """Open the file in the folder of a writer, laid out when it is absent.

        What it holds has to be in the segments before.

        Whoever opens it makes the folder's names durable.

        Returns:
            None where the system or the disk has no such thing: then segments are
            synced one batch at a time.
        """
        path = folder / NAME
        if not _DIRECT:
            return None
        # Writes past the cache want memory that is aligned as the blocks are.
        buffer = mmap.mmap(-1, _MOST_BYTES + _BLOCK)
        try:
            if not _is_laid_out(path):
                path.unlink(missing_ok=True)
                _lay_out(path)
            flags = os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW | _DIRECT
            return cls(os.open(path, flags), buffer)
        except OSError:
            # It may be a file that takes no such writes, or half of one.
            with suppress(OSError):
                path.unlink()
            return None

    def put(self, record: Record) -> bool:
        """Return when a record is on disk, or at once, False, if it has no room.

        Raises:
            OSError: It may not be on disk.
        """
        segment, offset, data = record
        end = _HEADER.size + len(data)
        size = -(-end // _BLOCK) * _BLOCK
        if len(data) > _MOST_BYTES or self._at + size > _BYTES:
            return False
        digest = _digest(segment, offset, data)
        _HEADER.pack_into(self._buffer, 0, _MAGIC, segment, offset, len(data), digest)
        self._buffer[_HEADER.size : end] = data
        if os.pwrite(self._fd, self._view[:size], self._at) != size:
            raise OSError(errno.EIO, "the disk took a part of a block")
        self._at += size
        return True

    def begin_anew(self) -> None:
        """Take it that the segment itself is on disk: no record is needed any more."""
        self._at = 0

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)
        self._view.release()
        self._buffer.close()


class AheadFile:
    """A segment on a real disk, made durable in `Ahead`. See `JournalFile`.

    What `Ahead` does not take, the segment takes by itself: a disk may open a file for
    such writes and refuse them, or have no room for blocks that it does not overwrite
    but copies.
    """

    def __init__(self, number: int, file: DiskFile, ahead: Ahead) -> None:
        """Write segment `number`, an empty `file`; both are closed with this."""
        self._number = number
        self._file = file
        self._ahead = ahead
        self._is_refused = False
        self._size = 0
        self._unsynced: list[bytes] = []

    def write(self, data: bytes) -> int:
        """See `JournalFile.write`."""
        count = self._file.write(data)
        self._unsynced.append(data[:count])
        return count

    def sync(self) -> None:
        """See `JournalFile.sync`."""
        data = b"".join(self._unsynced)
        if not self._put(data):
            self.settle()
        self._size += len(data)
        self._unsynced.clear()

    def settle(self) -> None:
        """See `JournalFile.settle`."""
        self._file.sync()
        self._ahead.begin_anew()

    def cut(self, size: int) -> None:
        """See `JournalFile.cut`."""
        self._file.cut(size)
        self._ahead.begin_anew()
        self._size = size
        self._unsynced.clear()

    def close(self) -> None:
        """See `JournalFile.close`."""
        try:
            self._ahead.close()
        finally:
            self._file.close()

    def _put(self, data: bytes) -> bool:
        if not self._is_refused:
            try:
                return self._ahead.put(Record(self._number, self._size, data))
            except OSError:
                self._is_refused = True
        return False


def open_file(path: Path) -> JournalFile:
    """Make the file of a segment, durable in the fastest way that the disk has.

    Raises:
        OSError: It cannot be made.
    """
    # First: the segment makes its folder's names durable, and this one is among them.
    ahead = Ahead.open(path.parent)
    if ahead is None:
        return DiskFile(path)
    try:
        return AheadFile(int(path.stem), DiskFile(path), ahead)
    except OSError:
        ahead.close()
        raise


def discard(folder: Path) -> None:
    """Remove the file for good: the segments are on disk, all of them.

    Raises:
        OSError: The disk fails.
    """
    with suppress(FileNotFoundError):
        (folder / NAME).unlink()
        sync_folder(folder)


def read(folder: Path) -> Iterator[Record]:
    """Yield all whole records of the file, in no order that matters.

    Raises:
        LedgerError: There is such a file, and it cannot be read (rule `ledger.ahead`).
    """
    path = folder / NAME
    try:
        blocks = _blocks(path)
    except OSError as error:
        raise LedgerError(
            f"{path}: cannot be read: {error.strerror}, and it may hold the last rows "
            f"of the journal. Put it back; {way_out(folder.name)}",
            rule="ledger.ahead",
        ) from error
    for at in range(0, len(blocks) - _HEADER.size + 1, _BLOCK):
        magic, segment, offset, length, digest = _HEADER.unpack_from(blocks, at)
        if magic != _MAGIC or length > _MOST_BYTES:
            continue
        start = at + _HEADER.size
        data = blocks[start : start + length]
        if len(data) == length and digest == _digest(segment, offset, data):
            yield Record(segment, offset, data)


def _blocks(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "this is no file")
        return file.read(_BYTES)


def _is_laid_out(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    # A copy may have left the zeros out: where no block is, there may be no room.
    has_blocks = found.st_blocks * 512 >= _BYTES
    return found.st_size == _BYTES and has_blocks


def _lay_out(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    with os.fdopen(fd, "wb") as file:
        # Zeros, and not only room for them: room has to be marked as used at the first
        # write, in the filesystem's journal.
        file.write(bytes(_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _digest(segment: int, offset: int, data: bytes) -> bytes:
    return sha256(struct.pack("<QQ", segment, offset) + data).digest()
