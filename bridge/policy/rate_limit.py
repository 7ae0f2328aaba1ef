"""How often one caller may ask: a rate, and a burst that covers restarts.

A deployment that restarts asks once per pod, all pods with one identity, at once: that
is what the burst is for. What comes again and again above the rate is a loop somewhere,
and would fill ledger and disk.
"""

from dataclasses import dataclass

from bridge.config import CeilingConfig, LimitsConfig
from bridge.errors import OverloadedError
from bridge.identity.caller import Caller
from bridge.policy.buckets import Buckets, OwnBuckets

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
