"""Who is given up when too many messages do not come."""

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
