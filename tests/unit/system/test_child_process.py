import os
from pathlib import Path

import pytest

from bridge.system.child_process import ChildProcess, SupervisedChild, how_it_ended
from tests.support.harness.workers import await_true


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


def test_a_final_status_is_the_last(starter: Starter) -> None:
    child = SupervisedChild("the child", starter, final=(65,))
    child.tick(0)
    starter.started[0].status = 1
    child.tick(1)
    assert not child.is_given_up
    child.tick(2)
    starter.started[1].status = 65
    for now in range(3, 99):
        child.tick(now)
    assert child.is_given_up
    assert len(starter.started) == 2
    assert child.reason.startswith("ended with status 65; not started again until a re")
    child.stop(100, 1)
    assert child.is_gone


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


def test_a_child_that_ended_before_it_read_its_order_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_child.py").write_text("import os; os.close(0); os._exit(4)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = ChildProcess("a_child", b"x" * (1 << 20) + b"\n")
    await_true(lambda: child.poll() is not None)
    assert child.poll() == 4


def test_a_child_has_the_descriptors_that_it_is_handed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_child.py").write_text(
        "import os, sys; os.write(int(sys.stdin.readline()), b'here')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    end, theirs = os.pipe()
    child = ChildProcess("a_child", f"{theirs}\n".encode(), pass_fds=(theirs,))
    os.close(theirs)
    assert os.read(end, 10) == b"here"
    await_true(lambda: child.poll() == 0)
    os.close(end)
