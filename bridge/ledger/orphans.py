"""Gives the journals of writers that run no more their last rows.

A writer settles its own journal when it starts again. One that does not start again,
because there are fewer workers now or they have other names, would keep attempts
without an outcome, and rows that the archive never gets.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from bridge.config import LedgerConfig
from bridge.errors import BridgeError, LedgerError
from bridge.ledger.chain import Row, read_rows
from bridge.ledger.events import Closed
from bridge.ledger.journal.segments import is_locked, segments
from bridge.ledger.ledger import Ledger
from bridge.system.clock import Clock

_log = logging.getLogger(__name__)


def settle(
    config: LedgerConfig,
    *,
    ours: Collection[str],
    version: str,
    clock: Clock,
) -> list[str]:
    """Settle every journal beside ours that has no writer and was not left in order.

    Args:
        config: Section `ledger` of the configuration.
        ours: Writers that run, or are about to.
        version: Of the bridge.
        clock: Gives each row its time.

    Returns:
        The writers whose journals were settled. What cannot be is told in the log, and
        stays as it is.
    """
    settled: list[str] = []
    for folder in sorted(config.journal.iterdir()):
        if not folder.is_dir() or folder.name in ours or is_locked(folder):
            continue
        try:
            if _is_in_order(folder, _fed(config, folder.name)):
                continue
            ledger = Ledger.open(
                config, writer=folder.name, version=version, clock=clock
            )
            ledger.close()
        except (BridgeError, OSError) as error:
            detail = getattr(error, "detail", "")
            _log.warning("the journal %s is not settled: %s %s", folder, error, detail)
            continue
        _log.info("the journal of %s, which runs no more, is settled", folder.name)
        settled.append(folder.name)
    return settled


def _is_in_order(folder: Path, fed: int) -> bool:
    last: Row | None = None
    try:
        for _, path in segments(folder)[-1:]:
            for row in read_rows(path):
                last = row
    except LedgerError:
        return False  # A crash tore it, or the start says what it is.
    if last is None or last.kind != Closed.kind or last.seq > fed:
        return False
    return bool(last.values["reason"] == "shutdown")


def _fed(config: LedgerConfig, writer: str) -> int:
    # How far the archive has read. Imported here: see `bridge.ledger.archive.archive`.
    from bridge.ledger.archive.archive import Archive  # noqa: PLC0415 - see above

    try:
        archive = Archive.open(config.archive)
    except LedgerError as error:
        _log.info("the archive does not say how far it is: %s", error)
        return -1
    try:
        return archive.position(writer).head.seq
    finally:
        archive.close()
