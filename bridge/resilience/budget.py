"""The time budget of one call: one deadline for all its steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bridge.errors import OverloadedError

_WORK_SECONDS = 0.1
_RETURN_SECONDS = 0.02
RESERVE_SECONDS = _WORK_SECONDS + _RETURN_SECONDS
"""With less than this left, the answer would be late: 100 ms of work, 20 ms to return.

Source:
    Boulder, grpc/interceptors.go.
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """The deadline of a call, and whether its caller still waits."""

    deadline: float
    """A value of `time.monotonic()`."""
    is_active: Callable[[], bool] = lambda: True

    @classmethod
    def of_seconds(cls, seconds: float) -> "Budget":
        """Start a budget of `seconds` for the bridge's own work."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Return the seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def part(self, parts: int = 1) -> float:
        """Return the seconds for one attempt, with the time to return taken off.

        Args:
            parts: How many attempts share the time that is left. One of several gets
                at least the time for useful work, as long as there is as much.
        """
        whole = self.remaining() - _RETURN_SECONDS
        return max(whole / parts, min(whole, _WORK_SECONDS))

    def require(self) -> None:
        """Refuse the next expensive step if its result would be useless.

        Raises:
            OverloadedError: The caller has gone, or the answer would be late.
        """
        if self.remaining() < RESERVE_SECONDS:
            raise OverloadedError(
                "the call's time is nearly spent", rule="overload.deadline"
            )
        if not self.is_active():
            raise OverloadedError("the caller has gone", rule="overload.gone")
