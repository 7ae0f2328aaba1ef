"""When each bucket is full again: of one process, or of all workers together."""

import fcntl
import mmap
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from bridge.errors import ConfigError

_SLOT = struct.Struct("=Qd")
"""The hash of a key, and when its bucket is full again."""
_SLOTS = 1 << 17
_PROBES = 8


class Buckets(Protocol):
    """Where a ceiling keeps what callers have used up. Safe between threads."""

    def take(self, key: str, now: float, step: float, slack: float) -> bool:
        """Take one from the bucket of `key`; False, and nothing taken, if it is empty.

        Args:
            key: Whose bucket.
            now: Seconds of a clock that never goes back.
            step: Seconds in which one comes back.
            slack: Seconds in which an empty bucket fills up.
        """


class OwnBuckets:
    """Those of this process.

    Args:
        most_keys: Of more keys than this, those that were silent longest are forgotten,
            which can only let a call pass.
    """

    def __init__(self, most_keys: int) -> None:
        self._most_keys = most_keys
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str, now: float, step: float, slack: float) -> bool:
        """See `Buckets.take`."""
        with self._lock:
            full_at = max(self._full_at.get(key, now), now) + step
            if full_at - now > slack:
                return False
            self._full_at[key] = full_at
            self._full_at.move_to_end(key)
            if len(self._full_at) > self._most_keys:
                self._full_at.popitem(last=False)
            return True


class SharedBuckets:
    """Those of all workers, in a file that they map into their memory.

    Each hash has a few places. Where all are taken by buckets that are not full, a
    call passes uncounted.

    Args:
        path: Made if it is absent; private to the bridge.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ConfigError: It cannot be made, or there is no room for it.
        """
        self._threads = threading.Lock()
        size = (_SLOTS + _PROBES) * _SLOT.size
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                with self._alone():
                    _fill(self._fd, size)
                self._slots = mmap.mmap(self._fd, size)
            except OSError:
                os.close(self._fd)
                raise
        except OSError as error:
            raise ConfigError(
                f"limits: {path}: what callers have used up cannot be kept there: "
                f"{error.strerror} (it takes {size / 2**20:.0f} MiB; TMPDIR can name "
                "another folder)"
            ) from error

    def take(self, key: str, now: float, step: float, slack: float) -> bool:
        """See `Buckets.take`; `now` has to be of a clock that all processes share."""
        # Never 0, which is a slot that nobody had.
        digest = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) | 1
        first = (digest >> 1) % _SLOTS
        with self._alone():
            free = None
            for index in range(first, first + _PROBES):
                found, full_at = _SLOT.unpack_from(self._slots, index * _SLOT.size)
                if found == digest:
                    return self._take(
                        index, digest, max(full_at, now) + step, now, slack
                    )
                if free is None and full_at <= now:
                    free = index
            return free is None or self._take(free, digest, now + step, now, slack)

    def _take(
        self, index: int, digest: int, full_at: float, now: float, slack: float
    ) -> bool:
        if full_at - now > slack:
            return False
        _SLOT.pack_into(self._slots, index * _SLOT.size, digest, full_at)
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # A lock of the file is one of the process: its threads have to take turns, too.
        # It ends with the process, however that ends.
        with self._threads:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _fill(fd: int, size: int) -> None:
    # Written, not only made that long: a place that finds no room on a full disk when
    # it is first used would end the process, without an error (SIGBUS).
    before = os.fstat(fd).st_size
    try:
        while (filled := os.fstat(fd).st_size) < size:
            os.pwrite(fd, bytes(size - filled), filled)
    except OSError:
        # What else needs the disk gets its last room back.
        os.ftruncate(fd, before)
        raise
