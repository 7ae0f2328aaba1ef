"""Which calls run, which wait, and which are refused at once.

Work that cannot be finished in time must not be begun: without a bound, an overloaded
CA signs certificates that nobody waits for any more. The bound is on the number of
calls and on the time they would wait, and what is above it is answered by a thread of
its own, so that a refusal does not queue behind the work.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_SWEEP_SECONDS = 0.1
_WEIGHT = 0.05
"""Of the newest call in the mean: some 20 calls decide."""


class Gate:
    """Counts the calls under way and says when it is too many.

    Args:
        in_flight: Calls that may wait or run at a time.
        queue_seconds: The longest that a call may wait.
        threads: How many calls run at a time.
    """

    def __init__(self, in_flight: int, queue_seconds: float, threads: int) -> None:
        self.queue_seconds = queue_seconds
        self._in_flight = in_flight
        self._threads = threads
        self._waiting = 0
        self._running = 0
        self._mean_seconds = 0.0
        self._changed = threading.Condition(threading.Lock())

    @property
    def count(self) -> int:
        """Calls that wait or run."""
        return self._waiting + self._running

    def excess(self) -> str:
        """Return why a call that comes now is one too many, or an empty text.

        The wait is foreseen from the calls before it and what a call takes on average.
        """
        if self.count >= self._in_flight:
            return "in_flight"
        wait = self._waiting * self._mean_seconds / self._threads
        return "queue" if wait > self.queue_seconds else ""

    def arrived(self) -> None:
        """Count a call that will wait."""
        with self._changed:
            self._waiting += 1

    def started(self) -> None:
        """Count a call as running."""
        with self._changed:
            self._waiting -= 1
            self._running += 1

    def finished(self, seconds: float | None) -> None:
        """Count a call out that ran for `seconds`; None if it was not worked on."""
        with self._changed:
            self._running -= 1
            if seconds is not None:
                self._mean_seconds += (seconds - self._mean_seconds) * _WEIGHT
            if not self.count:
                self._changed.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no call waits or runs; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.count, timeout)


class CallPool(ThreadPoolExecutor):
    """Runs calls; what has waited too long is run by a thread of its own.

    The code of a call looks at its age first, so running an overdue one refuses it.

    Args:
        gate: Told of every call.
        threads: How many calls run at a time.
    """

    def __init__(self, gate: Gate, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="call")
        self._gate = gate
        self._tickets: deque[_Ticket] = deque()
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="overdue-calls")
        self._sweeper.start()

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        """See `Executor.submit`."""
        ticket = _Ticket(self._gate, lambda: fn(*args, **kwargs))
        self._gate.arrived()
        self._tickets.append(ticket)
        try:
            return super().submit(ticket.run)
        except RuntimeError:
            ticket.abandon()
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """See `Executor.shutdown`."""
        self._closing.set()
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._sweeper.join()

    def _sweep(self) -> None:
        # The only one that takes from the left, so what is first stays first.
        tickets = self._tickets
        while not self._closing.wait(_SWEEP_SECONDS):
            while tickets and (tickets[0].is_claimed or tickets[0].is_overdue):
                tickets.popleft().run()


class _Ticket:
    # A call in the queue. Whoever claims it first runs it.
    __slots__ = ("_claim", "_gate", "_work", "arrived")

    def __init__(self, gate: Gate, work: Callable[[], object]) -> None:
        self.arrived = time.monotonic()
        self._gate = gate
        self._work = work
        self._claim = [None]

    @property
    def is_claimed(self) -> bool:
        return not self._claim

    @property
    def is_overdue(self) -> bool:
        return time.monotonic() - self.arrived > self._gate.queue_seconds

    def run(self) -> None:
        if not self._take():
            return
        self._gate.started()
        # A refusal takes no time, and says nothing of how long the work takes.
        was_overdue = self.is_overdue
        began = time.monotonic()
        try:
            self._work()
        finally:
            self._gate.finished(None if was_overdue else time.monotonic() - began)

    def abandon(self) -> None:
        if self._take():
            self._gate.started()
            self._gate.finished(None)

    def _take(self) -> bool:
        try:
            self._claim.pop()  # atomic: one thread gets it
        except IndexError:
            return False
        return True
