"""The bulkhead: how many threads of a front one issuing CA, or API server, may hold.

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


def shared_places_of(threads: int) -> int:
    """Return how many of a front's threads all API servers may hold: at least one."""
    return max(1, threads // 2)


class Bulkhead:
    """The places of one front at one issuing CA, or at one API server of several.

    Safe between threads.

    Args:
        places: How many calls may be at the CA.
        is_stalled: Tells whether the CA has stopped to answer.
        spare: Further places, of all bulkheads that are given it: they are lent while
            the CA answers.
        now: Returns the seconds of a clock that is never set.
        wait: Waits for a place for some seconds, and returns whether it got one.
    """

    def __init__(
        self,
        places: int,
        is_stalled: Callable[[], bool],
        *,
        spare: threading.Semaphore | None = None,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Semaphore, float], bool] | None = None,
    ) -> None:
        self._free = threading.Semaphore(places)
        self._spare = spare or threading.Semaphore(0)
        self._lock = threading.Lock()
        self._lent = 0
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
        while not self._is_stalled():
            if self._spare.acquire(blocking=False):
                with self._lock:
                    self._lent += 1
                return True
            if self._now() >= until:
                return False
            if self._wait(self._free, _LOOK_SECONDS):
                return True
        return False

    def leave(self) -> None:
        """Give a place back, those that were lent first."""
        with self._lock:
            is_lent = self._lent > 0
            self._lent -= is_lent
        (self._spare if is_lent else self._free).release()


def _wait(free: threading.Semaphore, seconds: float) -> bool:
    return free.acquire(timeout=seconds)
