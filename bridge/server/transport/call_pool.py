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

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from queue import SimpleQueue
from typing import Any

from bridge.server.transport.message_reader import MessageReader
from bridge.system.background import BackgroundLoop

_SWEEP_SECONDS = 0.1
_CROWDED = 4
"""So many calls that wait for each thread are a crowd."""
_SWITCH_SECONDS = sys.getswitchinterval()
_CROWDED_SWITCH_SECONDS = 0.0005
_log = logging.getLogger(__name__)


class SwitchInterval:
    """Counts what is crowded: the interval is the process's, and pools share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def enter(self) -> None:
        """Count one more, and let threads take short turns."""
        self._change(1)

    def leave(self) -> None:
        """Count one less; turns are the usual ones when it was the last."""
        self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            self._count += by
            turn = _CROWDED_SWITCH_SECONDS if self._count else _SWITCH_SECONDS
            sys.setswitchinterval(turn)


SWITCH_INTERVAL = SwitchInterval()
"""Those of this process."""


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

    @property
    def waiting(self) -> int:
        """What no thread has begun with."""
        return self._work_queue.qsize()

    def close(self, timeout: float) -> bool:
        """Take no more, and wait for what runs; False if that takes longer."""
        self.shutdown(wait=False)
        return _joined(tuple(self._threads), timeout)


class CallPool(ThreadPoolExecutor):
    """Runs calls; what has waited too long is run by a thread of its own.

    The code of a call looks at its age first, so running an overdue one refuses it.

    It is an executor because grpc takes no other pool, and has threads of its own:
    what an executor does for the future of a call, which nobody asks for, costs more
    than a hundredth of the call.

    Args:
        threads: How many calls run at a time.
        in_flight: How many may wait or run at a time.
        queue_seconds: The longest that a call may wait.
        reader: Where calls are until they can be run.
    """

    def __init__(
        self,
        threads: int,
        in_flight: int,
        queue_seconds: float,
        reader: MessageReader | None = None,
    ) -> None:
        super().__init__(1)
        self._width = threads
        self.queue_seconds = queue_seconds
        self.in_flight = in_flight
        self._reader = reader
        self._queue: SimpleQueue[_Ticket | None] = SimpleQueue()
        self._waiting: dict[_Ticket, None] = {}
        if reader is not None:
            reader.waiting = self._waiting.__len__
        self._live: dict[_Ticket, None] = {}
        self._is_crowded = False
        self._is_idle_wanted = False
        self._idle = threading.Event()
        self._closing = threading.Event()
        # Daemons: work that hangs holds up no end.
        self._workers = [
            threading.Thread(target=self._work, name=f"call_{number}", daemon=True)
            for number in range(threads)
        ]
        self._sweeper = BackgroundLoop(
            "overdue-calls", self._look, _SWEEP_SECONDS, at_end=self._settle_turns
        )

    @property
    def count(self) -> int:
        """Calls that wait or run."""
        return len(self._live)

    def start(self) -> None:
        """Start every thread, and begin to look for overdue calls.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        try:
            for thread in self._workers:
                thread.start()
            self._sweeper.start()
        except RuntimeError:
            self._end()
            raise

    def excess(self) -> str:
        """Return why a call that comes now is one too many, or an empty text."""
        return "in_flight" if len(self._live) >= self.in_flight else ""

    def is_overdue(self, since: float) -> bool:
        """Say whether a call that waits since then has waited too long."""
        return time.monotonic() - since > self.queue_seconds

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        """Run a call, once its message is there where there are reader.

        Returns:
            Of no use: it says nothing, as grpc asks it nothing.
        """
        if self._closing.is_set():
            return _refused(RuntimeError("cannot run a call after the end"))
        ticket = _Ticket(fn, args, kwargs)
        self._live[ticket] = None
        reader = self._reader
        if reader is None or not reader.begin(args, ticket.then(self._queued)):
            self._queued(ticket, time.monotonic())
        return _UNOBSERVED

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no call waits or runs; False if that takes longer."""
        self._is_idle_wanted = True
        return not self._live or self._idle.wait(timeout)

    def close(self, timeout: float) -> bool:
        """Take no more, and wait for what runs; False if that takes longer."""
        self._end()
        return self._ended(timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """See `Executor.shutdown`."""
        self._end()
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._ended(math.inf)

    def _end(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._sweeper.stop()
            for _ in range(self._width):
                self._queue.put(None)

    def _ended(self, timeout: float) -> bool:
        until = time.monotonic() + timeout
        is_over = _joined(self._workers, timeout)
        left = None if timeout == math.inf else max(0.0, until - time.monotonic())
        return self._sweeper.close(left) and is_over

    def _settle_turns(self) -> None:
        if self._is_crowded:
            SWITCH_INTERVAL.leave()

    def _queued(self, ticket: "_Ticket", since: float) -> None:
        ticket.since = since
        self._waiting[ticket] = None
        self._queue.put(ticket)

    def _work(self) -> None:
        while (ticket := self._queue.get()) is not None:
            self._run(ticket)
            del ticket  # what it holds is not held until the next one comes

    def _run(self, ticket: "_Ticket") -> None:
        if self._waiting.pop(ticket, ticket) is ticket:
            return  # the sweeper had it
        if self._reader is not None:
            self._reader.admit_next()
        try:
            ticket.fn(*ticket.args, **ticket.kwargs)
        except BaseException:  # noqa: BLE001 - whatever it is, the thread must not end
            _log.exception("a call broke off")
        finally:
            del self._live[ticket]
            if self._is_idle_wanted and not self._live:
                self._idle.set()

    def _look(self) -> None:
        self._let_listener_in()
        if self._reader is not None:
            self._reader.release_overdue(self.is_overdue)
        # In the order that they came. A copy is atomic; to read them one by one is not,
        # and a collection on the way may let other threads in.
        for ticket in self._waiting.copy():
            if not self.is_overdue(ticket.since):
                break
            self._run(ticket)

    def _let_listener_in(self) -> None:
        # One thread takes in all calls and sends all refusals. It stands in line for
        # Python's lock behind every thread that works: with turns of 5 ms, calls would
        # grow old where nobody looks at their age.
        is_crowded = len(self._waiting) > self._width * _CROWDED
        if is_crowded is not self._is_crowded:
            self._is_crowded = is_crowded
            (SWITCH_INTERVAL.enter if is_crowded else SWITCH_INTERVAL.leave)()


class _Unobserved(Future[Any]):
    # grpc counts the calls under way with it, for a bound that is not set.
    def add_done_callback(self, fn: Callable[["Future[Any]"], object]) -> None:
        pass


_UNOBSERVED = _Unobserved()


def _joined(threads: Collection[threading.Thread], timeout: float) -> bool:
    # What was not started has ended.
    until = time.monotonic() + timeout
    for thread in threads:
        if thread.ident is not None:
            left = until - time.monotonic()
            thread.join(None if left == math.inf else max(0.0, left))
    return not any(thread.is_alive() for thread in threads)


def _refused(error: RuntimeError) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class _Ticket:
    # A call. Whoever takes it out of the queue first runs it.
    __slots__ = ("args", "fn", "kwargs", "since")

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.since = 0.0
        """From when on it has waited for us."""
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def then(
        self, run: "Callable[[_Ticket, float], None]"
    ) -> Callable[[tuple[Any, ...], float], None]:
        """Return what has it run with other arguments."""

        def ready(args: tuple[Any, ...], since: float) -> None:
            self.args = args
            run(self, since)

        return ready
