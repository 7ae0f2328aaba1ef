"""How often one caller may ask: a rate, and a burst that covers restarts.

A deployment that restarts asks once per pod, all pods with one identity, at once: that
is what the burst is for. What comes again and again above the rate is a loop somewhere,
and would fill ledger and disk.
"""

import fcntl
import mmap
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from bridge.config import CeilingConfig, LimitsConfig
from bridge.errors import ConfigError, OverloadedError
from bridge.identity.caller import Caller

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


CEILING_RULES = frozenset({"overload.identity", "overload.cluster"})
_MOST_KEYS = 100_000
_CLOCK_SECONDS = 2.0**-24
"""60 ns: the most that a sum with the time is off, in the first 34 years of a host."""


class Ceiling:
    """A token bucket per key, kept as one number: when the bucket will be full again.

    Args:
        rate: Calls a second, on average.
        burst: Calls that may come at once; at least 1.
        most_keys: Of more keys than this, those that were silent longest are forgotten,
            which can only let a call pass.
        shared: Holds the buckets, in place of this process alone.

    Source:
        The generic cell rate algorithm, ITU-T I.371.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        most_keys: int = _MOST_KEYS,
        shared: Buckets | None = None,
    ) -> None:
        self._step = 1.0 / rate
        # A small grace for each step: sums of steps are not exact, and neither is a sum
        # with the time, whose last digit is worth the more the longer the host is up.
        self._slack = burst * (self._step * (1 + 1e-9) + _CLOCK_SECONDS)
        self._buckets = shared or OwnBuckets(most_keys)
        # What is shared is shared with ceilings of other kinds and sizes.
        self._prefix = f"{rate} {burst} " if shared else ""

    def admits(self, key: str, now: float) -> bool:
        """Count a call of `key`; False, and not counted, if it is one too many.

        Args:
            key: Whose bucket.
            now: Seconds of a clock that never goes back.
        """
        return self._buckets.take(self._prefix + key, now, self._step, self._slack)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The ceilings of one configuration; None where there is none."""

    per_cluster: Ceiling | None
    per_identity: Ceiling | None

    @classmethod
    def of(cls, config: LimitsConfig, shared: Buckets | None = None) -> "Ceilings":
        """Make them, all buckets full, or as those that share them have left them."""
        return cls(
            _ceiling(config.per_cluster, shared),
            _ceiling(config.per_identity, shared),
        )

    def require(self, front: str, caller: Caller, now: float) -> None:
        """Count a call of `caller`.

        Args:
            front: That the call came by. One account has an identity in each mesh,
                and a restart in one of them is none in the other.
            caller: Authenticated: nobody can spend what is another's.
            now: `time.monotonic()`.

        Raises:
            OverloadedError: It is one too many (`overload.identity`,
                `overload.cluster`); the caller should come back later.
        """
        identity = f"{front} {caller.spiffe_id}"
        if self.per_identity and not self.per_identity.admits(identity, now):
            raise OverloadedError(
                "this identity asks too often", rule="overload.identity"
            )
        if self.per_cluster and not self.per_cluster.admits(caller.cluster, now):
            raise OverloadedError(
                "this cluster asks too often", rule="overload.cluster"
            )


def _ceiling(config: CeilingConfig | None, shared: Buckets | None) -> Ceiling | None:
    return Ceiling(config.rate, config.burst, shared=shared) if config else None
