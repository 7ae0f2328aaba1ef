"""The process that feeds: what it does, and what becomes of it."""

import os
import resource
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.ledger.archive import feedprocess as feedprocess_module
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.feed import Desk, MakeFeed
from bridge.ledger.archive.feeder import Feeder
from bridge.ledger.archive.feeding import Goal, Report
from bridge.ledger.archive.feedlock import FeedLock
from bridge.ledger.archive.feedorder import FeedOrder
from bridge.ledger.archive.feedprocess import FeederProcess
from bridge.ledger.ledger import Ledger
from bridge.ledger.verify import Comparison, compare
from tests.support.harness import processes
from tests.unit.ledger.support import (
    SetClock,
    archive_url,
    fed,
    make_config,
    make_ended,
    make_intent,
)

_ROOT = Path(__file__).parents[4]
_WAIT_SECONDS = 20
_FAR_OFF_SECONDS = 600.0


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.005)


def await_end(pid: int, seconds: float = _WAIT_SECONDS) -> None:
    """Wait for a process that need not be a child of this one."""
    with suppress(ProcessLookupError):
        ends = select.poll()
        descriptor = os.pidfd_open(pid)
        ends.register(descriptor, select.POLLIN)
        ended = ends.poll(seconds * 1000)
        os.close(descriptor)
        assert ended, "it goes on"


def open_ledger(
    folder: Path,
    clock: SetClock | None = None,
    make_feed: MakeFeed = FeederProcess,
    **changed: object,
) -> Ledger:
    return Ledger.open(
        make_config(folder, **changed),
        writer="w0",
        version="1",
        clock=clock or SetClock(),
        make_feed=make_feed,
    )


def feeder_of(ledger: Ledger) -> FeederProcess:
    assert isinstance(ledger._feeder, FeederProcess)
    return ledger._feeder


def pid_of(ledger: Ledger) -> int:
    wait_until(lambda: feeder_of(ledger).pid is not None)
    pid = feeder_of(ledger).pid
    assert pid is not None
    return pid


def await_other(ledger: Ledger, pid: int) -> None:
    """Wait for the process that follows another."""
    wait_until(lambda: feeder_of(ledger).pid not in {None, pid})


def write(ledger: Ledger, *numbers: int) -> None:
    for number in numbers:
        ledger.intend(make_intent(number))
        ledger.end(make_ended(number), durable=True)


def compared(folder: Path) -> Comparison:
    archive = Archive.open(archive_url(folder), make=False)
    try:
        return compare(folder / "journal", archive)
    finally:
        archive.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = open_ledger(tmp_path)
    write(ledger, *range(4))
    wait_until(lambda: fed(ledger))
    yield ledger
    ledger.close()


@pytest.fixture
def no_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died is not followed by another before the end."""
    monkeypatch.setattr(feedprocess_module, "_FIRST_WAIT_SECONDS", _FAR_OFF_SECONDS)


def test_rows_arrive_and_nothing_is_left_running_or_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    ledger = open_ledger(tmp_path)
    write(ledger, 1, 2)
    wait_until(lambda: fed(ledger))
    pid = pid_of(ledger)
    assert ledger.lag() == (0, 0.0)
    # These are not waited for.
    write(ledger, 3, 4)
    ledger.close()
    assert ledger.lag() == (0, 0.0)
    assert not Path(f"/proc/{pid}").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    result = compared(tmp_path)
    assert result.agrees, result
    assert result.equal == 10


def test_a_ledger_that_is_closed_at_once_is_fed(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    assert compared(tmp_path).equal == 2


def test_one_that_is_killed_is_followed_by_another(
    tmp_path: Path, ledger: Ledger
) -> None:
    for number in range(10, 13):
        pid = pid_of(ledger)
        os.kill(pid, signal.SIGKILL)
        write(ledger, number)
        await_other(ledger, pid)
    wait_until(lambda: fed(ledger))
    assert ledger.problem() is None
    ledger.close()
    assert compared(tmp_path).agrees


@pytest.mark.usefixtures("no_next")
def test_while_there_is_none_the_lag_grows_and_issuing_goes_on_to_the_bound(
    tmp_path: Path,
) -> None:
    clock = SetClock()
    ledger = open_ledger(tmp_path, clock, max_lag={"seconds": 60})
    wait_until(lambda: fed(ledger))
    os.kill(pid_of(ledger), signal.SIGKILL)
    wait_until(lambda: "ended with signal 9" in feeder_of(ledger).trouble())
    write(ledger, 1)
    clock.forward(60)
    assert ledger.lag() == (2, 60.0)
    assert ledger.problem() is None
    clock.forward(1)
    assert "61 s behind: the process that feeds" in str(ledger.problem())
    # The end does not wait for the next one to be due.
    ledger.close()
    assert compared(tmp_path).agrees


BREAKS_OFF = """
import sys
with open(sys.argv[1], "a") as orders:
    orders.write(sys.stdin.readline())
sys.stdout.write('{"report"')
"""


def test_one_that_breaks_off_in_its_words_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = tmp_path / "orders"
    orders.touch()
    command = (sys.executable, "-c", BREAKS_OFF, str(orders))
    monkeypatch.setattr(feedprocess_module, "_COMMAND", command)
    monkeypatch.setattr(feedprocess_module, "_FIRST_WAIT_SECONDS", 0.01)
    ledger = open_ledger(tmp_path)
    wait_until(lambda: len(orders.read_text().splitlines()) > 2)
    assert "ended with status 0" in feeder_of(ledger).trouble()
    feeder_of(ledger).stop(0)
    ledger.close()
    told = {FeedOrder.read(line) for line in orders.read_bytes().splitlines()}
    assert [order.archive for order in told] == [archive_url(tmp_path)]


TELLS_AND_WAITS = """
import sys
sys.stdin.readline()
sys.stdout.write(sys.argv[1] + chr(10))
sys.stdout.flush()
sys.stdin.read()
"""
NO_POSITION = '{"report": {"seq": null, "trouble": "", "pause_seconds": 0}}'


def test_what_the_archive_had_before_a_process_died_it_has_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path, max_lag={"entries": 8})
    for number in range(10):
        write(ledger, number)
        wait_until(lambda: fed(ledger))
    command = (sys.executable, "-c", TELLS_AND_WAITS, NO_POSITION)
    answered = threading.Event()
    exchange, pid = Desk.exchange, pid_of(ledger)

    def noted(desk: Desk, report: Report) -> Goal:
        goal = exchange(desk, report)
        if feeder_of(ledger).pid not in {None, pid}:
            answered.set()
        return goal

    with monkeypatch.context() as waits:
        waits.setattr(feedprocess_module, "_COMMAND", command)
        waits.setattr(Desk, "exchange", noted)
        os.kill(pid, signal.SIGKILL)
        assert answered.wait(_WAIT_SECONDS)
        assert ledger.lag() == (0, 0.0)
        assert ledger.problem() is None
        assert "ended with signal 9" in feeder_of(ledger).trouble()
    os.kill(pid_of(ledger), signal.SIGKILL)
    ledger.close()
    assert compared(tmp_path).agrees


def test_a_process_that_says_nothing_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    monkeypatch.setattr(feedprocess_module, "_SILENT_SECONDS", 0.5)
    pid = pid_of(ledger)
    os.kill(pid, signal.SIGSTOP)
    silent = f"the process that feeds the archive, {pid}, has said nothing for"
    wait_until(lambda: silent in feeder_of(ledger).trouble())
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not feeder_of(ledger).trouble())
    ledger.close()
    assert compared(tmp_path).agrees


@pytest.mark.usefixtures("no_next")
def test_words_of_another_kind_are_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-c", TELLS_AND_WAITS, "1")
    with monkeypatch.context() as strange:
        strange.setattr(feedprocess_module, "_COMMAND", command)
        ledger = open_ledger(tmp_path)
        wait_until(lambda: "ended with" in feeder_of(ledger).trouble())
        assert feeder_of(ledger)._thread.is_alive()
    ledger.close()
    assert compared(tmp_path).agrees


@pytest.mark.usefixtures("no_next")
def test_at_the_end_there_is_one_more_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = tmp_path / "orders"
    command = (sys.executable, "-c", BREAKS_OFF, str(orders))
    monkeypatch.setattr(feedprocess_module, "_COMMAND", command)
    ledger = open_ledger(tmp_path)
    wait_until(lambda: "ended with status 0" in feeder_of(ledger).trouble())
    ledger.close()
    assert len(orders.read_text().splitlines()) == 2


def test_a_system_that_gives_no_more_processes_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(feedprocess_module, "_COMMAND", (str(tmp_path / "absent"),))
        ledger = open_ledger(tmp_path)
        wait_until(lambda: "No such file" in feeder_of(ledger).trouble())
    wait_until(lambda: fed(ledger))
    ledger.close()
    assert compared(tmp_path).agrees


def test_one_that_meets_what_nobody_expects_says_no_more_than_its_name(
    tmp_path: Path,
) -> None:
    ledger = open_ledger(tmp_path, archive="sqlite:///secret\0.db")
    told = "the process that feeds the archive: it died of ValueError"
    wait_until(lambda: feeder_of(ledger).trouble() == told)
    assert ledger.problem() is None
    pid = pid_of(ledger)
    await_other(ledger, pid)
    feeder_of(ledger).stop(0)
    ledger.close()


def test_a_break_stops_issuing_and_no_other_process_follows(
    tmp_path: Path, ledger: Ledger
) -> None:
    pid = pid_of(ledger)
    path = tmp_path / "journal/w0/00000001.jsonl"
    os.kill(pid, signal.SIGSTOP)
    write(ledger, 5)
    last = path.read_bytes().splitlines()[-2]
    changed = path.read_bytes().replace(last, last.replace(b"payments", b"pavments"))
    path.write_bytes(changed)
    os.kill(pid, signal.SIGCONT)
    feeder_of(ledger)._thread.join(_WAIT_SECONDS)
    assert not feeder_of(ledger)._thread.is_alive(), "another follows"
    assert "00000001.jsonl: at byte" in str(ledger.problem())
    await_end(pid)
    assert feeder_of(ledger).pid is None
    assert ledger.lag()[0] > 0


def test_an_archive_that_cannot_be_opened_yet_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "archive.db").mkdir()
    ledger = open_ledger(tmp_path)
    wait_until(lambda: "cannot be opened" in feeder_of(ledger).trouble())
    (tmp_path / "archive.db").rmdir()
    wait_until(lambda: fed(ledger))
    assert feeder_of(ledger).trouble() == ""
    ledger.close()


def test_an_archive_whose_url_is_wrong_is_a_problem(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, archive="nosuchdb://x")
    wait_until(lambda: "expected a SQLAlchemy URL" in str(ledger.problem()))
    ledger.close()


def test_an_end_does_not_wait_for_an_archive_that_is_locked(
    tmp_path: Path, ledger: Ledger
) -> None:
    other = sqlite3.connect(tmp_path / "archive.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    write(ledger, 5)
    pid, began = pid_of(ledger), time.monotonic()
    feeder_of(ledger).stop(0.2)
    # SQLite alone would wait for 5 s.
    assert time.monotonic() - began < 2
    await_end(pid, 2)
    wait_until(lambda: not feeder_of(ledger)._thread.is_alive())
    other.close()
    ledger.close()
    open_ledger(tmp_path).close()
    assert compared(tmp_path).agrees


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_when_its_writer_says_so_and_not_before(
    ledger: Ledger, number: signal.Signals
) -> None:
    pid = pid_of(ledger)
    os.kill(pid, number)
    write(ledger, 5)
    wait_until(lambda: fed(ledger))
    assert pid_of(ledger) == pid
    assert os.getpgid(pid) == pid, "Ctrl-C would reach it"


def test_nobody_else_learns_what_it_is_told(tmp_path: Path) -> None:
    # A URL may hold a password.
    ledger = open_ledger(tmp_path, archive="sqlite:///secret.db")
    wait_until(lambda: fed(ledger))
    for name in ("cmdline", "environ"):
        shown = Path(f"/proc/{pid_of(ledger)}/{name}").read_bytes()
        assert shown
        assert b"secret" not in shown
    ledger.close()


def test_it_leaves_no_core_dump(ledger: Ledger) -> None:
    limit = resource.prlimit(pid_of(ledger), resource.RLIMIT_CORE)
    assert limit == (0, 0)


def test_it_works_in_the_idle_class_and_can_leave_it(ledger: Ledger) -> None:
    pid = pid_of(ledger)
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    classes = {thread: os.sched_getscheduler(thread) for thread in threads}
    # Only the first one: see `Idler.serve`.
    assert classes.pop(pid) == os.SCHED_IDLE
    assert set(classes.values()) == {os.SCHED_BATCH}
    assert all(os.getpriority(os.PRIO_PROCESS, one) >= 3 for one in classes)


@pytest.mark.parametrize("make_feed", [FeederProcess, Feeder])
def test_of_one_writer_one_feeds_at_a_time(tmp_path: Path, make_feed: MakeFeed) -> None:
    open_ledger(tmp_path).close()
    held = FeedLock(tmp_path / "journal/w0")
    held.take()
    ledger = open_ledger(tmp_path, make_feed=make_feed)
    wait_until(lambda: "another process feeds" in ledger._feeder.trouble())
    write(ledger, 1)
    assert ledger.problem() is None
    held.release()
    wait_until(lambda: fed(ledger))
    ledger.close()
    assert compared(tmp_path).agrees


PARENT = """
import sys, time
from pathlib import Path
from bridge.ledger.archive.feedprocess import FeederProcess
from bridge.ledger.ledger import Ledger
from tests.unit.ledger.support import SetClock, make_config, make_ended, make_intent
from tests.unit.ledger.support import archive_url

ledger = Ledger.open(
    make_config(Path(sys.argv[1]), max_lag={"entries": 100_000, "seconds": 9_999}),
    writer="w0",
    version="1",
    clock=SetClock(),
    make_feed=FeederProcess,
)
while ledger._feeder.pid is None:
    pass
print(ledger._feeder.pid, flush=True)
for number in range(int(sys.argv[2])):
    ledger.intend(make_intent(number))
    ledger.end(make_ended(number))
print("written", flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), "3000"],
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        text=True,
    ) as parent:
        yield parent
        parent.kill()


def test_it_ends_with_its_writer_and_the_next_goes_on_at_once(
    tmp_path: Path, parent: "subprocess.Popen[str]"
) -> None:
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "written\n"
    parent.kill()
    parent.wait()
    # The journal of the killed one is there: no wait for its feeder.
    ledger = open_ledger(tmp_path)
    wait_until(lambda: fed(ledger) or ledger._feeder.problem())
    assert ledger.problem() is None
    await_end(pid)
    ledger.close()
    result = compared(tmp_path)
    assert result.agrees, result


def test_it_ends_with_its_writer_in_the_middle_of_its_work(
    tmp_path: Path, parent: "subprocess.Popen[str]"
) -> None:
    archive = Archive.open(archive_url(tmp_path))
    other = sqlite3.connect(tmp_path / "archive.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert parent.stdout is not None
    parent.stdout.readline()
    locked = str(tmp_path / "archive.db")
    wait_until(
        lambda: any(locked in opened_by(pid) for pid in processes.feeders(parent.pid))
    )
    left = processes.feeders(parent.pid)
    parent.kill()
    # SQLite alone would wait for 5 s, and then for the next answer.
    for pid in left:
        await_end(pid, 2)
    other.close()
    archive.close()


def opened_by(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            found.add(str(path.readlink()))
    return found
