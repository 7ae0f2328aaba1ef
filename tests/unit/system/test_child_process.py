import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge.system.child_process import ChildProcess, SupervisedChild, how_it_ended

PATIENCE_SECONDS = 20.0

CHILD = """
import os, threading
from pathlib import Path
from bridge.system.child_process import follow_parent, read_order
folder = Path(read_order().decode().strip())
parent_ended = threading.Event()
follow_parent(parent_ended.set)
folder.joinpath("nice").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))
folder.joinpath("began").write_text(str(os.getpid()))
parent_ended.wait()
folder.joinpath("ended").write_text("the parent ended")
"""

PARENT = """
import sys, time
from bridge.system.child_process import ChildProcess
child = ChildProcess("a_child", sys.argv[1].encode() + b"\\n")
time.sleep(600)
"""


class FakeChild:
    """A process that does what a test says."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.obeys = True
        self.signals: list[str] = []

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self.signals.append("TERM")
        if self.obeys:
            self.status = 0

    def kill(self) -> None:
        self.signals.append("KILL")
        self.status = -9


class Starter:
    """Starts fakes, and keeps all that it started."""

    def __init__(self) -> None:
        self.started: list[FakeChild] = []
        self.is_full = False

    def __call__(self) -> FakeChild:
        if self.is_full:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.started.append(FakeChild(100 + len(self.started)))
        return self.started[-1]


@pytest.fixture
def starter() -> Starter:
    return Starter()


@pytest.fixture
def supervised(starter: Starter) -> SupervisedChild[FakeChild]:
    return SupervisedChild("the child", starter)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let an interpreter that is started find the module `a_child`."""
    tmp_path.joinpath("a_child.py").write_text(CHILD)
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    return tmp_path


def await_file(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
    return path.read_text()


def await_status(child: ChildProcess) -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (status := child.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return status


# Seconds that each process ran, and the wait for the next one after them.
BACK_OFF = [
    ([0.0], 0.2),
    ([0.0, 0.0], 0.4),
    ([0.0, 0.0, 0.0], 0.8),
    ([0.0] * 12, 30.0),
    ([0.0, 0.0, 29.9], 0.8),
    ([0.0, 0.0, 30.0], 0.2),
]


@pytest.mark.parametrize(("ran", "wait"), BACK_OFF)
def test_the_wait_doubles_until_a_child_has_run_for_a_while(
    supervised: SupervisedChild[FakeChild],
    starter: Starter,
    ran: list[float],
    wait: float,
) -> None:
    now = 1000.0
    for seconds in ran:
        supervised.tick(now)
        while supervised.child is None:
            now += 0.05
            supervised.tick(now)
        now += seconds
        starter.started[-1].status = -9
        supervised.tick(now)
    assert supervised.reason == "ended with signal 9"
    supervised.tick(now + wait - 0.01)
    assert supervised.child is None
    supervised.tick(now + wait + 0.01)
    assert supervised.child is starter.started[-1]
    assert supervised.reason == ""
    assert supervised.restarts == len(ran)


def test_a_system_without_processes_is_asked_again(
    supervised: SupervisedChild[FakeChild], starter: Starter
) -> None:
    starter.is_full = True
    supervised.tick(0)
    assert supervised.reason == (
        "could not be started: Resource temporarily unavailable"
    )
    starter.is_full = False
    supervised.tick(1)
    assert supervised.child is not None


def test_the_end_is_told_with_its_status_and_its_words_are_the_reason(
    starter: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[int, int]] = []

    def tell(child: FakeChild, status: int) -> str:
        told.append((child.pid, status))
        return "no disk"

    supervised = SupervisedChild("the child", starter, tell)
    supervised.tick(0)
    starter.started[0].status = 3
    supervised.tick(1)
    assert told == [(100, 3)]
    assert supervised.reason == "no disk"
    assert caplog.messages == ["the child: no disk; restarted in 0.2 s"]


@pytest.mark.parametrize(
    ("status", "words"), [(3, "ended with status 3"), (-11, "ended with signal 11")]
)
def test_a_status_is_told_in_words(status: int, words: str) -> None:
    assert how_it_ended(FakeChild(1), status) == words


def test_a_child_that_was_asked_to_end_is_not_restarted(
    supervised: SupervisedChild[FakeChild], starter: Starter
) -> None:
    supervised.tick(0)
    supervised.stop(1, grace_seconds=5)
    assert not supervised.is_gone
    supervised.tick(2)
    supervised.tick(100)
    assert supervised.is_gone
    assert supervised.reason == ""
    assert [child.signals for child in starter.started] == [["TERM"]]


def test_a_child_that_does_not_end_in_time_is_killed(
    supervised: SupervisedChild[FakeChild], starter: Starter
) -> None:
    supervised.tick(0)
    starter.started[0].obeys = False
    supervised.stop(10, grace_seconds=5)
    supervised.tick(14.9)
    assert starter.started[0].signals == ["TERM"]
    supervised.tick(15.0)
    supervised.tick(15.1)
    assert starter.started[0].signals == ["TERM", "KILL"]
    assert supervised.is_gone


def test_one_that_is_stopped_while_it_waits_is_never_started(
    supervised: SupervisedChild[FakeChild], starter: Starter
) -> None:
    supervised.tick(0)
    starter.started[0].status = 1
    supervised.tick(1)
    supervised.stop(1, grace_seconds=5)
    assert supervised.is_gone
    supervised.tick(60)
    assert len(starter.started) == 1


def test_a_child_reads_its_order_and_is_as_nice_as_it_was_told(on_path: Path) -> None:
    child = ChildProcess("a_child", f"{on_path}\n".encode(), niceness=3)
    try:
        assert int(await_file(on_path / "began")) == child.pid
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert await_file(on_path / "nice") == str(min(own + 3, 19))
        assert os.getpgid(child.pid) == child.pid
        child.terminate()
        assert await_status(child) == -signal.SIGTERM
    finally:
        child.kill()


def test_a_child_that_ended_before_it_read_its_order_is_no_error(
    on_path: Path,
) -> None:
    on_path.joinpath("a_child.py").write_text("import os; os.close(0); os._exit(4)")
    child = ChildProcess("a_child", b"x" * (1 << 20) + b"\n")
    assert await_status(child) == 4


def test_a_child_notices_that_its_parent_was_killed(on_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(on_path)])
    try:
        await_file(on_path / "began")
    finally:
        parent.kill()
        parent.wait()
    assert await_file(on_path / "ended") == "the parent ended"
