"""Feeds the archive on a thread of this process."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.archive.feed import Attended, Desk, FeedTask
from bridge.ledger.archive.feeding import Feeding, reason_of
from bridge.system.turns import step_back

if TYPE_CHECKING:
    from bridge.ledger.archive.archive import Archive

_T = TypeVar("_T")
_BREATH_SECONDS = 0.016
"""A thread that has a certificate to sign waits for no more than a piece of a batch,
and a batch is spread over most of the time until the next."""


class Feeder(Attended):
    """A thread that feeds. See `bridge.ledger.archive.feed.Feed`.

    Args:
        task: What is to be fed.
        open_archive: Opens the archive, on the thread; by default the one of `task`.
    """

    def __init__(
        self,
        task: FeedTask,
        open_archive: "Callable[[], Archive] | None" = None,
    ) -> None:
        super().__init__(task)
        self._feeding = Feeding(
            task.folder,
            self._desk.exchange,
            open_archive or (lambda: _open_archive(task)),
            _Breaths(self._desk, task.bounds.late_rows),
            task.bounds,
        )

    def stop(self, timeout_seconds: float) -> None:
        """See `Feed.stop`."""
        self._desk.stop(timeout_seconds)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        step_back()
        try:
            self._feeding.run()
        except (LedgerError, ConfigError, OSError) as error:
            self._problem = reason_of(error)
        except BaseException as error:
            self._problem = f"the feeder of the archive died: {error!r}"
            raise
        finally:
            self._desk.take(self._feeding.report())


class _Breaths:
    # Pauses between the pieces of a batch. See `Pace`.
    def __init__(self, desk: Desk, late_rows: int) -> None:
        self._desk = desk
        self._late_rows = late_rows
        self._is_late = False

    def begin(self, *, is_late: bool) -> None:
        self._is_late = is_late

    def do(self, step: Callable[[], _T]) -> _T:
        return step()

    def rest(self) -> None:
        if not (self._is_late or self._desk.is_stopping()):
            self._is_late = self._desk.behind() > self._late_rows
            time.sleep(_BREATH_SECONDS)


def _open_archive(task: FeedTask) -> "Archive":
    # On the thread: the import takes longer than all the rest of the start.
    from bridge.ledger.archive.archive import Archive  # noqa: PLC0415 - see above

    return Archive.open(task.archive)
