"""The watcher as its parent holds it: started, restarted, replaced and ended.

The process is `bridge.process.watcher`. There is one where a cluster has `verify:
bound`. A configuration with other clusters gets a process of its own, at once; the
index stays in use meanwhile.
"""

from collections.abc import Callable
from pathlib import Path

from bridge.config import BoundConfig, ConfigText
from bridge.process.role import WatcherOrder
from bridge.system.child_process import Child, ChildProcess, SupervisedChild

_MODULE = "bridge.process.watcher"
_NAME = "watcher"
_GRACE_SECONDS = 2.0
"""It has nothing to finish."""


def start(order: WatcherOrder) -> ChildProcess:
    """Start the process.

    Raises:
        OSError: The system gives no more processes.
    """
    return ChildProcess(_MODULE, order.line())


class WatcherProcesses:
    """Keeps one watcher running, where one is needed. Driven by `tick`.

    Args:
        index: The file of what the watcher has seen.
        log_level: The lowest level that the process logs.
        spawn: Starts a process.
    """

    def __init__(
        self,
        index: Path,
        log_level: str,
        spawn: Callable[[WatcherOrder], Child] = start,
    ) -> None:
        self._index = index
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
        if before is None or _watched_of(before) != _watched_of(source):
            self.stop(now)
            if any(
                isinstance(one.tokens, BoundConfig) for one in source.config.clusters
            ):
                self._current = self._supervised(source)
        self._source = source
        self.tick(now)

    def tick(self, now: float) -> None:
        """Notice an end, and do what is due."""
        for child in self._leaving:
            child.tick(now)
        self._leaving = [child for child in self._leaving if not child.is_gone]
        # One after the other: two would write into one index.
        if self._current is not None and not self._leaving:
            self._current.tick(now)

    def stop(self, now: float) -> None:
        """Ask every process to end."""
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
        order = WatcherOrder(
            path=str(source.path),
            text=source.text,
            log_level=self._log_level,
            index=str(self._index),
        )
        return SupervisedChild(_NAME, lambda: self._spawn(order))


def _watched_of(source: ConfigText) -> object:
    return source.config.clusters, source.config.remote_secrets
