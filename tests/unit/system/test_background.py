"""The background loop: interval, errors, and its end."""

import threading
from collections.abc import Callable, Iterator

import pytest

from bridge.system.background import BackgroundLoop, SteadyPool

_SOON_SECONDS = 20.0
_NEVER_SECONDS = 3600.0


class _Steps:
    """Counts the steps, and lets a test wait for one."""

    def __init__(self) -> None:
        self.count = 0
        self.thread = ""
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self.thread = threading.current_thread().name
            self._changed.notify_all()

    def reached(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.count >= count, _SOON_SECONDS)


@pytest.fixture
def steps() -> _Steps:
    return _Steps()


@pytest.fixture
def loop_of() -> Iterator[Callable[[BackgroundLoop], BackgroundLoop]]:
    loops: list[BackgroundLoop] = []

    def start(loop: BackgroundLoop) -> BackgroundLoop:
        loops.append(loop)
        loop.start()
        return loop

    yield start
    for loop in loops:
        loop.close()


Start = Callable[[BackgroundLoop], BackgroundLoop]


def test_the_step_runs_again_and_again_in_a_named_thread(
    steps: _Steps, loop_of: Start
) -> None:
    loop_of(BackgroundLoop("counter", steps, 0.001))
    assert steps.reached(3)
    assert steps.thread == "counter"


def test_an_error_is_logged_and_ends_nothing(
    loop_of: Start, caplog: pytest.LogCaptureFixture
) -> None:
    steps = _Steps()

    def step() -> None:
        steps()
        raise ValueError("step failed")

    loop_of(BackgroundLoop("failing", step, 0.001))
    assert steps.reached(3)
    assert "unexpected error in the background loop failing" in caplog.text
    assert "step failed" in caplog.text


def test_the_first_step_waits_for_the_interval(steps: _Steps, loop_of: Start) -> None:
    loop_of(BackgroundLoop("late", steps, _NEVER_SECONDS)).close()
    assert steps.count == 0


def test_an_immediate_loop_runs_its_first_step_at_once(
    steps: _Steps, loop_of: Start
) -> None:
    loop_of(BackgroundLoop("early", steps, _NEVER_SECONDS, is_immediate=True))
    assert steps.reached(1)


def test_the_interval_may_change_from_step_to_step(
    steps: _Steps, loop_of: Start
) -> None:
    seconds = iter((0.001, 0.001, _NEVER_SECONDS))
    loop = loop_of(BackgroundLoop("slower", steps, lambda: next(seconds)))
    assert steps.reached(2)
    loop.close()
    assert steps.count == 2


def test_the_thread_runs_what_comes_at_the_end(steps: _Steps) -> None:
    loop = BackgroundLoop("ending", lambda: None, _NEVER_SECONDS, at_end=steps)
    loop.start()
    assert loop.close()
    assert (steps.count, steps.thread) == (1, "ending")


def test_a_loop_that_was_not_started_can_be_closed_twice(steps: _Steps) -> None:
    loop = BackgroundLoop("unused", steps, 0.001)
    assert loop.close()
    assert loop.close()
    assert loop.is_closing


def test_a_step_may_close_its_own_loop(loop_of: Start) -> None:
    ended = threading.Event()

    def step() -> None:
        assert loop.close()
        ended.set()

    loop = BackgroundLoop("own", step, 0.001)
    loop_of(loop)
    assert ended.wait(_SOON_SECONDS)
    assert loop.close(_SOON_SECONDS)


def test_a_close_with_a_timeout_tells_that_the_step_still_runs(loop_of: Start) -> None:
    began, go_on = threading.Event(), threading.Event()

    def step() -> None:
        began.set()
        go_on.wait(_SOON_SECONDS)

    loop = loop_of(BackgroundLoop("slow", step, 0.0))
    assert began.wait(_SOON_SECONDS)
    assert not loop.close(0.01)
    go_on.set()
    assert loop.close(_SOON_SECONDS)


def test_a_wait_ends_when_the_loop_is_stopped(steps: _Steps) -> None:
    loop = BackgroundLoop("stopped", steps, 0.001)
    assert not loop.wait(0.0)
    loop.stop()
    assert loop.wait(_NEVER_SECONDS)


def test_a_pool_starts_all_its_threads_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = SteadyPool(3, "steady")
    pool.start()
    assert len(pool._threads) == 3

    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    for future in [pool.submit(int) for _ in range(9)]:
        assert future.result(_SOON_SECONDS) == 0
    assert pool.close(_SOON_SECONDS)


def test_a_pool_that_gets_too_few_threads_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, start = SteadyPool(3, "steady"), threading.Thread.start

    def one_only(thread: threading.Thread) -> None:
        if pool._threads:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", one_only)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.start()
    assert pool.close(_SOON_SECONDS)
