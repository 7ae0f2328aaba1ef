"""One worker's place: its process now, and when the next one is due."""

import logging
from collections.abc import Callable

from bridge.process.role import REFUSED, Order
from bridge.process.worker_process import Child, readiness

_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 30.0
_STEADY_SECONDS = 30.0
"""A worker that ran for so long was well: the next wait is the first again."""
_ASK_SECONDS = 0.25
_log = logging.getLogger(__name__)

Spawn = Callable[[Order], Child]
"""Starts a worker; raises `OSError` when the system gives no more processes."""


class Slot:
    """Keeps one worker alive. Driven by `tick`; the time is its argument.

    Args:
        order: What the worker is told.
        spawn: Starts one.
    """

    def __init__(self, order: Order, spawn: Spawn) -> None:
        self.order = order
        self.restarts = 0
        """How often the worker was started again."""
        self.reason = ""
        """Why there is no worker now; empty when there is one."""
        self.is_refused = False
        """The last worker could not use the configuration."""
        self.child: Child | None = None
        self._spawn = spawn
        self._due = float("-inf")
        self._began = 0.0
        self._wait = _FIRST_WAIT_SECONDS
        self._starts = 0
        self._is_stopping = False
        self._is_ready = False

    @property
    def is_gone(self) -> bool:
        """Whether there is no process, and none will come."""
        return self._is_stopping and self.child is None

    @property
    def is_ready(self) -> bool:
        """Whether the worker has said so since it was started."""
        if not self._is_ready and self.child is not None:
            answer = readiness(self.child, _ASK_SECONDS)
            self._is_ready = answer is not None and answer.get("ready") is True
        return self._is_ready

    def tick(self, now: float) -> None:
        """Notice an end, and start what is due.

        Args:
            now: Seconds of a clock that never goes back.
        """
        child = self.child
        if child is not None and (status := child.poll()) is not None:
            self._ended(child, status, now)
        if self.child is None and not self._is_stopping and now >= self._due:
            self._start(now)

    def stop(self) -> None:
        """Let the worker finish what is under way; none follows."""
        self._is_stopping = True
        if self.child is not None:
            self.child.terminate()

    def kill(self) -> None:
        """End the worker at once; none follows."""
        self._is_stopping = True
        if self.child is not None:
            _log.error("worker %s is ended by force", self.order.writer)
            self.child.kill()

    def _start(self, now: float) -> None:
        self._began, self._is_ready = now, False
        self.restarts += self._starts > 0
        self._starts += 1
        try:
            self.child = self._spawn(self.order)
        except OSError as error:
            self._later(f"could not be started: {error.strerror}", now)
        else:
            self.reason, self.is_refused = "", False
            _log.info("worker %s is process %d", self.order.writer, self.child.pid)

    def _ended(self, child: Child, status: int, now: float) -> None:
        self.child = None
        if self._is_stopping:
            return
        self.is_refused = status == REFUSED
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._later(child.reason() or f"ended with {how}", now)

    def _later(self, reason: str, now: float) -> None:
        if now - self._began >= _STEADY_SECONDS:
            self._wait = _FIRST_WAIT_SECONDS
        self.reason, self._due = reason, now + self._wait
        _log.error(
            "worker %s: %s; the next one in %.1f s",
            self.order.writer,
            reason,
            self._wait,
        )
        self._wait = min(self._wait * 2, _LONGEST_WAIT_SECONDS)
