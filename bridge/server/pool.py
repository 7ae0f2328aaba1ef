"""Which calls run, which wait, and which are refused at once.

Work that cannot be finished in time must not be begun: without a bound, an overloaded
CA signs certificates that nobody waits for any more. The bound is on the time that a
call has waited, and what is above it is answered by a thread of its own, so that a
refusal does not queue behind the work.

Nobody is refused sooner, as long as there is room for the call: Istio's client asks
five times and waits 1.5 s in all between, so refusals at once would use up the attempts
of a whole mesh before it can be served.

There is no lock of ours on the way of a call: several threads would stand in line for
it. Adding to and taking from a dict are atomic, and that is all that is needed.
"""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from queue import SimpleQueue
from typing import Any

_SWEEP_SECONDS = 0.1
_CROWDED = 4
"""So many calls that wait for each thread are a crowd."""
_SWITCH_SECONDS = sys.getswitchinterval()
_CROWDED_SWITCH_SECONDS = 0.0005
"""How long a thread may run Python while others want to."""


class SteadyPool(ThreadPoolExecutor):
    """Threads that are all there from the start, and a `submit` that never raises.

    grpc submits on the one thread that serves a listener. An error there, such as
    "can't start new thread", would end that thread, and with it the server.

    Args:
        threads: How many.
        name: What their names begin with.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._width = threads

    def start(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        # A thread is started where none is idle, and none is while all wait for all.
        together = threading.Barrier(self._width)
        try:
            begin = super().submit
            waiting = [begin(together.wait) for _ in range(self._width)]
        except RuntimeError:
            together.abort()
            self.shutdown(wait=False)
            raise
        wait_for(waiting)

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        """See `Executor.submit`; what cannot be run is in the future."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as error:  # the pool is closed
            return _refused(error)

    def close(self, timeout: float) -> bool:
        """Take no more, and wait for what runs; False if that takes longer."""
        self.shutdown(wait=False)
        until = time.monotonic() + timeout
        threads = tuple(self._threads)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


class CallPool(SteadyPool):
    """Runs calls; what has waited too long is run by a thread of its own.

    The code of a call looks at its age first, so running an overdue one refuses it.

    Args:
        threads: How many calls run at a time.
        in_flight: How many may wait or run at a time.
        queue_seconds: The longest that a call may wait.
    """

    def __init__(self, threads: int, in_flight: int, queue_seconds: float) -> None:
        super().__init__(threads, "call")
        self.queue_seconds = queue_seconds
        self.in_flight = in_flight
        self._waiting: dict[_Ticket, None] = {}
        self._live: dict[_Ticket, None] = {}
        self._is_crowded = False
        self._is_idle_wanted = False
        self._idle = threading.Event()
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="overdue-calls")

    @property
    def count(self) -> int:
        """Calls that wait or run."""
        return len(self._live)

    def start(self) -> None:
        """Start every thread, and begin to look for overdue calls.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        super().start()
        self._sweeper.start()

    def excess(self) -> str:
        """Return why a call that comes now is one too many, or an empty text."""
        return "in_flight" if len(self._live) >= self.in_flight else ""

    def is_overdue(self, arrived: float) -> bool:
        """Say whether a call that came at `arrived` has waited too long."""
        return time.monotonic() - arrived > self.queue_seconds

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        """See `SteadyPool.submit`."""
        ticket = _Ticket(fn, args, kwargs)
        self._live[ticket] = self._waiting[ticket] = None
        try:
            return ThreadPoolExecutor.submit(self, self._run, ticket)
        except RuntimeError as error:  # the pool is closed
            self._waiting.pop(ticket, None)
            self._live.pop(ticket, None)
            return _refused(error)

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no call waits or runs; False if that takes longer."""
        self._is_idle_wanted = True
        return not self._live or self._idle.wait(timeout)

    def close(self, timeout: float) -> bool:
        """See `SteadyPool.close`."""
        ended = super().close(timeout)
        if self._sweeper.ident is not None:
            self._sweeper.join(timeout)
        return ended and not self._sweeper.is_alive()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """See `Executor.shutdown`."""
        self._closing.set()
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait and self._sweeper.ident is not None:
            self._sweeper.join()

    def _run(self, ticket: "_Ticket") -> None:
        if self._waiting.pop(ticket, ticket) is ticket:
            return  # the sweeper had it
        try:
            ticket.fn(*ticket.args, **ticket.kwargs)
        finally:
            del self._live[ticket]
            if self._is_idle_wanted and not self._live:
                self._idle.set()

    def _sweep(self) -> None:
        while not self._closing.wait(_SWEEP_SECONDS):
            self._let_listener_in()
            for ticket in tuple(self._waiting):  # in the order that they came
                if not self.is_overdue(ticket.arrived):
                    break
                self._run(ticket)
        sys.setswitchinterval(_SWITCH_SECONDS)

    def _let_listener_in(self) -> None:
        # One thread takes in all calls and sends all refusals. It stands in line for
        # Python's lock behind every thread that works: with turns of 5 ms, calls would
        # grow old where nobody looks at their age.
        is_crowded = len(self._waiting) > self._width * _CROWDED
        if is_crowded is not self._is_crowded:
            self._is_crowded = is_crowded
            turn = _CROWDED_SWITCH_SECONDS if is_crowded else _SWITCH_SECONDS
            sys.setswitchinterval(turn)


class Turns:
    """So many threads may be inside at a time; a semaphore without Python's own lock.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)


def _refused(error: RuntimeError) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class _Ticket:
    # A call in the queue. Whoever takes it out first runs it.
    __slots__ = ("args", "arrived", "fn", "kwargs")

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.arrived = time.monotonic()
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
