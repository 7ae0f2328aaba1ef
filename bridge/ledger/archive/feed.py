"""What the ledger needs of whoever feeds its archive, and how it watches over it."""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from bridge.config import LagConfig
from bridge.ledger.archive.feeding import Bounds, Goal, Report
from bridge.ledger.chain import Head
from bridge.system.clock import Clock

_NO_HURRY = LagConfig()
_LAST_TRIES_SECONDS = 0.05
_ASKED = 64
"""So many answers are remembered: of those before them, only when they were given is
forgotten."""


class Feed(Protocol):
    """Carries the rows of one writer from its journal into the archive."""

    def start(self) -> None:
        """Begin."""

    def stop(self, timeout_seconds: float) -> None:
        """Feed what is left, for no longer than `timeout_seconds`, and end."""

    def problem(self) -> str | None:
        """Return why it has stopped for good, or None."""

    def trouble(self) -> str:
        """Return why the last try did not succeed; empty when it did."""

    def lag(self) -> tuple[int, float]:
        """Return how many rows, and seconds, the archive is behind the journal.

        While the archive is not open, only the rows since the start are known to be
        missing, and the seconds run.
        """

    def behind(self) -> int:
        """Return how many rows the archive is behind, see `lag`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedTask:
    """What is to be fed."""

    folder: Path
    """The writer's; its name is the writer's."""
    durable: Callable[[], Head]
    """Returns the journal's tip."""
    archive: str
    """The URL of the archive. It may hold a password."""
    clock: Clock
    """Says how far behind the archive is."""
    max_lag: LagConfig = _NO_HURRY
    """When issuing stops."""

    @property
    def bounds(self) -> Bounds:
        """How many rows wait for others."""
        return Bounds.below(self.max_lag.entries, self.max_lag.seconds)


MakeFeed = Callable[[FeedTask], Feed]
"""Prepares a feed; it begins with `start`."""


class Desk:
    """Where a writer and its feeding meet: each tells how far it is.

    `exchange` is the feeding's side of it; all else is the writer's, on any thread.
    """

    def __init__(self, durable: Callable[[], Head], clock: Clock) -> None:
        self._durable = durable
        self._clock = clock
        self._began = durable().seq
        self._seq: int | None = None
        self._asked: deque[tuple[int, datetime]] = deque(maxlen=_ASKED)
        self._caught_up = clock()
        self._trouble = ""
        self._stop = threading.Event()
        self._deadline = float("inf")

    def exchange(self, report: Report) -> Goal:
        """Take a report; return, after the pause it asks for, how far to feed."""
        self.take(report)
        self._pause(report.pause_seconds)
        now, head = self._clock(), self._durable()
        self._asked.append((head.seq, now))
        if self._stop.is_set():
            return Goal(head, max(self._deadline - time.monotonic(), 0.0))
        return Goal(head)

    def take(self, report: Report) -> None:
        """Take a report that needs no answer."""
        self._seq, self._trouble = report.seq, report.trouble
        while report.seq is not None and self._asked:
            seq, when = self._asked[0]
            if report.seq < seq:
                break
            self._caught_up = when
            self._asked.popleft()

    def kept(self, report: Report) -> Report:
        """Return the report of one who has not looked yet, with what was known."""
        return report._replace(seq=self._seq, trouble=report.trouble or self._trouble)

    def fail(self, trouble: str) -> None:
        """Say why nothing is fed at the moment."""
        self._trouble = trouble

    def stop(self, timeout_seconds: float) -> None:
        """Want the feeding to end, at the latest after `timeout_seconds`."""
        self._deadline = time.monotonic() + timeout_seconds
        self._stop.set()

    def is_stopping(self) -> bool:
        """Return whether the feeding is to end."""
        return self._stop.is_set()

    def is_over(self) -> bool:
        """Return whether the feeding should have ended by now."""
        return time.monotonic() >= self._deadline

    def wait(self, seconds: float) -> None:
        """Wait for so long, or until the feeding is to end."""
        self._stop.wait(seconds)

    def trouble(self) -> str:
        """See `Feed.trouble`."""
        return self._trouble

    def lag(self) -> tuple[int, float]:
        """See `Feed.lag`."""
        behind = self.behind()
        if self._seq is not None and not behind:
            return 0, 0.0
        seconds = (self._clock() - self._caught_up).total_seconds()
        return behind, max(seconds, 0.0)

    def behind(self) -> int:
        """See `Feed.behind`."""
        seq = self._seq
        return max(self._durable().seq - (self._began if seq is None else seq), 0)

    def _pause(self, seconds: float) -> None:
        if self._stop.is_set():
            time.sleep(min(seconds, _LAST_TRIES_SECONDS))
        elif seconds:
            self._stop.wait(seconds)


class Attended(ABC):
    """What every feed says of itself, and the thread that sees to it. See `Feed`.

    Args:
        task: What is to be fed.
    """

    def __init__(self, task: FeedTask) -> None:
        self._desk = Desk(task.durable, task.clock)
        self._problem = ""
        self._thread = threading.Thread(
            target=self._run, name=f"ledger-feed-{task.folder.name}", daemon=True
        )

    def start(self) -> None:
        """See `Feed.start`."""
        self._thread.start()

    def problem(self) -> str | None:
        """See `Feed.problem`."""
        return self._problem or None

    def trouble(self) -> str:
        """See `Feed.trouble`."""
        return self._desk.trouble()

    def lag(self) -> tuple[int, float]:
        """See `Feed.lag`."""
        return self._desk.lag()

    def behind(self) -> int:
        """See `Feed.behind`."""
        return self._desk.behind()

    @abstractmethod
    def _run(self) -> None: ...
