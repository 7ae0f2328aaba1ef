import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bridge.server.pool import CallPool, SteadyPool
from tests.support.serving import WAIT_SECONDS


class Work:
    """Blocks the one thread of a pool until a test says otherwise."""

    def __init__(self, pool: CallPool) -> None:
        self.release = threading.Event()
        began = threading.Event()

        def run() -> None:
            began.set()
            assert self.release.wait(WAIT_SECONDS)

        self.done = pool.submit(run)
        assert began.wait(WAIT_SECONDS)


@pytest.fixture
def pool() -> Iterator[CallPool]:
    made = CallPool(1, 3, 0.05)
    made.start()
    yield made
    made.shutdown()


def test_calls_that_wait_and_calls_that_run_count(pool: CallPool) -> None:
    work = Work(pool)
    pool.queue_seconds = WAIT_SECONDS
    waiting = [pool.submit(int) for _ in range(2)]
    assert pool.count == 3
    assert pool.excess() == "in_flight"
    work.release.set()
    for future in waiting:
        future.result(WAIT_SECONDS)
    assert pool.wait_until_idle(WAIT_SECONDS)
    assert pool.excess() == ""


def test_a_call_is_not_refused_for_those_before_it(pool: CallPool) -> None:
    # It may have to wait; whether it waits too long is seen when it has.
    pool.in_flight, pool.queue_seconds = 100, WAIT_SECONDS
    work = Work(pool)
    for _ in range(99):
        assert pool.excess() == ""
        pool.submit(int)
    assert pool.excess() == "in_flight"
    work.release.set()


def test_while_many_wait_the_listener_gets_its_turn_sooner(pool: CallPool) -> None:
    usual = sys.getswitchinterval()
    pool.queue_seconds = WAIT_SECONDS
    work = Work(pool)
    waiting = [pool.submit(int) for _ in range(5)]
    eventually(lambda: sys.getswitchinterval() < usual / 5)
    work.release.set()
    for future in waiting:
        future.result(WAIT_SECONDS)
    eventually(lambda: sys.getswitchinterval() == usual)


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.005)


def test_an_overdue_call_is_run_once_while_the_thread_is_at_work(
    pool: CallPool,
) -> None:
    work = Work(pool)
    ran = threading.Event()
    names: list[str] = []

    def overdue() -> None:
        names.append(threading.current_thread().name)
        ran.set()

    future = pool.submit(overdue)
    assert ran.wait(WAIT_SECONDS)
    work.release.set()
    future.result(WAIT_SECONDS)
    assert names == ["overdue-calls"]


def test_waiting_for_idle_gives_up(pool: CallPool) -> None:
    work = Work(pool)
    assert not pool.wait_until_idle(0.01)
    work.release.set()
    assert pool.wait_until_idle(WAIT_SECONDS)


def test_a_call_that_fails_is_counted_out(pool: CallPool) -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        pool.submit(fail).result(WAIT_SECONDS)
    assert pool.count == 0


def test_a_closed_pool_counts_nothing_and_does_not_raise() -> None:
    pool = CallPool(1, 1, 1.0)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int).result(0)
    assert pool.count == 0


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
        assert future.result(WAIT_SECONDS) == 0
    assert pool.close(WAIT_SECONDS)


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
    assert pool.close(WAIT_SECONDS)


def test_closing_a_pool_does_not_wait_for_work_that_hangs(pool: CallPool) -> None:
    work = Work(pool)
    assert not pool.close(0.01)
    work.release.set()
    work.done.result(WAIT_SECONDS)
