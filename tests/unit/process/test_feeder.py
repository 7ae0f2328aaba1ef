"""The process that feeds: what it does, and what happens when it ends."""

import os
import resource
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.ledger import Ledger
from bridge.ledger.verify import verify
from bridge.process import helper_process
from bridge.process.role import FeederOrder
from bridge.system.child_process import ChildProcess
from tests.support.harness import processes
from tests.support.harness.archive import compared
from tests.support.harness.configuration import text
from tests.support.harness.workers import await_true
from tests.unit.ledger.support import (
    SetClock,
    abandon,
    all_rows,
    archive_url,
    fed,
    make_config,
    make_ended,
    make_intent,
    open_journal,
    open_ledger,
    publish,
)

_ROOT = Path(__file__).parents[3]
wait_until = partial(await_true, seconds=60)


def await_end(pid: int, seconds: float = 60) -> None:
    """Wait for a process that need not be a child of this one."""
    with suppress(ProcessLookupError):
        ends = select.poll()
        descriptor = os.pidfd_open(pid)
        ends.register(descriptor, select.POLLIN)
        ended = ends.poll(seconds * 1000)
        os.close(descriptor)
        assert ended, "it goes on"


def order_of(folder: Path, archive: str = "") -> FeederOrder:
    return FeederOrder(
        path=str(folder / "bridge.yaml"),
        text=text(),
        journal=str(folder / "journal"),
        archive=archive or archive_url(folder),
        entries=10_000,
        seconds=60,
        log_level="INFO",
    )


def write(ledger: Ledger, *numbers: int) -> None:
    for number in numbers:
        ledger.intend(make_intent(number))
        ledger.end(make_ended(number), durable=True)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = open_ledger(tmp_path)
    yield ledger
    ledger.close()


Start = Callable[[], ChildProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children = []

    def start() -> ChildProcess:
        children.append(helper_process.start(helper_process.FEEDER, order_of(tmp_path)))
        return children[-1]

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
            await_end(child.pid)
            wait_until(lambda: child.poll() is not None)  # noqa: B023


def test_after_sigterm_it_feeds_until_the_last_writer_has_ended(
    tmp_path: Path, ledger: Ledger, start: Start
) -> None:
    child = start()
    write(ledger, 1, 2)
    wait_until(lambda: fed(ledger))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(child.pid, number)
    write(ledger, 3)
    wait_until(lambda: fed(ledger))
    assert child.poll() is None
    # These are not waited for.
    write(ledger, 4, 5)
    ledger.close()
    wait_until(lambda: child.poll() is not None)
    assert child.poll() == 0
    assert compared(tmp_path).agrees
    assert compared(tmp_path).equal == len(all_rows(tmp_path / "journal/w0")) > 10


def test_at_its_end_it_settles_the_journals_of_writers_that_were_killed(
    tmp_path: Path, start: Start
) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    journal.append_durable(make_intent(1))
    abandon(journal)
    child = start()
    child.terminate()
    wait_until(lambda: child.poll() is not None)
    if child.poll() == -signal.SIGTERM:
        # Asked before it had set its handler.
        child = start()
        wait_until((tmp_path / "archive.db").exists)
        child.terminate()
        wait_until(lambda: child.poll() is not None)
    assert child.poll() == 0
    assert compared(tmp_path).agrees
    report = verify(tmp_path / "journal", tmp_path / "heads.jsonl")
    assert report.intact
    assert [each.open_intents for each in report.writers] == [[]]


def test_one_that_is_stopped_is_a_lag_with_its_reason(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.open(
        make_config(tmp_path, max_lag={"entries": 4}),
        writer="w0",
        clock=SetClock(),
    )
    child = start()
    wait_until(lambda: fed(ledger))
    processes.pause(child.pid)
    monkeypatch.setattr("bridge.ledger.journal.progress._SILENT_SECONDS", 0.05)
    write(ledger, 1, 2)
    with pytest.raises(LedgerError, match="takes no intent") as caught:
        write(ledger, 3, 4)
    assert caught.value.rule == "ledger.lag"
    assert "the archive feeder has reported nothing for" in caught.value.detail
    os.kill(child.pid, signal.SIGCONT)
    wait_until(lambda: fed(ledger))
    write(ledger, 5)
    ledger.close()


def test_it_has_a_lower_priority_and_leaves_no_core_dump(
    ledger: Ledger, start: Start
) -> None:
    child = start()
    wait_until(lambda: fed(ledger))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(own + 3, 19)
    assert os.sched_getscheduler(child.pid) == os.SCHED_BATCH
    assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (0, 0)
    assert os.getpgid(child.pid) == child.pid, "Ctrl-C would reach it"


def test_its_order_is_in_no_argument_and_not_in_the_environment(
    tmp_path: Path, ledger: Ledger
) -> None:
    # A URL may hold a password.
    url = f"sqlite:///{tmp_path}/secret.db"
    child = helper_process.start(helper_process.FEEDER, order_of(tmp_path, url))
    wait_until(lambda: fed(ledger))
    for name in ("cmdline", "environ"):
        shown = Path(f"/proc/{child.pid}/{name}").read_bytes()
        assert shown
        assert b"secret" not in shown
    child.kill()
    wait_until(lambda: child.poll() is not None)


def test_an_error_that_nobody_expects_is_named_by_its_type_alone(
    tmp_path: Path, ledger: Ledger, capfd: pytest.CaptureFixture[str]
) -> None:
    child = helper_process.start(
        helper_process.FEEDER, order_of(tmp_path, "sqlite:///secret\0.db")
    )
    wait_until(lambda: child.poll() is not None)
    assert child.poll() == 1
    told = capfd.readouterr().err
    assert "unexpected error: ValueError" in told
    assert "secret" not in told
    assert ledger.problem() is None


PARENT = """
import sys, time
from pathlib import Path
from bridge.process import helper_process
from tests.unit.ledger.support import open_ledger
from tests.unit.process.test_feeder import order_of, write

folder = Path(sys.argv[1])
ledger = open_ledger(folder)
child = helper_process.start(helper_process.FEEDER, order_of(folder))
print(child.pid, flush=True)
write(ledger, 1, 2, 3)
time.sleep(600)
"""


def test_it_ends_with_its_parent_in_the_middle_of_its_work(tmp_path: Path) -> None:
    archive = Archive.open(archive_url(tmp_path))
    other = sqlite3.connect(tmp_path / "archive.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=_ROOT, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert processes.feeders(parent.pid) == [pid]
            locked = str(tmp_path / "archive.db")
            wait_until(lambda: locked in opened_by(pid))
        finally:
            parent.kill()
        # SQLite alone would wait for 5 s.
        await_end(pid, 3)
    other.close()
    archive.close()


def opened_by(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            found.add(str(path.readlink()))
    return found
