"""Hands what other hosts have latched, stopped and cleared to this host.

An archive that several hosts share has the rows of all their journals. The process that
feeds it reads them again and again, and changes this host's file of the latch. So a
credential that one host saw refused is not tried by the others, and a clearance on one
host holds on all. Workers read the file alone.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from bridge.errors import LedgerError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.events import Cleared
from bridge.ledger.latch_rows import entry_of
from bridge.resilience.latch_file import Entry, Kind, LatchFile
from bridge.system.clock import Clock, system_clock

_TOLD_SECONDS = 60.0
"""So old is at most what the file says of the last reading."""
_log = logging.getLogger(__name__)


class ArchiveLatches:
    """Reads the rows of all hosts into the file of one. For one thread.

    Args:
        path: The file of this host's latch, or of its bars.
        clock: The time.
        of_bars: Which of the two.
    """

    def __init__(
        self, path: Path, clock: Clock = system_clock, *, of_bars: bool = False
    ) -> None:
        self._of_bars = of_bars
        self._file = LatchFile(path)
        self._clock = clock
        self._trouble = ""

    def take_over(self, archive: Archive) -> None:
        """Read the archive once; an error is logged, and the next call tries again."""
        try:
            self._take_over(archive)
            trouble = ""
        except LedgerError as error:
            trouble = error.detail or str(error)
        if trouble and trouble != self._trouble:
            _log.warning("what other hosts have latched is not known: %s", trouble)
        self._trouble = trouble

    def _take_over(self, archive: Archive) -> None:
        # Before the reading: a worker that starts meanwhile waits for the next one.
        now = self._clock().timestamp()
        found, cleared = _read(archive.latch_rows())
        entries = [one for one in found if (one.kind == Kind.BAR) is self._of_bars]
        with self._file.change() as content:
            content.merge(entries, cleared)
            is_old = abs(now - content.read_at) >= _TOLD_SECONDS
            if content.awaits_archive or is_old:
                content.read_at = now


def _read(bodies: Iterable[str]) -> tuple[list[Entry], list[str]]:
    entries: list[Entry] = []
    cleared: list[str] = []
    for body in bodies:
        try:
            values = json.loads(body)
            if values["kind"] == Cleared.kind:
                cleared.append(str(values["latch"]))
            else:
                entries.append(entry_of(values))
        except (KeyError, TypeError, ValueError):
            # A worker checks each row by its chain. This one is of another version.
            _log.warning("a row of the archive tells of no latch: %.200s", body)
    return entries, cleared
