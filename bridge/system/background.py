"""A background loop: runs one step again and again in a thread of its own."""

import logging
import threading
from collections.abc import Callable

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
