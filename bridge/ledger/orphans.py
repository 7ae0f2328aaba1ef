"""Gives the journals of writers that do not run any more their last rows.

A writer settles its own journal when it starts again. One that does not start again,
because there are fewer workers now or they have other names, would keep attempts
without an outcome. The process that feeds the archive looks for such journals.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import BridgeError, LedgerError
from bridge.ledger.chain import Head, Row, read_rows
from bridge.ledger.events import Closed
from bridge.ledger.journal.progress import Progress
from bridge.ledger.journal.segments import is_locked, segments, writer_folders
from bridge.system.clock import Clock

if TYPE_CHECKING:
    from bridge.config import LedgerConfig

GRACE_SECONDS = 40.0
"""Longer than the longest wait before a worker that died is started again."""
_log = logging.getLogger(__name__)


class OrphanWatch:
    """Looks for journals without a writer, and settles each of them once.

    Args:
        journal: Holds one folder per writer.
        settle: Settles the journal of a writer, see `settle`.
        grace_seconds: For so long a journal has to be without a writer.
    """

    def __init__(
        self,
        journal: Path,
        settle: Callable[[str], object],
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._journal = journal
        self._settle = settle
        self._grace_seconds = grace_seconds
        self._since: dict[str, float] = {}
        self._seen: set[str] = set()

    def look(self, now: float, *, at_once: bool = False) -> list[str]:
        """Settle the journals that are due.

        Args:
            now: Seconds of a clock that never goes back.
            at_once: No writer will start any more: wait for none.

        Returns:
            The writers whose journals were settled. A journal that cannot be settled
            is named in the log, and stays as it is.
        """
        settled = []
        for folder in self._folders():
            writer = folder.name
            if is_locked(folder):
                self._since.pop(writer, None)
                self._seen.discard(writer)
                continue
            waited = now - self._since.setdefault(writer, now)
            if writer in self._seen or not (at_once or waited >= self._grace_seconds):
                continue
            self._seen.add(writer)
            if _is_in_order(folder) or not self._try(folder):
                continue
            settled.append(writer)
        return settled

    def _folders(self) -> list[Path]:
        try:
            return writer_folders(self._journal)
        except OSError:
            return []

    def _try(self, folder: Path) -> bool:
        try:
            self._settle(folder.name)
        except (BridgeError, OSError) as error:
            detail = getattr(error, "detail", "")
            _log.warning("the journal %s is not settled: %s %s", folder, error, detail)
            return False
        _log.info("the journal of %s, which does not run, is settled", folder.name)
        return True


def settle(config: "LedgerConfig", writer: str, clock: Clock) -> None:
    """Open and close the journal of a writer: open attempts get the outcome `unknown`.

    Args:
        config: Section `ledger` of the configuration.
        writer: The name of the writer.
        clock: Gives each row its time.

    Raises:
        BridgeError: See `Ledger.open`.
    """
    # It imports pydantic, which the process that feeds otherwise does without.
    from bridge.ledger.ledger import Ledger  # noqa: PLC0415 - see above

    Ledger.open(config, writer=writer, clock=clock).close()


def _is_in_order(folder: Path) -> bool:
    # Closed, and all of it published to the feeder. A folder without a segment is
    # none of a writer.
    last: tuple[int, Row] | None = None
    try:
        found = segments(folder)
        for number, path in found[-1:]:
            for row in read_rows(path):
                last = number, row
    except (LedgerError, OSError):
        return False  # A crash tore it, or the start says what it is.
    if last is None:
        return not found
    number, row = last
    return (
        row.kind == Closed.kind
        and row.values.get("reason") == "shutdown"
        and _published(folder) == Head(number, row.seq, row.digest)
    )


def _published(folder: Path) -> Head | None:
    progress = Progress.find(folder)
    if progress is None:
        return None
    durable = progress.durable()
    progress.close()
    return durable and durable.head
