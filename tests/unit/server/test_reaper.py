"""Who is given up when too many messages do not come."""

import threading

import pytest

from bridge.server.reaper import Reaper


class Call:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_of_too_many_the_one_that_waited_longest_is_given_up() -> None:
    reaper = Reaper(60, most=2, honest_seconds=-1.0)
    calls = [Call() for _ in range(3)]
    with reaper.watching(calls[0]), reaper.watching(calls[1]):
        assert not any(call.cancelled for call in calls)
        with reaper.watching(calls[2]):
            assert [call.cancelled for call in calls] == [True, False, False]


def test_a_call_that_has_just_come_is_not_given_up() -> None:
    reaper = Reaper(60, most=1)
    first, second = Call(), Call()
    with reaper.watching(first), reaper.watching(second):
        assert not first.cancelled


def test_who_got_its_message_is_no_longer_watched() -> None:
    reaper = Reaper(60, most=1, honest_seconds=-1.0)
    first, second = Call(), Call()
    with reaper.watching(first):
        pass
    with reaper.watching(second):
        assert not first.cancelled


@pytest.mark.parametrize("is_eager", [True, False])
def test_an_eager_one_needs_no_other_call_to_give_up_too_many(
    *, is_eager: bool
) -> None:
    reaper = Reaper(60, most=2, honest_seconds=-1.0, is_eager=is_eager)
    reaper.start()
    calls = [Call() for _ in range(2)]
    try:
        with reaper.watching(calls[0]), reaper.watching(calls[1]):
            for _ in range(2000):
                if all(call.cancelled for call in calls) or not is_eager:
                    break
                threading.Event().wait(0.01)
            assert all(call.cancelled is is_eager for call in calls)
    finally:
        reaper.close()


def test_an_eager_one_leaves_few_alone() -> None:
    reaper = Reaper(60, most=2, honest_seconds=-1.0, is_eager=True)
    reaper.start()
    call = Call()
    with reaper.watching(call):
        threading.Event().wait(0.6)  # it looks four times a second
        assert not call.cancelled
    reaper.close()
