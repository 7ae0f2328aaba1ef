"""Whose calls are given up when their messages do not come."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from bridge.server.transport import reaper as module
from bridge.server.transport.reaper import Reaper

TICK = 0.05


class Call:
    def __init__(self, peer: str = "ipv4:127.0.0.1:1") -> None:
        self.given_up = False
        self._peer = peer

    def give_up(self) -> None:
        self.given_up = True

    def peer(self) -> str:
        return self._peer


@contextmanager
def watching(reaper: Reaper, call: Call) -> Iterator[None]:
    reaper.watch(call)
    yield
    reaper.forget(call)


def look_for(reaper: Reaper, seconds: float) -> None:
    for _ in range(round(seconds / TICK)):
        reaper.look(TICK)


def test_one_that_waits_alone_is_waited_for_until_its_time_is_over() -> None:
    reaper, call = Reaper(2, most=2), Call()
    with watching(reaper, call):
        look_for(reaper, 1.9)
        assert not call.given_up
        look_for(reaper, 0.2)
        assert call.given_up


def test_of_too_many_all_that_waited_for_more_than_a_moment_are_given_up() -> None:
    reaper = Reaper(60, most=2)
    first, second, newcomer = Call(), Call(), Call()
    with watching(reaper, first), watching(reaper, second):
        look_for(reaper, 0.45)
        assert [first.given_up, second.given_up] == [False, False]
        with watching(reaper, newcomer):
            look_for(reaper, 0.1)
    assert [first.given_up, second.given_up] == [True, True]
    assert not newcomer.given_up


def test_who_got_its_message_does_not_count() -> None:
    reaper = Reaper(60, most=2)
    first, second = Call(), Call()
    with watching(reaper, first):
        with watching(reaper, second):
            look_for(reaper, 0.45)
        look_for(reaper, 0.45)
    assert not first.given_up


def test_time_in_which_the_process_did_not_run_is_nobodys_fault() -> None:
    reaper = Reaper(60, most=2)
    first, second = Call(), Call()
    with watching(reaper, first), watching(reaper, second):
        reaper.look(30.0)
        assert [first.given_up, second.given_up] == [False, False]


def strike(reaper: Reaper, peer: str) -> None:
    call = Call(peer)
    with watching(reaper, call):
        while not call.given_up:
            reaper.look(TICK)


def test_a_connection_is_hostile_after_three_calls_for_a_while() -> None:
    # Istio's client asks again over the same connection: one of them may be bad luck.
    reaper = Reaper(0.1, most=2)
    found = []
    for _ in range(3):
        found.append(reaper.is_hostile(lambda: "a"))
        strike(reaper, "a")
    assert found == [False, False, False]
    assert reaper.is_hostile(lambda: "a")
    assert not reaper.is_hostile(lambda: "b")
    look_for(reaper, module._MEMORY_SECONDS + TICK)
    assert not reaper.is_hostile(lambda: "a")


def test_a_call_that_takes_its_time_to_leave_is_one_strike() -> None:
    # On a busy machine the thread that waits wakes up some looks later.
    reaper, call = Reaper(0.1, most=2), Call("a")
    with watching(reaper, call):
        look_for(reaper, 1)
    assert call.given_up
    assert not reaper.is_hostile(lambda: "a")


@pytest.mark.parametrize(("strikes", "given_up"), [(2, False), (3, True)])
def test_while_a_connection_is_hostile_the_others_have_less_time(
    strikes: int, *, given_up: bool
) -> None:
    reaper = Reaper(60, most=2)
    reaper.seconds = 0.1
    for _ in range(strikes):
        strike(reaper, "a")
    reaper.seconds = 60
    first, second = Call(), Call()
    with watching(reaper, first), watching(reaper, second):
        look_for(reaper, 0.2)
    assert [first.given_up, second.given_up] == [given_up, given_up]


def test_one_that_cannot_be_given_up_ends_the_look_at_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Call):
        def peer(self) -> str:
            raise RuntimeError("the call is no more")

    class Awaited(Call):
        def give_up(self) -> None:
            happened.set()

    happened = threading.Event()
    reaper = Reaper(0.01, most=2)
    reaper.start()
    with watching(reaper, Broken()), watching(reaper, Awaited()):
        assert happened.wait(60)
    reaper.close()
    assert "unexpected error in the background loop stalled-calls" in caplog.text


def test_behind_a_proxy_nobody_is_known_by_the_connection() -> None:
    reaper = Reaper(0.1, most=2, knows_peers=False)
    for _ in range(3):
        strike(reaper, "a")
    assert not reaper.is_hostile(lambda: "a")


def test_behind_a_proxy_too_many_leave_less_time_to_all() -> None:
    reaper = Reaper(60, most=2, knows_peers=False)
    with watching(reaper, Call()), watching(reaper, Call()):
        look_for(reaper, 0.6)
    first, second = Call(), Call()
    with watching(reaper, first), watching(reaper, second):
        look_for(reaper, 0.2)
    assert [first.given_up, second.given_up] == [True, True]


def test_how_long_a_moment_is_depends_on_the_mesh() -> None:
    reaper = Reaper(60, most=2, honest_seconds=1.0)
    first, second = Call(), Call()
    with watching(reaper, first), watching(reaper, second):
        look_for(reaper, 0.9)
        assert [first.given_up, second.given_up] == [False, False]
        look_for(reaper, 0.2)
    assert [first.given_up, second.given_up] == [True, True]


def test_so_many_connections_are_remembered_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_PEERS", 2)
    reaper = Reaper(0.1, most=9)
    with ExitStack() as stack:
        for peer in ("a", "b", "c"):
            stack.enter_context(watching(reaper, Call(peer)))
        look_for(reaper, 0.2)
    assert set(reaper._given_up) == {"b", "c"}
