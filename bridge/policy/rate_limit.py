"""Limit how often one caller may ask: a rate, and a burst that covers restarts.

When a deployment restarts, each of its pods asks once, at the same moment and with one
identity: the burst allows that. Calls that stay above the rate come from a loop, and
would fill ledger and disk.
"""

import fcntl
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

from bridge.config import LimitsConfig
from bridge.errors import ConfigError, OverloadedError
from bridge.identity.caller import Caller

_SLOT = struct.Struct("=Qd")
"""The hash of a key, and when its bucket is full again."""
_SLOTS = 1 << 17
_PROBES = 8
RATE_LIMIT_RULES = frozenset(
    {"overload.identity", "overload.cluster", "overload.requester"}
)
_CLOCK_SECONDS = 2.0**-24
"""60 ns: the largest error of a sum with the time, in the first 34 years of a host."""


class SharedBuckets:
    """The buckets of all workers, in a file that each maps into its memory.

    Each hash has a few slots. If buckets that are not full occupy all of them, a call
    is admitted and not counted.

    Args:
        path: Created if absent; private to the bridge. None: the only process has them.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open the file.

        Raises:
            ConfigError: The file cannot be created, or the disk has no room for it.
        """
        self._threads = threading.Lock()
        size = (_SLOTS + _PROBES) * _SLOT.size
        try:
            if path is None:
                self._fd = os.memfd_create("rate-limits")
            else:
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
        weakref.finalize(self, os.close, self._fd)

    def take(self, key: str, now: float, step: float, slack: float) -> bool:
        """Take one token from the bucket of `key`; return False if it is empty.

        Args:
            key: Whose bucket.
            now: Seconds of a clock that never goes back; all processes share it.
            step: Seconds until one token comes back.
            slack: Seconds until an empty bucket is full.
        """
        # Never 0, which is an unused slot.
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
        # The lock of the file belongs to the process, so its threads need a lock of
        # their own. The kernel releases the file's lock when the process ends.
        with self._threads:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _fill(fd: int, size: int) -> None:
    # Written, and not only extended: on a full disk, the first use of a page without a
    # block would end the process without an error (SIGBUS).
    before = os.fstat(fd).st_size
    try:
        while (filled := os.fstat(fd).st_size) < size:
            os.pwrite(fd, bytes(size - filled), filled)
    except OSError:
        # Other writers need the disk's last room.
        os.ftruncate(fd, before)
        raise


class RateLimit:
    """Limits calls by a token bucket per key.

    A bucket is kept as one number: the time at which it will be full again.

    Args:
        rate: Calls a second, on average.
        burst: Calls that may come at once; at least 1.
        buckets: Holds the buckets of all workers, also for other rate limits.

    Source:
        The generic cell rate algorithm, ITU-T I.371.
    """

    def __init__(self, rate: float, burst: int, buckets: SharedBuckets) -> None:
        self._step = 1.0 / rate
        # A small tolerance for each step: sums of floats are not exact, and the error
        # of a sum with the time grows with the uptime of the host.
        self._slack = burst * (self._step * (1 + 1e-9) + _CLOCK_SECONDS)
        self._buckets = buckets
        # Rate limits of another kind or size use the same buckets.
        self._prefix = f"{rate} {burst} "

    def admits(self, key: str, now: float) -> bool:
        """Count a call of `key`; return False, uncounted, if it exceeds the limit.

        Args:
            key: Whose bucket.
            now: Seconds of a clock that never goes back.
        """
        return self._buckets.take(self._prefix + key, now, self._step, self._slack)


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The rate limits of one configuration; None where there is none."""

    per_cluster: RateLimit | None
    per_identity: RateLimit | None

    @classmethod
    def of(cls, config: LimitsConfig, path: Path | None = None) -> Self:
        """Create the rate limits; buckets are full, or as other workers left them.

        Args:
            config: Section `limits` of the configuration.
            path: See `SharedBuckets`.

        Raises:
            ConfigError: There is no room for the buckets.
        """
        cluster, identity = config.per_cluster, config.per_identity
        if not (cluster or identity):
            return cls(None, None)
        buckets = SharedBuckets(path)
        return cls(
            RateLimit(cluster.rate, cluster.burst, buckets) if cluster else None,
            RateLimit(identity.rate, identity.burst, buckets) if identity else None,
        )

    def require_requester(self, front: str, requester: Caller, now: float) -> None:
        """Count a call of a caller that asks for another workload.

        Its own pod is what counts: the proxies of all nodes share one identity.

        Args:
            front: See `require`.
            requester: Authenticated by its own credential.
            now: `time.monotonic()`.

        Raises:
            OverloadedError: The call exceeds the limit (`overload.requester`); the
                caller should try again later.
        """
        key = f"{front} {requester.spiffe_id} {requester.pod.uid}"
        if self.per_identity and not self.per_identity.admits(key, now):
            raise OverloadedError(
                "this pod asks too often for other workloads", rule="overload.requester"
            )

    def require(self, front: str, caller: Caller, now: float) -> None:
        """Count a call of `caller`.

        Args:
            front: The front of the call. One account has an identity in each mesh, and
                each identity has a bucket.
            caller: Authenticated, so no caller can use up another's bucket.
            now: `time.monotonic()`.

        Raises:
            OverloadedError: The call exceeds a limit (`overload.identity`,
                `overload.cluster`); the caller should try again later.
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
