"""The archive feeder as its parent holds it: started, restarted, replaced and ended.

The process is `bridge.process.feeder`. A configuration with another
section `ledger` gets a process of its own. Where the journals are the same, the one
before it ends at once. Otherwise it ends when the last writer of its journals has
ended, or at its time limit.
"""

from collections.abc import Callable

from bridge.config import ConfigText
from bridge.process.role import FeederOrder
from bridge.system.child_process import Child, ChildProcess, SupervisedChild

_MODULE = "bridge.process.feeder"
_NICENESS = 3
"""Where the core is full, a higher one leaves the process less than it needs."""
_NAME = "archive feeder"
_GRACE_SECONDS = 8.0
"""For the last rows, after the last worker has ended."""


def start(order: FeederOrder) -> ChildProcess:
    """Start the process.

    Raises:
        OSError: The system gives no more processes.
    """
    return ChildProcess(_MODULE, order.line(), niceness=_NICENESS)


class FeederProcesses:
    """Keeps one archive feeder running. Driven by `tick`, with the time as argument.

    Args:
        log_level: The lowest level that the process logs.
        spawn: Starts a process.
    """

    def __init__(
        self,
        log_level: str,
        spawn: Callable[[FeederOrder], Child] = start,
    ) -> None:
        self._log_level = log_level
        self._spawn = spawn
        self._source: ConfigText | None = None
        self._current: SupervisedChild[Child] | None = None
        self._leaving: list[SupervisedChild[Child]] = []

    @property
    def is_gone(self) -> bool:
        """Whether every process has ended after `stop`."""
        return self._current is None and not self._leaving

    def run(self, source: ConfigText, now: float) -> None:
        """Keep a process for `source` running; do what is due.

        Args:
            source: The configuration in service.
            now: Seconds of a clock that never goes back.
        """
        before = self._source
        if before is None or before.config.ledger != source.config.ledger:
            if before is not None and self._current is not None:
                self._current.stop(now, _grace_seconds(before, source))
                self._leaving.append(self._current)
            self._current = self._supervised(source)
        self._source = source
        self.tick(now)

    def tick(self, now: float) -> None:
        """Notice an end, and do what is due."""
        for child in (self._current, *self._leaving):
            if child is not None:
                child.tick(now)
        self._leaving = [child for child in self._leaving if not child.is_gone]

    def stop(self, now: float) -> None:
        """Ask every process to feed the last rows and end. No worker runs any more."""
        if self._current is not None:
            self._leaving.append(self._current)
            self._current = None
        for child in self._leaving:
            child.stop(now, _GRACE_SECONDS)

    def kill(self) -> None:
        """End every process at once."""
        for child in (self._current, *self._leaving):
            if child is not None:
                child.kill()

    def _supervised(self, source: ConfigText) -> SupervisedChild[Child]:
        order = FeederOrder.of(source, self._log_level)
        return SupervisedChild(_NAME, lambda: self._spawn(order))


def _grace_seconds(before: ConfigText, after: ConfigText) -> float:
    if before.config.ledger.journal == after.config.ledger.journal:
        # Every row of the journals goes to the new archive. The old process would hold
        # the lock for as long as the new workers run.
        return 0.0
    return before.config.limits.drain.total_seconds() + _GRACE_SECONDS
