"""The bulkhead: how many threads of a front one issuing CA, or API server, may hold.

A CA that does not answer holds the thread of each call that asks it. With three
quarters of a front's threads held, the rest still serve the calls of other CAs, and
answer those of this one. While the CA answers, a call waits for a place: a CA that is
slow and well has calls enough to keep every place busy.
"""

import threading
import time
from collections import deque
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
        wait: Waits for a turn for some seconds, and returns whether it has come.
    """

    def __init__(
        self,
        places: int,
        is_stalled: Callable[[], bool],
        *,
        spare: threading.Semaphore | None = None,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._free = places
        self._spare = spare or threading.Semaphore(0)
        self._lock = threading.Lock()
        self._lent = 0
        self._queue: deque[threading.Event] = deque()
        self._is_stalled = is_stalled
        self._now = now
        self._wait = wait

    def enter(self, until: float) -> bool:
        """Take a place. Waits for one while the CA answers, at most to `until`.

        Returns:
            Whether there is a place; `leave` gives it back.
        """
        with self._lock:
            if self._taken():
                return True
            if self._is_stalled() or self._now() >= until:
                return False
            turn = threading.Event()
            self._queue.append(turn)
        # A turn is kept while the CA is looked at: who has waited longest is next.
        while not self._wait(turn, _LOOK_SECONDS):
            with self._lock:
                if turn.is_set():
                    return True
                is_lent = self._borrowed()
                if is_lent or self._is_stalled() or self._now() >= until:
                    self._queue.remove(turn)
                    return is_lent
        return True

    def leave(self) -> None:
        """Give a place back: to who waits for one, else those that were lent first.

        A CA that stalls keeps none that was lent.
        """
        with self._lock:
            if self._queue and not (self._lent and self._is_stalled()):
                self._queue.popleft().set()
            elif self._lent:
                self._lent -= 1
                self._spare.release()
            else:
                self._free += 1

    def _taken(self) -> bool:
        if self._free:
            self._free -= 1
            return True
        return not self._queue and self._borrowed()

    def _borrowed(self) -> bool:
        is_lent = not self._is_stalled() and self._spare.acquire(blocking=False)
        self._lent += is_lent
        return is_lent
