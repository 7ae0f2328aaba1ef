"""Pools of threads: which calls run, which wait, and which are refused.

Without a bound, an overloaded CA signs certificates whose callers have given up. The
bound is on the time that a call has waited. A thread of its own answers the calls above
it, so that a refusal does not wait behind the work.

As long as there is room for a call, it is not refused sooner. Istio's client tries five
times, with 1.5 s of waiting in all. Immediate refusals would use up the attempts of a
whole mesh before it can be served.

A call takes no lock of this module, since several threads would wait for it. Adding to
a dict and removing from it are atomic, which is enough.
"""

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from bridge.server.transport.message_reader import MessageReader
from bridge.system.background import BackgroundLoop, joined, refused

_SWEEP_SECONDS = 0.1
_CROWDED = 4
"""The pool is crowded when more calls than this wait for each thread."""
_SWITCH_SECONDS = sys.getswitchinterval()
_CROWDED_SWITCH_SECONDS = 0.0005
_log = logging.getLogger(__name__)


class SwitchInterval:
    """Shortens Python's switch interval while any pool of the process is crowded.

    The switch interval is how long a thread may run Python while others want to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def enter(self) -> None:
        """Count one more crowded pool, and set the short interval."""
        self._change(1)

    def leave(self) -> None:
        """Count one less; set the usual interval when it was the last."""
        self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            self._count += by
            turn = _CROWDED_SWITCH_SECONDS if self._count else _SWITCH_SECONDS
            sys.setswitchinterval(turn)


SWITCH_INTERVAL = SwitchInterval()
"""The counter of this process."""


class InlinePool(ThreadPoolExecutor):
    """Runs a call at once, on grpc's own thread: for an answer that takes no work."""

    def __init__(self) -> None:
        super().__init__(1)

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        """See `Executor.submit`; the future never has a result."""
        fn(*args, **kwargs)
        return _UNOBSERVED


class CallPool(ThreadPoolExecutor):
    """Runs calls. A thread of its own runs the overdue ones, which refuses them.

    The code of a call first looks at the call's age.

    The pool is an executor because grpc accepts no other. It has threads of its own: an
    executor's work for the future of a call, which nobody reads, costs more than a
    hundredth of the call.

    Args:
        threads: The number of calls that run at a time.
        in_flight: The most calls that wait or run. Those whose message is still to come
            do not count: an honest call would find no place among a peer's that sends
            none.
        queue_seconds: The longest that a call may wait.
        reader: Receives the messages of calls; None where grpc receives them.
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
        self._live: dict[_Ticket, None] = {}
        self._is_crowded = False
        self._is_idle_wanted = False
        self._idle = threading.Event()
        self._closing = threading.Event()
        # Daemons, so that a call that hangs does not keep the process from ending.
        self._workers = [
            threading.Thread(target=self._work, name=f"call_{number}", daemon=True)
            for number in range(threads)
        ]
        self._sweeper = BackgroundLoop(
            "overdue-calls", self._look, _SWEEP_SECONDS, at_end=self._settle_turns
        )

    @property
    def count(self) -> int:
        """The number of calls that wait or run."""
        return len(self._live)

    def start(self) -> None:
        """Start every thread.

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
        """Return why a call that arrives now is refused; empty if it is not."""
        awaited = self._reader.count if self._reader is not None else 0
        return "in_flight" if len(self._live) - awaited >= self.in_flight else ""

    def is_overdue(self, since: float) -> bool:
        """Tell whether a call has waited too long, if it waits since `since`."""
        return time.monotonic() - since > self.queue_seconds

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        """Run a call, once its message has arrived.

        Returns:
            A future that never has a result: grpc does not read it.
        """
        if self._closing.is_set():
            return refused(RuntimeError("cannot run a call after the end"))
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
        """Refuse new calls, and wait for running ones.

        Args:
            timeout: The longest to wait, in seconds.

        Returns:
            Whether none is left.
        """
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
        is_over = joined(self._workers, timeout)
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
            del ticket  # or its call would be held until the next one arrives

    def _run(self, ticket: "_Ticket") -> None:
        if self._waiting.pop(ticket, ticket) is ticket:
            return  # the thread for overdue calls has run it
        try:
            ticket.fn(*ticket.args, **ticket.kwargs)
        except BaseException:  # noqa: BLE001 - the edge of a thread that must not end
            _log.exception("a call ended with an error")
        finally:
            del self._live[ticket]
            if self._is_idle_wanted and not self._live:
                self._idle.set()

    def _look(self) -> None:
        self._set_switch_interval()
        # In the order of arrival. Copying a dict is atomic; iterating over it is not: a
        # garbage collection may switch to other threads.
        for ticket in self._waiting.copy():
            if not self.is_overdue(ticket.since):
                break
            self._run(ticket)

    def _set_switch_interval(self) -> None:
        # grpc's one thread accepts all calls and sends all refusals. It waits for the
        # GIL behind every thread that works. With an interval of 5 ms, calls would be
        # overdue before the pool sees them.
        is_crowded = len(self._waiting) > self._width * _CROWDED
        if is_crowded is not self._is_crowded:
            self._is_crowded = is_crowded
            (SWITCH_INTERVAL.enter if is_crowded else SWITCH_INTERVAL.leave)()


class _Unobserved(Future[Any]):
    # grpc counts running calls by this callback, for a bound that is not set.
    def add_done_callback(self, fn: Callable[["Future[Any]"], object]) -> None:
        pass


_UNOBSERVED = _Unobserved()


class _Ticket:
    # One call. The first thread that removes it from `_waiting` runs it.
    __slots__ = ("args", "fn", "kwargs", "since")

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.since = 0.0
        """When the call began to wait for a thread."""
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def then(
        self, run: "Callable[[_Ticket, float], None]"
    ) -> Callable[[tuple[Any, ...], float], None]:
        """Return a function that calls `run` with this call and its new arguments."""

        def ready(args: tuple[Any, ...], since: float) -> None:
            self.args = args
            run(self, since)

        return ready
