"""Child processes: start one, hand it one line, restart it when it ends, and end it.

A child gets its order as the first line of its standard input. The pipe stays open for
as long as the parent lives, however the parent ends; a child that calls `follow_parent`
ends with it. PR_SET_PDEATHSIG would not do: that signal is sent when the thread ends
that started the child.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar

from bridge.system.linux import allowed_cores

_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 30.0
_STEADY_SECONDS = 30.0
"""A child that ran for so long was well: the next wait is the first again."""
_GIVEN_UP = "not started again until a reload (SIGHUP): a restart cannot mend that"
_log = logging.getLogger(__name__)


class Child(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """The process ID."""

    def poll(self) -> int | None:
        """Return the exit status, minus the signal's number; None while it runs."""

    def terminate(self) -> None:
        """Ask the process to finish what is under way and end."""

    def kill(self) -> None:
        """End the process at once."""


class ChildProcess:
    """A Python module that runs as a child process. See `Child`.

    A new interpreter and not a fork: libraries that have threads do not survive a fork.
    It may use every core that this process might before `keep_to_core`.

    Args:
        module: The module, as `python -m` runs it.
        order: One line with its end; the first on the child's standard input.
        niceness: Added to the niceness of this process.
        pass_fds: File descriptors that the child has too, by the same numbers.

    Raises:
        OSError: The system gives no more processes.
    """

    def __init__(
        self,
        module: str,
        order: bytes,
        *,
        niceness: int = 0,
        pass_fds: Collection[int] = (),
    ) -> None:
        # A group of its own: Ctrl-C in a terminal is for the parent alone.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            (sys.executable, "-P", "-m", module),
            stdin=subprocess.PIPE,
            process_group=0,
            pass_fds=pass_fds,
        )
        # The child may have ended already, and `poll` will say so.
        with contextlib.suppress(BrokenPipeError, ProcessLookupError):
            if niceness:
                own = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(os.PRIO_PROCESS, self.pid, own + niceness)
            if (cores := allowed_cores()) != os.sched_getaffinity(0):
                # It runs as well on one core, if others were taken away meanwhile.
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(self.pid, cores)
            self._write(order)

    @property
    def pid(self) -> int:
        """See `Child.pid`."""
        return self._process.pid

    def poll(self) -> int | None:
        """See `Child.poll`."""
        status = self._process.poll()
        if status is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def wait(self, seconds: float) -> int | None:
        """Wait for the end, at most for `seconds`; return as `poll` does."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.poll()

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """See `Child.terminate`."""
        self._process.terminate()

    def kill(self) -> None:
        """See `Child.kill`."""
        self._process.kill()

    def _write(self, line: bytes) -> None:
        # Not through the buffered file: that would try again when it is closed.
        pipe = self._process.stdin
        if pipe is None:
            raise RuntimeError("the child was started without a pipe")
        left = memoryview(line)
        while left:
            left = left[os.write(pipe.fileno(), left) :]


def how_it_ended(_child: Child, status: int) -> str:
    """Return the words for an exit status."""
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"ended with {how}"


C = TypeVar("C", bound=Child)


class SupervisedChild(Generic[C]):
    """Keeps one child process running. Driven by `tick`, with the time as its argument.

    Args:
        name: Names the child in the log.
        start: Starts the process; raises `OSError` when the system gives no more.
        on_end: Is told of a process that ended without being asked to, with its exit
            status; returns why in words.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], C],
        on_end: Callable[[C, int], str] = how_it_ended,
        final: Collection[int] = (),
    ) -> None:
        self.name = name
        """Names the child in the log."""
        self.restarts = 0
        """How often the process was started again."""
        self.reason = ""
        """Why there is no process now; empty when there is one."""
        self.child: C | None = None
        """The process, while there is one."""
        self._start_process = start
        self._on_end = on_end
        self._final = final
        self._due = float("-inf")
        self._began = 0.0
        self._wait = _FIRST_WAIT_SECONDS
        self._starts = 0
        self._is_stopping = False
        self._kill_at = float("inf")

    @property
    def is_gone(self) -> bool:
        """Whether there is no process, and none will be started."""
        return self._is_stopping and self.child is None

    @property
    def is_given_up(self) -> bool:
        """Whether there is no process, and a restart would not help."""
        return self.child is None and self._due == float("inf")

    def tick(self, now: float) -> None:
        """Notice an end, and do what is due.

        Args:
            now: Seconds of a clock that never goes back.
        """
        child = self.child
        if child is not None and (status := child.poll()) is not None:
            self._ended(child, status, now)
        if self.child is None and not self._is_stopping and now >= self._due:
            self._start(now)
        elif self.child is not None and now >= self._kill_at:
            self.kill()

    def stop(self, now: float, grace_seconds: float) -> None:
        """Ask the process to end; none follows.

        Args:
            now: See `tick`.
            grace_seconds: The process is killed if it still runs after this time.
        """
        self._is_stopping = True
        self._kill_at = now + grace_seconds
        if self.child is not None:
            self.child.terminate()

    def kill(self) -> None:
        """End the process at once; none follows."""
        self._is_stopping = True
        if self.child is not None:
            _log.error("%s is ended by force", self.name)
            self.child.kill()

    def _start(self, now: float) -> None:
        self._began = now
        self.restarts += self._starts > 0
        self._starts += 1
        try:
            self.child = self._start_process()
        except OSError as error:
            self._restart_later(f"could not be started: {error.strerror}", now)
        else:
            self.reason = ""
            _log.info("%s is process %d", self.name, self.child.pid)

    def _ended(self, child: C, status: int, now: float) -> None:
        self.child = None
        if self._is_stopping:
            return
        reason = self._on_end(child, status)
        if status in self._final:
            self._give_up(reason)
        else:
            self._restart_later(reason, now)

    def _give_up(self, reason: str) -> None:
        self.reason, self._due = f"{reason}; {_GIVEN_UP}", float("inf")
        _log.error("%s: %s", self.name, "; ".join(self.reason.splitlines()))

    def _restart_later(self, reason: str, now: float) -> None:
        if now - self._began >= _STEADY_SECONDS:
            self._wait = _FIRST_WAIT_SECONDS
        self.reason, self._due = reason, now + self._wait
        line = "; ".join(reason.splitlines())
        _log.error("%s: %s; restarted in %.1f s", self.name, line, self._wait)
        self._wait = min(self._wait * 2, _LONGEST_WAIT_SECONDS)


def read_order() -> bytes:
    """Return the order that the parent wrote. For a child, before `follow_parent`."""
    return sys.stdin.buffer.readline()


def follow_parent(on_end: Callable[[], None]) -> None:
    """Call `on_end` when the parent process has ended, however it ended. For a child.

    Args:
        on_end: Called once, in a thread of its own.
    """

    def follow() -> None:
        while os.read(0, 4096):
            pass
        on_end()

    threading.Thread(target=follow, name="parent", daemon=True).start()
