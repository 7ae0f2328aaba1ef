"""The helpers of a bridge: the archive feeder, and the watcher of the clusters.

The parent starts one process of each kind where it is needed, restarts it, and replaces
it when a reload changes what it works on. A helper ends at once when its parent ends.
"""

import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bridge.process.role import FeederOrder, Order, WatcherOrder
from bridge.system.child_process import (
    Child,
    ChildProcess,
    SupervisedChild,
    follow_parent,
    read_order,
)
from bridge.system.linux import take_turns
from bridge.system.logs import set_up

if TYPE_CHECKING:
    # It imports pydantic, which a feeder does without.
    from bridge.config import ConfigText

_FEEDER_GRACE_SECONDS = 8.0
"""For the last rows, after the last worker has ended."""
_WATCHER_GRACE_SECONDS = 2.0
"""It has nothing to finish."""
_log = logging.getLogger(__name__)
AnOrder = TypeVar("AnOrder", bound=Order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A kind of helper, and when another process of it takes over."""

    name: str
    """Names the process in the log."""
    module: str
    """The module that it runs."""
    order_of: "Callable[[ConfigText, str], Order | None]"
    """Returns the order for a configuration and a log level; None: no process."""
    works_on: "Callable[[ConfigText], object]"
    """Returns the part of a configuration whose change needs another process."""
    grace_of: "Callable[[ConfigText, ConfigText], float]"
    """Returns how many seconds the process of one configuration may take to end when
    another configuration follows."""
    grace_seconds: float
    """The same at the end of the bridge."""
    is_alone: bool = False
    """Whether a process starts only when the one before it has ended."""
    niceness: int = 0
    """Added to that of the parent."""


def _feeder_grace(before: "ConfigText", after: "ConfigText") -> float:
    if before.config.ledger.journal == after.config.ledger.journal:
        # Every row of the journals goes to the new archive. The old process would hold
        # the lock for as long as the new workers run.
        return 0.0
    # It ends when the last writer of its journals has ended.
    return before.config.limits.drain.total_seconds() + _FEEDER_GRACE_SECONDS


FEEDER = Helper(
    name="archive feeder",
    module="bridge.process.feeder",
    order_of=FeederOrder.of,
    works_on=lambda source: source.config.ledger,
    grace_of=_feeder_grace,
    grace_seconds=_FEEDER_GRACE_SECONDS,
    # Where the core is full, a higher one leaves the process less than it needs.
    niceness=3,
)


def watcher(index: Path) -> Helper:
    """Return the watcher. It runs where a cluster has `verify: bound`.

    Args:
        index: The file of what it has seen, which stays in use between two processes.
    """

    def order_of(source: "ConfigText", log_level: str) -> WatcherOrder | None:
        if not any(one.tokens.verify == "bound" for one in source.config.clusters):
            return None
        return WatcherOrder(
            path=str(source.path),
            text=source.text,
            log_level=log_level,
            index=str(index),
        )

    return Helper(
        name="watcher",
        module="bridge.process.watcher",
        order_of=order_of,
        works_on=lambda source: (source.config.clusters, source.config.remote_secrets),
        grace_of=lambda *_: _WATCHER_GRACE_SECONDS,
        grace_seconds=_WATCHER_GRACE_SECONDS,
        is_alone=True,  # two would write into one index
    )


def start(helper: Helper, order: Order) -> ChildProcess:
    """Start a process.

    Raises:
        OSError: The system gives no more processes.
    """
    return ChildProcess(helper.module, order.line(), niceness=helper.niceness)


class HelperProcesses:
    """Keeps one helper running, where it is needed. Driven by `tick`.

    Args:
        helper: Which one.
        log_level: The lowest level that the process logs.
        spawn: Starts a process.
    """

    def __init__(
        self,
        helper: Helper,
        log_level: str,
        spawn: Callable[[Helper, Order], Child] = start,
    ) -> None:
        self._helper = helper
        self._log_level = log_level
        self._spawn = spawn
        self._source: ConfigText | None = None
        self._current: SupervisedChild[Child] | None = None
        self._leaving: list[SupervisedChild[Child]] = []

    @property
    def is_gone(self) -> bool:
        """Whether every process has ended after `stop`."""
        return self._current is None and not self._leaving

    def run(self, source: "ConfigText", now: float) -> None:
        """Keep a process for `source` running; do what is due.

        Args:
            source: The configuration in service.
            now: Seconds of a clock that never goes back.
        """
        helper, before, self._source = self._helper, self._source, source
        if before is None or helper.works_on(before) != helper.works_on(source):
            if before is not None and self._current is not None:
                self._current.stop(now, helper.grace_of(before, source))
                self._leaving.append(self._current)
            order = helper.order_of(source, self._log_level)
            self._current = None if order is None else self._supervised(order)
        self.tick(now)

    def tick(self, now: float) -> None:
        """Notice an end, and do what is due."""
        for child in self._leaving:
            child.tick(now)
        self._leaving = [child for child in self._leaving if not child.is_gone]
        if self._current is not None and not (self._leaving and self._helper.is_alone):
            self._current.tick(now)

    def stop(self, now: float) -> None:
        """Ask every process to finish and end. None follows."""
        if self._current is not None:
            self._leaving.append(self._current)
            self._current = None
        for child in self._leaving:
            child.stop(now, self._helper.grace_seconds)

    def kill(self) -> None:
        """End every process at once."""
        for child in (self._current, *self._leaving):
            if child is not None:
                child.kill()

    def _supervised(self, order: Order) -> SupervisedChild[Child]:
        return SupervisedChild(
            self._helper.name, lambda: self._spawn(self._helper, order)
        )


def main(kind: type[AnOrder], name: str, work: Callable[[AnOrder], None]) -> int:
    """Work as the order on standard input says; return the exit status. For a helper.

    Args:
        kind: The kind of order.
        name: Put before the name of each logger.
        work: Returns when the process has finished.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    order = kind.read(read_order())
    follow_parent(lambda: os._exit(1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    take_turns()
    set_up(order.log_level, who=f"{name} ")
    try:
        work(order)
    except Exception as error:  # noqa: BLE001 - the parent starts another process
        # Not its text: values of the configuration may be in it.
        _log.error("unexpected error: %s", type(error).__name__)
        return 1
    return 0
