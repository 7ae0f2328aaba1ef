"""Feeds the archive of one writer: `python -m bridge.ledger.archive.feedmain`.

It works in Linux's idle class, which the kernel pushes off the core the moment that a
thread wakes up to sign, and leaves that class where it is late. It goes when the
process that started it goes, however that ends.
"""

import logging
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn, TypeVar

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.archive.feeding import Bounds, Feeding, Goal, Report, reason_of
from bridge.ledger.archive.feedorder import FeedOrder, Told, read_goal
from bridge.system.logs import set_up
from bridge.system.turns import be_idle, step_back, take_turns

if TYPE_CHECKING:
    from bridge.ledger.archive.archive import Archive

_T = TypeVar("_T")
_SLOW_SECONDS = 0.25
"""A piece of a batch that takes so long is kept off a core that is full."""
_LONGEST_SECONDS = 6.0
"""Longer than SQLite waits for another process. What takes so long gets no time at all.
"""


class Idler:
    """Has steps done when nobody else wants the core, unless they are late.

    A thread cannot leave the idle class without a privilege: one thread does what can
    wait, see `serve`, and another what cannot, and all that is decided. See `Pace`.

    Args:
        give_up: Ends the process, for the reason that it gets. No exception would do:
            whatever it passed would wait for the database, which the idle thread has.
    """

    def __init__(self, give_up: Callable[[str], NoReturn]) -> None:
        self._give_up = give_up
        self._is_hurried = False
        self._steps: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def serve(self) -> NoReturn:
        """Do steps on the thread that calls, from now on of the idle class.

        The first thread of the process should: a thread that ends cleans up after
        itself, and where it is pushed off the core meanwhile, whoever waits for the end
        of the process spins in the kernel. After the first one, the waiter cleans up.
        """
        be_idle()
        while True:
            self._steps.get()()

    def begin(self, *, is_late: bool) -> None:
        """See `Pace.begin`."""
        self._is_hurried = is_late

    def do(
        self, step: Callable[[], _T], longest_seconds: float = _LONGEST_SECONDS
    ) -> _T:
        """See `Pace.do`."""
        if self._is_hurried:
            return step()
        began = time.monotonic()
        done: Future[_T] = Future()
        self._steps.put(partial(_settle, done, step))
        if not wait((done,), longest_seconds).done:
            self._give_up(f"its core left it no time for {longest_seconds:.0f} s")
        # Whoever waits for the database's lock should not have to wait for a full core.
        self._is_hurried = time.monotonic() - began > _SLOW_SECONDS
        return done.result()

    def rest(self) -> None:
        """See `Pace.rest`: the kernel sees to it."""


def main() -> NoReturn:
    """Feed as the order on standard input says, and exit."""
    # Whoever started it says when to end, after the last rows.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    step_back()
    take_turns()
    order = FeedOrder.read(sys.stdin.buffer.readline())
    set_up("WARNING", who=f"{Path(order.folder).name} feeder ")
    pace = Idler(_give_up)
    # Before this thread is of the idle class, which is handed down.
    for target in (_follow_parent, partial(_feed, order, pace)):
        threading.Thread(target=target, daemon=True).start()
    pace.serve()


def _feed(order: FeedOrder, pace: Idler) -> None:
    problem = death = ""
    feeding = Feeding(
        Path(order.folder),
        _exchange,
        lambda: _open_archive(order),
        pace,
        Bounds.below(order.entries, order.seconds),
    )
    try:
        feeding.run()
    except (LedgerError, ConfigError, OSError) as error:
        problem = reason_of(error)
    except BaseException as error:  # noqa: BLE001 - told to whoever starts the next
        # Not its text, nor where: values of the configuration may be in it.
        death = f"it died of {type(error).__name__}"
    _tell(Told(feeding.report(), problem, death, is_end=True))
    logging.shutdown()
    # The other threads are of no use any more.
    os._exit(1 if problem or death else 0)


def _give_up(reason: str) -> NoReturn:
    _tell(Told(Report(None), death=reason, is_end=True))
    os._exit(1)


def _settle(done: "Future[_T]", step: Callable[[], _T]) -> None:
    try:
        done.set_result(step())
    except BaseException as error:  # noqa: BLE001 - raised where the result is wanted
        done.set_exception(error)


def _exchange(report: Report) -> Goal:
    _tell(Told(report))
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(1)
    return read_goal(line)


def _tell(told: Told) -> None:
    try:
        sys.stdout.buffer.write(told.line())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(1)


def _open_archive(order: FeedOrder) -> "Archive":
    # Not in the idle class. It takes 0.5 s of a core, and a server that starts has
    # callers that waited: it would not come to its end, or to that of the server.
    from bridge.ledger.archive.archive import Archive  # noqa: PLC0415 - see above

    return Archive.open(order.archive)


def _follow_parent() -> None:
    # Not by PR_SET_PDEATHSIG: that is sent when the parent's thread ends. A transaction
    # that is broken off leaves nothing; the next process does it again.
    ends = select.poll()
    ends.register(sys.stdin, 0)
    ends.poll()
    os._exit(1)


if __name__ == "__main__":
    main()
