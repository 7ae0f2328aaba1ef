"""The bulkhead: how many threads of a front one issuing CA may hold.

A CA that does not answer holds the thread of each call that asks it. With three
quarters of a front's threads held, the rest still serve the calls of other CAs, and
answer those of this one. While the CA answers, a call waits for a place: a CA that is
slow and well has calls enough to keep every place busy.
"""

import threading
import time
from collections.abc import Callable

STALL_SECONDS = 0.5
"""An issuing CA stalls when none of its calls has returned for so long."""
_LOOK_SECONDS = 0.05


def places_of(threads: int) -> int:
    """Return how many of a front's threads one issuing CA may hold: at least one."""
    return max(1, threads * 3 // 4)


class Bulkhead:
    """The places of one front at one issuing CA. Safe between threads.

    Args:
        places: How many calls may be at the CA.
        is_stalled: Tells whether the CA has stopped to answer.
        now: Returns the seconds of a clock that is never set.
        wait: Waits for a place for some seconds, and returns whether it got one.
    """

    def __init__(
        self,
        places: int,
        is_stalled: Callable[[], bool],
        *,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Semaphore, float], bool] | None = None,
    ) -> None:
        self._free = threading.Semaphore(places)
        self._is_stalled = is_stalled
        self._now = now
        self._wait = wait or _wait

    def enter(self, until: float) -> bool:
        """Take a place. Waits for one while the CA answers, at most to `until`.

        Returns:
            Whether there is a place; `leave` gives it back.
        """
        if self._free.acquire(blocking=False):
            return True
        while not self._is_stalled() and self._now() < until:
            if self._wait(self._free, _LOOK_SECONDS):
                return True
        return False

    def leave(self) -> None:
        """Give a place back."""
        self._free.release()


def _wait(free: threading.Semaphore, seconds: float) -> bool:
    return free.acquire(timeout=seconds)
