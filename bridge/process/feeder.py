"""The process that feeds the archive: `python -m bridge.process.feeder`.

A bridge has one, which the parent process starts and restarts. It has a lower priority
than the workers. It ends at once when its parent ends: a transaction that is broken off
leaves nothing, and the next process does it again. After SIGTERM it goes on until the
last writer has ended, and feeds what is left.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.process import helper_process
from bridge.process.role import FeederOrder
from bridge.system.clock import system_clock

if TYPE_CHECKING:
    from bridge.ledger.archive.feeder import ArchiveFeeder
    from bridge.ledger.orphans import OrphanWatch

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_CATCH_UP_SECONDS = 5.0
"""How long the last rows may take, after the last writer has ended."""
_log = logging.getLogger(__name__)


def main() -> int:
    """Feed as the order on standard input says; return the exit status."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    return helper_process.main(
        FeederOrder, "archive feeder", lambda order: _run(order, stopping)
    )


def _run(order: FeederOrder, stopping: threading.Event) -> None:
    # Only now: it imports SQLAlchemy, which takes half a second.
    from bridge.ledger.archive.archive import Archive  # noqa: PLC0415 - see above
    from bridge.ledger.archive.feeder import (  # noqa: PLC0415 - see above
        ArchiveFeeder,
        BatchSize,
    )
    from bridge.ledger.archive.latches import ArchiveLatches  # noqa: PLC0415 - see above
    from bridge.ledger.orphans import OrphanWatch  # noqa: PLC0415 - see above

    feeder = ArchiveFeeder(
        Path(order.journal),
        lambda: Archive.open(order.archive),
        BatchSize.below(order.entries, order.seconds),
    )
    orphans = OrphanWatch(Path(order.journal), lambda writer: _settle(order, writer))
    latches = [ArchiveLatches(Path(order.latch))] if order.latch else []
    if order.bars:
        latches.append(ArchiveLatches(Path(order.bars), of_bars=True))

    def take_over() -> None:
        for one in latches:
            if feeder.archive is not None:
                one.take_over(feeder.archive)

    _feed(feeder, orphans, take_over, stopping)
    feeder.close()


def _feed(
    feeder: "ArchiveFeeder",
    orphans: "OrphanWatch",
    take_over: Callable[[], None],
    stopping: threading.Event,
) -> None:
    look_at = time.monotonic() + _LOOK_SECONDS
    # The first login of a worker may wait for it.
    take_over_at = 0.0
    while True:
        more = feeder.run_pass()
        if stopping.is_set() and not feeder.has_live_writer():
            break
        if (now := time.monotonic()) >= take_over_at:
            take_over_at = now + _LOOK_SECONDS
            take_over()
        if now >= look_at:
            look_at = now + _LOOK_SECONDS
            orphans.look(now)
        if not more:
            # Not by `stopping`: it is set while writers have rows to write.
            time.sleep(_RETRY_SECONDS if feeder.trouble else _POLL_SECONDS)
    orphans.look(time.monotonic(), at_once=True)
    deadline = time.monotonic() + _CATCH_UP_SECONDS
    while feeder.run_pass(at_once=True) or feeder.trouble:
        if time.monotonic() >= deadline:
            _log.warning("rows are left, which the archive gets after the next start")
            return
        if feeder.trouble:
            time.sleep(_POLL_SECONDS)


def _settle(order: FeederOrder, writer: str) -> None:
    from bridge.config import parse  # noqa: PLC0415 - slow, and seldom needed
    from bridge.ledger.orphans import settle  # noqa: PLC0415 - see `main`

    settle(parse(order.text, Path(order.path)).ledger, writer, system_clock)


if __name__ == "__main__":
    sys.exit(main())
