import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bridge.server.transport.call_pool import CallPool
from tests.support.harness.in_process_server import WAIT_SECONDS, eventually


class Work:
    """Blocks the one thread of a pool until a test says otherwise."""

    def __init__(self, pool: CallPool) -> None:
        self.release = threading.Event()
        self.done = threading.Event()
        began = threading.Event()

        def run() -> None:
            began.set()
            assert self.release.wait(WAIT_SECONDS)
            self.done.set()

        usual, pool.queue_seconds = pool.queue_seconds, WAIT_SECONDS
        pool.submit(run)
        assert began.wait(WAIT_SECONDS)
        pool.queue_seconds = usual


@pytest.fixture
def pool() -> Iterator[CallPool]:
    made = CallPool(1, 3, 0.05)
    made.start()
    yield made
    made.shutdown()


def test_calls_that_wait_and_calls_that_run_count(pool: CallPool) -> None:
    work = Work(pool)
    pool.queue_seconds = WAIT_SECONDS
    for _ in range(2):
        pool.submit(int)
    assert pool.count == 3
    assert pool.excess() == "in_flight"
    work.release.set()
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
    for _ in range(5):
        pool.submit(int)
    eventually(lambda: sys.getswitchinterval() < usual / 5)
    work.release.set()
    eventually(lambda: sys.getswitchinterval() == usual)


def test_turns_stay_short_while_another_pool_is_crowded(pool: CallPool) -> None:
    usual = sys.getswitchinterval()
    other = CallPool(1, 100, WAIT_SECONDS)
    other.start()
    pool.queue_seconds = WAIT_SECONDS
    works = [Work(one) for one in (pool, other)]
    for one in (pool, other):
        for _ in range(5):
            one.submit(int)
        eventually(lambda one=one: one._is_crowded)  # type: ignore[misc]
    works[0].release.set()
    eventually(lambda: not pool._is_crowded)
    assert sys.getswitchinterval() < usual / 5
    # Neither does the end of a pool that was not crowded, and one that was leaves none.
    idle = CallPool(1, 1, WAIT_SECONDS)
    idle.start()
    assert idle.close(WAIT_SECONDS)
    assert sys.getswitchinterval() < usual / 5
    assert not other.close(0)
    eventually(lambda: sys.getswitchinterval() == usual)
    works[1].release.set()


def test_an_overdue_call_is_run_once_while_the_thread_is_at_work(
    pool: CallPool,
) -> None:
    work = Work(pool)
    ran = threading.Event()
    names: list[str] = []

    def overdue() -> None:
        names.append(threading.current_thread().name)
        ran.set()

    pool.submit(overdue)
    assert ran.wait(WAIT_SECONDS)
    work.release.set()
    assert pool.wait_until_idle(WAIT_SECONDS)
    assert names == ["overdue-calls"]


def test_overdue_calls_are_looked_for_again_whatever_goes_wrong_once(
    pool: CallPool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = iter([RuntimeError("dictionary changed size during iteration")])
    is_overdue = pool.is_overdue

    def broken(since: float) -> bool:
        for failure in failures:
            raise failure
        return is_overdue(since)

    work = Work(pool)
    monkeypatch.setattr(pool, "is_overdue", broken)
    ran = threading.Event()
    pool.submit(ran.set)
    assert ran.wait(WAIT_SECONDS)
    work.release.set()
    assert "unexpected error in the background loop overdue-calls" in caplog.text


def test_waiting_for_idle_gives_up(pool: CallPool) -> None:
    work = Work(pool)
    assert not pool.wait_until_idle(0.01)
    work.release.set()
    assert pool.wait_until_idle(WAIT_SECONDS)


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit("broken")])
def test_a_call_that_fails_is_counted_out_and_ends_no_thread(
    pool: CallPool, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    pool.submit(fail)
    assert pool.wait_until_idle(WAIT_SECONDS)
    assert pool.count == 0
    assert "a call ended with an error" in caplog.text
    Work(pool).release.set()


def test_a_call_without_a_message_gets_no_thread_until_it_is_there() -> None:
    class Later:
        count = 1

        def begin(self, work: tuple[object, ...], ready: Callable[..., None]) -> bool:
            if work == ("at once",):
                return False
            self.ready = ready
            return True

    later: Any = Later()
    pool = CallPool(1, 1, WAIT_SECONDS, later)
    pool.start()
    ran: queue.SimpleQueue[str] = queue.SimpleQueue()
    pool.submit(ran.put, "it has to come")
    pool.submit(ran.put, "at once")
    assert ran.get(timeout=WAIT_SECONDS) == "at once"
    eventually(lambda: pool.count == 1)  # it is under way, although nobody works
    assert pool.excess() == "", "and takes no place from a call that has its message"
    later.ready(("it has come",), time.monotonic())
    assert ran.get(timeout=WAIT_SECONDS) == "it has come"
    assert pool.close(WAIT_SECONDS)


def test_a_closed_pool_counts_nothing_and_does_not_raise() -> None:
    pool = CallPool(1, 1, 1.0)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after the end"):
        pool.submit(int).result(0)
    assert pool.count == 0


def test_a_pool_of_calls_that_gets_too_few_threads_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, start = CallPool(3, 3, 1.0), threading.Thread.start

    def one_only(thread: threading.Thread) -> None:
        if any(other.ident for other in pool._workers):
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
    assert work.done.wait(WAIT_SECONDS)
