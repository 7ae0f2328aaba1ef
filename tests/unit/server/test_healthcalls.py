"""Who hears of health, and when."""

import math
from typing import Any

import pytest

from bridge.server.healthcalls import Statuses, _Watcher
from bridge.server.transport.auxiliary_calls import SideCalls
from bridge.server.transport.call_pool import SteadyPool
from bridge.server.transport.reaper import Reaper
from tests.support.harness.in_process_server import WAIT_SECONDS

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


class Peer:
    """The context of a call, and what was sent."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.is_cancelled = False

    def send(self, response: Any) -> None:
        self.heard.append(response.status)

    def cancel(self) -> None:
        self.is_cancelled = True

    def peer(self) -> str:
        return "peer"


class Post:
    """What is sent at once, in place of a pool."""

    def submit(self, work: Any) -> None:
        work()


@pytest.fixture
def side() -> SideCalls:
    made = SideCalls(Reaper(WAIT_SECONDS, 2), 2, SteadyPool(1, "refusals"))
    made.news = Post()  # type: ignore[assignment]
    return made


def test_a_watcher_hears_what_is_and_each_change_once(side: SideCalls) -> None:
    statuses, peer = Statuses(), Peer()
    statuses.put({"a": SERVING})
    watcher = _Watcher(lambda: statuses.of("a"), peer.send, peer, side)
    statuses.add(watcher)
    for status in (SERVING, NOT_SERVING, NOT_SERVING, SERVING):
        statuses.put({"a": status})
    assert peer.heard == [SERVING, NOT_SERVING, SERVING]
    statuses.forget(watcher)
    statuses.put({"a": NOT_SERVING})
    assert peer.heard == [SERVING, NOT_SERVING, SERVING]
    assert not side.reaper._watched


def test_a_service_that_nobody_knows_may_be_watched(side: SideCalls) -> None:
    peer = Peer()
    statuses = Statuses()
    statuses.add(_Watcher(lambda: statuses.of("a"), peer.send, peer, side))
    assert peer.heard == [UNKNOWN]


def test_a_watcher_of_a_hostile_connection_is_sent_away(side: SideCalls) -> None:
    side.reaper._given_up["peer"] = (math.inf, 9)
    statuses, peer = Statuses(), Peer()
    statuses.add(_Watcher(lambda: SERVING, peer.send, peer, side))
    assert peer.heard == []
    assert peer.is_cancelled
