"""How feeding keeps its pace, and what its writer knows of it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bridge.ledger.archive import feedmain as feedmain_module
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.feed import Desk
from bridge.ledger.archive.feeding import Bounds, Feeding, Goal, Report
from bridge.ledger.archive.feedmain import Idler
from bridge.ledger.archive.feedorder import (
    FeedOrder,
    Told,
    goal_line,
    read_goal,
)
from bridge.ledger.chain import GENESIS, Head
from bridge.ledger.journal.journal import Journal
from tests.unit.ledger.support import (
    SetClock,
    archive_url,
    make_intent,
    open_journal,
)


class Tip:
    """The tip of a journal that grows when told to."""

    def __init__(self) -> None:
        self.seq = 9

    def __call__(self) -> Head:
        return Head(1, self.seq, GENESIS)


def test_the_lag_is_that_of_the_answer_that_was_reached() -> None:
    clock, tip = SetClock(), Tip()
    desk = Desk(tip, clock)
    clock.forward(5)
    assert desk.lag() == (0, 5.0), "how far the archive is has not been told"
    assert desk.exchange(Report(None)).head.seq == 9
    tip.seq = 20
    clock.forward(2)
    assert desk.exchange(Report(9)).head.seq == 20
    assert desk.lag() == (11, 2.0)
    clock.forward(3)
    desk.exchange(Report(15, "it is locked"))
    assert desk.lag() == (5, 5.0)
    assert desk.trouble() == "it is locked"
    tip.seq = 21
    desk.take(Report(20))
    assert desk.lag() == (1, 0.0)
    desk.take(Report(21))
    clock.forward(60)
    assert desk.lag() == (0, 0.0)
    assert desk.trouble() == ""


def test_an_answer_that_ends_the_feeding_comes_at_once() -> None:
    desk = Desk(Tip(), SetClock())
    asks = threading.Thread(target=desk.exchange, args=(Report(9, "", 600.0),))
    asks.start()
    desk.stop(5)
    asks.join(20)
    assert not asks.is_alive()
    left = desk.exchange(Report(9)).seconds_left
    assert left is not None
    assert 0 < left <= 5
    desk.stop(-1)
    assert desk.exchange(Report(9)).seconds_left == 0.0


class StarvedError(Exception):
    """The process would have ended."""


def give_up(reason: str) -> NoReturn:
    raise StarvedError(reason)


@pytest.fixture
def pace() -> Idler:
    """Make one that has its idle thread, which ends with the tests."""
    pace = Idler(give_up)
    threading.Thread(target=pace.serve, name="idle", daemon=True).start()
    return pace


def who() -> str:
    return threading.current_thread().name


def test_what_can_wait_is_done_by_an_idle_thread(pace: Idler) -> None:
    assert pace.do(who) == "idle"
    pace.begin(is_late=True)
    assert pace.do(who) == who()
    pace.begin(is_late=False)
    assert pace.do(who) == "idle"


def test_what_an_idle_thread_raises_is_raised(pace: Idler) -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        pace.do(fail)
    assert pace.do(who) == "idle", "it goes on"


def test_a_batch_that_gets_no_time_in_the_idle_class_leaves_it(
    monkeypatch: pytest.MonkeyPatch, pace: Idler
) -> None:
    monkeypatch.setattr(feedmain_module, "_SLOW_SECONDS", 0.0)
    assert pace.do(who) == "idle"
    assert pace.do(who) == who()
    pace.begin(is_late=False)
    assert pace.do(who) == "idle"


def test_an_idle_thread_that_never_ends_is_given_up(pace: Idler) -> None:
    release = threading.Event()
    with pytest.raises(StarvedError, match="left it no time for 0 s"):
        pace.do(release.wait, 0.01)
    release.set()


class Paces:
    """Keeps what it is told. See `Pace`."""

    def __init__(self) -> None:
        self.late: list[bool] = []
        self.steps = 0
        self.rests = 0

    def begin(self, *, is_late: bool) -> None:
        self.late.append(is_late)

    def do(self, step: Any) -> Any:
        self.steps += 1
        return step()

    def rest(self) -> None:
        self.rests += 1


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = open_journal(tmp_path)
    for number in range(250):
        journal.append(make_intent(number))
    journal.flush()
    yield journal
    journal.close()


@pytest.mark.parametrize(
    ("late_rows", "seconds_left", "late", "rests"),
    [
        (1000, None, [False], 4),  # two whole pieces of rows, read and written
        (100, None, [True], 2),
        (1000, 60.0, [True], 4),  # it ends
    ],
)
def test_what_is_late_is_said_to_be(
    tmp_path: Path,
    journal: Journal,
    late_rows: int,
    seconds_left: float | None,
    late: list[bool],
    rests: int,
) -> None:
    pace = Paces()
    archive = Archive.open(archive_url(tmp_path))
    reports: list[Report] = []

    def exchange(report: Report) -> Goal:
        reports.append(report)
        return Goal(journal.head, seconds_left)

    feeding = Feeding(
        journal.folder,
        exchange,
        lambda: archive,
        pace,
        Bounds(together_rows=1, together_seconds=0.0, late_rows=late_rows),
    )
    feeding._feed(feeding._opened())
    # The first step over to the first segment has no rows.
    assert pace.late == late * 2
    assert pace.rests == rests
    assert reports == [Report(None), Report(-1)]
    assert feeding.report() == Report(journal.head.seq)
    feeding._lock.release()
    archive.close()


def test_lines_come_back_as_they_were() -> None:
    order = FeedOrder(
        folder="/a/w0",
        archive="sqlite:///ü.db",
        entries=5,
        seconds=0.5,
    )
    assert FeedOrder.read(order.line()) == order
    for wrong in (b"1", b"{}", b"[]", b'{"report": 1}', b"null", b"{"):
        with pytest.raises(ValueError, match=r"not what is told|Expecting"):
            Told.read(wrong)
    told = Told(Report(None, "what\nis it"), problem="a break", is_end=True)
    assert Told.read(told.line()) == told
    for goal in (Goal(Head(1, 2, GENESIS)), Goal(Head(1, 2, GENESIS), 0.0)):
        assert read_goal(goal_line(goal)) == goal
