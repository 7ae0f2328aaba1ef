"""Whose calls are given up when their messages do not come."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bridge.server.transport.reaper import Reaper

TICK = 0.05


class Call:
    def __init__(self) -> None:
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True


@contextmanager
def watching(reaper: Reaper, call: Call) -> Iterator[None]:
    reaper.watch(call)
    yield
    reaper.forget(call)


def look_for(reaper: Reaper, seconds: float) -> None:
    for _ in range(round(seconds / TICK)):
        reaper.look(TICK)


def test_a_call_is_waited_for_until_its_time_is_over() -> None:
    reaper, call, late = Reaper(2), Call(), Call()
    with watching(reaper, call):
        look_for(reaper, 1.9)
        with watching(reaper, late):
            assert not call.given_up
            look_for(reaper, 0.2)
        assert call.given_up
        assert not late.given_up


def test_who_got_its_message_is_not_given_up() -> None:
    reaper, call = Reaper(1), Call()
    with watching(reaper, call):
        look_for(reaper, 0.9)
    look_for(reaper, 0.9)
    assert not call.given_up


def test_time_in_which_the_process_did_not_run_is_nobodys_fault() -> None:
    reaper, call = Reaper(2), Call()
    with watching(reaper, call):
        reaper.look(30.0)
        assert not call.given_up


def test_one_that_cannot_be_given_up_ends_the_look_at_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Call):
        def give_up(self) -> None:
            raise RuntimeError("the call is no more")

    class Awaited(Call):
        def give_up(self) -> None:
            happened.set()

    happened = threading.Event()
    reaper = Reaper(0.01)
    reaper.start()
    with watching(reaper, Broken()), watching(reaper, Awaited()):
        assert happened.wait(60)
    reaper.close()
    assert "unexpected error in the background loop stalled-calls" in caplog.text
