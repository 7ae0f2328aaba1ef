"""The time budget of one call: one deadline, handed to each step."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bridge.errors import OverloadedError

RESERVE_SECONDS = 0.12
"""Below this the answer would be late: 100 ms of work and 20 ms to return.

Source:
    Boulder, grpc/interceptors.go.
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of a call's time, and whether anybody still waits for it."""

    deadline: float
    """A value of `time.monotonic()`."""
    is_active: Callable[[], bool] = lambda: True

    @classmethod
    def of_seconds(cls, seconds: float) -> "Budget":
        """Start a budget of `seconds` for work that nobody called for."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Return the seconds that are left; negative once they are over."""
        return self.deadline - time.monotonic()

    def require(self) -> None:
        """Return if the next expensive step is worth its cost.

        Raises:
            OverloadedError: The caller has gone, or the answer would be late.
        """
        if self.remaining() < RESERVE_SECONDS:
            raise OverloadedError(
                "the call's time is nearly spent", rule="overload.deadline"
            )
        if not self.is_active():
            raise OverloadedError("the caller has gone", rule="overload.gone")
