"""Threads: a loop that runs one step again and again, and a pool that is whole."""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

_log = logging.getLogger(__name__)


class BackgroundLoop:
    """Waits, runs a step, logs an unexpected error, and goes on until it is closed.

    An error must not end the thread: what the loop keeps up to date would grow old, and
    nobody would notice. So this class holds the one place that catches every error. The
    thread is a daemon: a step that hangs does not hold up the end of the process.

    Args:
        name: Names the thread, and the loop in the log.
        step: Is run after each wait.
        interval: Seconds to wait before each step, or a function that returns them.
        is_immediate: Run the first step without a wait.
        at_end: Is run by the thread when the loop has ended.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], object],
        interval: float | Callable[[], float],
        *,
        is_immediate: bool = False,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._step = step
        self._interval = interval
        self._is_immediate = is_immediate
        self._at_end = at_end
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_closing(self) -> bool:
        """Whether `stop` or `close` was called."""
        return self._closing.is_set()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait; True at once when the loop is closed. A step may use it as well."""
        return self._closing.wait(seconds)

    def stop(self) -> None:
        """Ask the loop to end, and do not wait for the step that runs."""
        self._closing.set()

    def close(self, timeout: float | None = None) -> bool:
        """End the loop; may be called before `start`, again, and by the step itself.

        Args:
            timeout: Seconds to wait at most for the step that runs; None for no limit.

        Returns:
            False if the step still runs.
        """
        self.stop()
        thread = self._thread
        if thread is threading.current_thread():
            return True
        if thread.ident is not None:
            thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        seconds = 0.0 if self._is_immediate else self._seconds()
        while not self.wait(seconds):
            try:
                self._step()
            except Exception:  # noqa: BLE001 - see the class
                name = self._thread.name
                _log.exception("unexpected error in the background loop %s", name)
            seconds = self._seconds()
        self._at_end()

    def _seconds(self) -> float:
        interval = self._interval
        return interval() if callable(interval) else interval


class SteadyPool(ThreadPoolExecutor):
    """A pool that starts all threads at once, and whose `submit` never raises.

    grpc submits on the one thread that serves a listener. An error there, such as
    "can't start new thread", would end that thread, and with it the server.

    Args:
        threads: The number of threads.
        name: The prefix of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._width = threads

    def start(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        # The executor starts a thread when none is idle. None is idle while each waits
        # at the barrier for all others.
        together = threading.Barrier(self._width)
        try:
            begin = super().submit
            waiting = [begin(together.wait) for _ in range(self._width)]
        except RuntimeError:
            together.abort()
            self.shutdown(wait=False)
            raise
        wait(waiting)

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        """See `Executor.submit`; an error is set in the future."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as error:  # the pool is closed
            return refused(error)

    def close(self, timeout: float) -> bool:
        """Refuse new calls, and wait for running ones.

        Args:
            timeout: The longest to wait, in seconds.

        Returns:
            Whether none is left.
        """
        self.shutdown(wait=False)
        return joined(tuple(self._threads), timeout)


def joined(threads: Collection[threading.Thread], timeout: float) -> bool:
    """Wait for threads, at most for `timeout` seconds; return whether all have ended.

    A thread that was not started counts as ended.
    """
    until = time.monotonic() + timeout
    for thread in threads:
        if thread.ident is not None:
            left = until - time.monotonic()
            thread.join(None if left == math.inf else max(0.0, left))
    return not any(thread.is_alive() for thread in threads)


def refused(error: RuntimeError) -> "Future[Any]":
    """Return a future that has failed."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
