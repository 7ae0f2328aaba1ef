"""Feeds an archive in the process of a test."""

import time
from pathlib import Path
from typing import Self

from bridge.config import LedgerConfig
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.feeder import ArchiveFeeder, BatchSize
from bridge.ledger.verify import Comparison, compare
from bridge.system.background import BackgroundLoop

_PASS_SECONDS = 0.02
_WAIT_SECONDS = 20.0


def make_feeder(journal: Path, archive: str, batch_rows: int = 1000) -> ArchiveFeeder:
    return ArchiveFeeder(
        journal,
        lambda: Archive.open(archive),
        BatchSize(rows=1, seconds=0.0),
        batch_rows=batch_rows,
    )


def feed(journal: Path, archive: str) -> None:
    """Feed everything that is durable.

    Raises:
        AssertionError: The archive cannot be fed.
    """
    feeder = make_feeder(journal, archive)
    try:
        while feeder.run_pass(at_once=True):
            pass
        if feeder.trouble:
            raise AssertionError(feeder.trouble)
    finally:
        feeder.close()


def compared(folder: Path) -> Comparison:
    """Compare `archive.db` in a folder with the journals beside it."""
    archive = Archive.open(f"sqlite:///{folder / 'archive.db'}", make=False)
    try:
        return compare(folder / "journal", archive)
    finally:
        archive.close()


class FeederThread:
    """Feeds while the block runs, and at its end everything that is left."""

    def __init__(self, config: LedgerConfig) -> None:
        self.feeder = make_feeder(config.journal, config.archive)
        # A thread of its own name: a test looks for threads of the ledger.
        self._loop = BackgroundLoop("feed", self._passes, _PASS_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        self._loop.start()

    def close(self) -> None:
        self._loop.close()
        until = time.monotonic() + _WAIT_SECONDS
        while self.feeder.run_pass(at_once=True) and time.monotonic() < until:
            pass
        self.feeder.close()

    def _passes(self) -> None:
        while self.feeder.run_pass() and not self._loop.is_closing:
            pass
