"""The message of a call beside the CA's own."""

import math
from collections.abc import Iterator

import grpc
import pytest

from bridge.server.transport.auxiliary_calls import SideCalls
from bridge.server.transport.call_pool import SteadyPool
from bridge.server.transport.message_reader import IncomingMessage
from bridge.server.transport.reaper import Reaper
from tests.support.harness.in_process_server import WAIT_SECONDS


class Ended(Exception):  # noqa: N818 - it is not an error of ours
    pass


class Context:
    """What grpc tells of a call, and is told."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.is_cancelled = False

    def peer(self) -> str:
        return "peer"

    def cancel(self) -> None:
        self.is_cancelled = True

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        self.code = code
        raise Ended(text)


@pytest.fixture
def side() -> SideCalls:
    return SideCalls(Reaper(WAIT_SECONDS, 2), 2, SteadyPool(1, "refusals"))


class Late(IncomingMessage):
    """Was let go before its turn came."""

    def __init__(self) -> None:
        super().__init__(None, lambda _: None)
        self.since = -math.inf

    def take(self) -> bytes | None:
        return None


def test_who_has_waited_in_line_for_too_long_may_ask_again(side: SideCalls) -> None:
    context = Context()
    with pytest.raises(Ended, match=r"overload.queue: too many calls wait"):
        side.message(Late(), context)
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_hostile_connection_is_refused_at_once(side: SideCalls) -> None:
    side.reaper._given_up["peer"] = (math.inf, 9)
    context = Context()
    with pytest.raises(Ended, match=r"overload.stalled: several calls"):
        side.message(iter([b"message"]), context)
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_with_another_grpc_the_message_is_read_and_the_call_cancelled(
    side: SideCalls,
) -> None:
    context = Context()

    def messages() -> Iterator[bytes]:
        ((_, waiting),) = side.reaper._watched.values()
        waiting.give_up()
        yield b"message"

    assert side.message(messages(), context) == b"message"
    assert context.is_cancelled
    assert not side.reaper._watched
