"""How far a journal is on disk and in the archive: a small file that two processes map.

The writer of a journal publishes its last durable row, and the archive feeder the last
row that the archive has. Each side reads the other's value without a lock. A value that
is read late is too small and never too large: the feeder feeds fewer rows than it may,
and the writer counts more rows as missing than there are.
"""

import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self
from zlib import crc32

from bridge.ledger.chain import Head
from bridge.ledger.journal.segments import unusable

_FILE = "progress"
_BYTES = 4096
_DURABLE = struct.Struct("<QQq32s")
"""Life, segment, seq and digest."""
_DURABLE_AT, _DURABLE_BYTES = 0, 128
_FED, _STATE, _BEAT, _REBUILD, _HIGHEST = 64, 65, 66, 67, 68
"""Places of single values, counted in words of eight bytes. The last two are one more
than the number of a row: a file of an earlier version has 0 there, for none."""
_REASON_AT, _REASON_BYTES = 1024, 1024
_REASON_LONGEST = 800
_UNKNOWN = -2
_SILENT_SECONDS = 10.0
"""Longer than a batch takes, also where SQLite waits for another process."""


class FeederState(IntEnum):
    """What the archive feeder says of one writer."""

    FEEDING = 0
    RETRYING = 1
    """The last try failed, and the feeder tries again."""
    BROKEN = 2
    """The journal or the archive needs an operator."""


class Durable(NamedTuple):
    """What a writer publishes."""

    life: int
    """Another number after each start of the writer."""
    head: Head
    """The last row on disk; its `seq` is -1 while the start is not finished."""


class Progress:
    """The mapped file of one writer.

    Single values are words of eight bytes, which the processor writes as one. Several
    values that belong together are in a `_Slots`.
    """

    def __init__(self, descriptor: int) -> None:
        """Map an open file."""
        self._life = 0
        self._head = Head(0, -1, "0" * 64)
        self._writing = threading.Lock()
        self._map: mmap.mmap | None = None
        self._use(descriptor)

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Open the file as the writer of `folder`, and forget what it said before.

        Raises:
            LedgerError: The file cannot be made.
        """
        with _made(folder / _FILE) as fd:
            progress = cls(fd)
        progress._begin(None)
        return progress

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Open the file as the feeder; None where no writer has made one."""
        try:
            fd = os.open(folder / _FILE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return cls(fd)
        except (OSError, ValueError):
            return None  # it is being made
        finally:
            os.close(fd)

    def publish(self, head: Head) -> None:
        """Publish the last durable row. For the writer, one thread at a time."""
        with self._writing:
            self._publish(head)

    def keep(self, folder: Path) -> None:
        """Make the file again if it was deleted or replaced. For the writer.

        Otherwise the feeder would not find the journal until the writer starts again.

        Raises:
            LedgerError: The file cannot be made.
        """
        if self.is_of(folder):
            return
        with self._writing:
            fed, head, rebuild = self.fed, self._head, self._words[_REBUILD]
            with _made(folder / _FILE) as fd:
                self._use(fd)
            self._words[_REBUILD] = rebuild
            self._begin(fed)
            self._publish(head)

    def durable(self) -> Durable | None:
        """Return the last durable row that was published, or None."""
        value = self._durable.read()
        if value is None:
            return None
        life, segment, seq, digest = _DURABLE.unpack(value)
        return Durable(life, Head(segment, seq, digest.hex()))

    def report(
        self,
        fed: int | None,
        state: FeederState = FeederState.FEEDING,
        reason: str = "",
    ) -> None:
        """Say how far the archive is. For the feeder, in each of its passes.

        Args:
            fed: The last row that the archive has; -1 for none, None for not known.
            state: How the last try went.
            reason: Why it failed.
        """
        if state is not FeederState.FEEDING:
            text = reason.encode("utf-8", "replace")[:_REASON_LONGEST]
            if text != self._reason.read():
                self._reason.write(text)
        self._words[_FED] = _UNKNOWN if fed is None else fed
        if fed is not None:
            self._words[_HIGHEST] = fed + 1
        self._words[_STATE] = state
        self._words[_BEAT] = time.monotonic_ns()

    def begin_rebuild(self) -> None:
        """Note that the archive lost its rows. For the feeder.

        Until it has them again, only rows that are written from now on count as
        missing.
        """
        durable = self.durable()
        self._words[_REBUILD] = 0 if durable is None else durable.head.seq + 1
        self._words[_HIGHEST] = 0

    def note_opened(self, archived: int) -> bool:
        """Compare what an archive holds with what was fed before. For the feeder.

        An archive that holds less, or the first one of this journal, is rebuilt: see
        `begin_rebuild`. A feeder that starts again in a rebuild goes on with it.

        Args:
            archived: The last row that the archive has; -1 for none.

        Returns:
            Whether a rebuild begins.
        """
        is_less = archived + 1 < self._words[_HIGHEST]
        is_first = archived < 0 and not self._words[_REBUILD]
        if is_less or is_first:
            self.begin_rebuild()
            return True
        return False

    @property
    def rebuild_until(self) -> int:
        """The last row when the last rebuild began; -1 where none did."""
        return int(self._words[_REBUILD]) - 1

    @property
    def fed(self) -> int | None:
        """The last row that the archive has; None while that is not known."""
        fed = int(self._words[_FED])
        return None if fed == _UNKNOWN else fed

    @property
    def is_broken(self) -> bool:
        """Whether the feeder cannot go on without an operator."""
        return bool(self._words[_STATE] == FeederState.BROKEN)

    def reason(self) -> str:
        """Return why the archive is behind; empty when there is no reason known."""
        if self._words[_STATE] != FeederState.FEEDING:
            return (self._reason.read() or b"").decode("utf-8", "replace")
        silent = (time.monotonic_ns() - self._words[_BEAT]) / 1e9
        # A time to come is one of the time before the machine was started.
        if silent < 0 or silent > _SILENT_SECONDS:
            return f"the archive feeder has reported nothing for {abs(silent):.0f} s"
        return ""

    def is_of(self, folder: Path) -> bool:
        """Return whether this is still the file of `folder`."""
        try:
            found = (folder / _FILE).stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def close(self) -> None:
        """Release the file. The values stay as they are."""
        if self._map is None:
            return
        mapped, self._map = self._map, None
        views = self._words, self._bytes
        self._share(memoryview(bytearray(mapped)))
        for view in views:
            view.release()
        mapped.close()

    def _share(self, memory: memoryview) -> None:
        self._bytes = memory
        self._words = memory.cast("q")
        self._durable = _Slots(memory, _DURABLE_AT, _DURABLE_BYTES)
        self._reason = _Slots(memory, _REASON_AT, _REASON_BYTES)

    def _publish(self, head: Head) -> None:
        digest = bytes.fromhex(head.digest)
        self._durable.write(_DURABLE.pack(self._life, head.segment, head.seq, digest))
        self._head = head

    def _begin(self, fed: int | None) -> None:
        self._life = secrets.randbits(64)
        # Both slots: none of the life before may come back.
        for _ in range(2):
            self._publish(Head(0, -1, "0" * 64))
        self.report(fed)

    def _use(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        mapped = mmap.mmap(descriptor, _BYTES)
        self._map, self._file = mapped, (status.st_dev, status.st_ino)
        self._share(memoryview(mapped))


@contextmanager
def _made(path: Path) -> Iterator[int]:
    # The file of a writer, open. Any error in the block is one of the file.
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _BYTES:
                # Not by `ftruncate`: without blocks, a full disk would be SIGBUS.
                os.pwrite(fd, bytes(_BYTES), 0)
            yield fd
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise unusable(path, OSError(str(error))) from error


class _Slots:
    # Two places for one value, written in turn, each with a checksum. A reader that
    # comes in the middle of a write finds the value before it.
    _CHECKSUM = struct.Struct("<I")
    _HEADER = struct.Struct("<QH")

    def __init__(self, memory: memoryview, at: int, size: int) -> None:
        self._memory = memory
        self._places = (at, at + size)
        self._size = size
        self._version = max((version for version, _ in self._whole()), default=0)

    def write(self, value: bytes) -> None:
        self._version += 1
        body = self._HEADER.pack(self._version, len(value)) + value
        data = self._CHECKSUM.pack(crc32(body)) + body
        place = self._places[self._version % 2]
        self._memory[place : place + len(data)] = data

    def read(self) -> bytes | None:
        for _ in range(3):
            if found := self._whole():
                return max(found)[1]
        return None

    def _whole(self) -> list[tuple[int, bytes]]:
        found = []
        for place in self._places:
            data = bytes(self._memory[place : place + self._size])
            (checksum,) = self._CHECKSUM.unpack_from(data)
            begin = self._CHECKSUM.size
            version, length = self._HEADER.unpack_from(data, begin)
            end = begin + self._HEADER.size + length
            if crc32(data[begin:end]) == checksum:
                found.append((version, data[begin + self._HEADER.size : end]))
        return found
