"""How often one caller may ask: a rate, and a burst that covers restarts.

A deployment that restarts asks once per pod, all pods with one identity, at once: that
is what the burst is for. What comes again and again above the rate is a loop somewhere,
and would fill ledger and disk.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from bridge.config import CeilingConfig, LimitsConfig
from bridge.errors import OverloadedError
from bridge.identity.caller import Caller

CEILING_RULES = frozenset({"overload.identity", "overload.cluster"})
_MOST_KEYS = 100_000


class Ceiling:
    """A token bucket per key, kept as one number: when the bucket will be full again.

    Args:
        rate: Calls a second, on average.
        burst: Calls that may come at once; at least 1.
        most_keys: Of more keys than this, those that were silent longest are forgotten,
            which can only let a call pass.

    Source:
        The generic cell rate algorithm, ITU-T I.371.
    """

    def __init__(self, rate: float, burst: int, most_keys: int = _MOST_KEYS) -> None:
        self._step = 1.0 / rate
        self._slack = self._step * burst
        self._most_keys = most_keys
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def admits(self, key: str, now: float) -> bool:
        """Count a call of `key`; False, and not counted, if it is one too many.

        Args:
            key: Whose bucket.
            now: Seconds of a clock that never goes back.
        """
        with self._lock:
            full_at = max(self._full_at.get(key, now), now) + self._step
            # A small grace: sums of steps are not exact.
            if full_at - now > self._slack * (1 + 1e-9):
                return False
            self._full_at[key] = full_at
            self._full_at.move_to_end(key)
            if len(self._full_at) > self._most_keys:
                self._full_at.popitem(last=False)
            return True


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The ceilings of one configuration; None where there is none."""

    per_cluster: Ceiling | None
    per_identity: Ceiling | None

    @classmethod
    def of(cls, config: LimitsConfig) -> "Ceilings":
        """Make them, all buckets full."""
        return cls(_ceiling(config.per_cluster), _ceiling(config.per_identity))

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


def _ceiling(config: CeilingConfig | None) -> Ceiling | None:
    return Ceiling(config.rate, config.burst) if config else None
