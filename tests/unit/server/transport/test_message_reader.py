"""The wait for a message, with the grpc that is installed."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc import _server as grpc_server

from bridge.errors import OverloadedError
from bridge.server.transport.call_pool import CallPool
from bridge.server.transport.message_reader import (
    IncomingMessage,
    MessageReader,
    can_announce,
)
from bridge.server.transport.reaper import Reaper
from tests.support.harness.in_process_server import WAIT_SECONDS


def test_this_grpc_announces_messages() -> None:
    # If this or the next fails after an upgrade, threads wait for messages, and peers
    # that stall are cancelled: see `bridge.server.transport.message_reader`.
    assert can_announce(grpc_server._RequestIterator(object(), object(), None))


def test_a_handler_of_this_grpc_gets_its_message_from_a_reception() -> None:
    reaper = Reaper(WAIT_SECONDS)
    pool = CallPool(1, 1, WAIT_SECONDS, MessageReader(reaper, 2))
    pool.start()
    found: list[object] = []

    def answer(messages: Any, _context: object) -> bytes:
        found.append(messages)
        assert not reaper._watched
        return bytes(messages.take())

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
        def service(self, _details: object) -> Any:
            answer.experimental_thread_pool = pool  # type: ignore[attr-defined]
            return grpc.stream_unary_rpc_method_handler(answer)

    server = grpc.server(pool)
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/service/Method")
        assert ask(b"message", timeout=WAIT_SECONDS) == b"message"
    server.stop(0).wait(WAIT_SECONDS)
    pool.close(WAIT_SECONDS)
    assert [type(one) for one in found] == [IncomingMessage]


class Call:
    """What grpc has of one call, and what its transport does with it."""

    def __init__(self) -> None:
        self._state = SimpleNamespace(condition=threading.Condition())
        self._call = self
        self.message: bytes | None = None
        self.problem: Exception | None = None
        self.tag: Callable[[object], object] | None = None

    def start_server_batch(
        self, _operations: object, tag: Callable[[object], object]
    ) -> None:
        self.tag = tag

    def _raise_or_start_receive_message(self) -> None:
        if self.problem:
            raise self.problem
        self._call.start_server_batch((), lambda event: event)

    def _look_for_request(self) -> bytes | None:
        if self.problem:
            raise self.problem
        return self.message

    def work(self) -> tuple[Any, ...]:
        return ("run", "event", "state", "behavior", lambda: self, None, None)

    def arrive(self, message: bytes | None) -> None:
        self.message = message
        assert self.tag is not None
        assert self.tag("event") == "event", "what grpc's own answer was"


class Hall:
    """MessageReader, and what became ready to be run."""

    def __init__(self, most: int = 2) -> None:
        self.reaper = Reaper(WAIT_SECONDS)
        self.reader = MessageReader(self.reaper, most)
        self.ready: list[IncomingMessage] = []

    def begin(self, call: Call) -> bool:
        return self.reader.begin(
            call.work(), lambda work, _: self.ready.append(work[4]())
        )

    def taken(self) -> bytes | None:
        return self.ready.pop(0).take()


def test_a_call_is_ready_when_its_message_is_there() -> None:
    hall, call = Hall(), Call()
    assert hall.begin(call)
    assert not hall.ready
    assert len(hall.reaper._watched) == 1
    call.arrive(b"message")
    assert hall.taken() == b"message"
    assert not hall.reaper._watched


def test_nothing_of_a_call_holds_itself() -> None:
    # Cycles would wait for a collection, which is rare here.
    hall, call = Hall(), Call()
    hall.begin(call)
    assert call._call is call


def test_who_is_given_up_is_told_so_once() -> None:
    hall, call = Hall(), Call()
    hall.begin(call)
    ((_, waiting),) = hall.reaper._watched.values()
    waiting.give_up()
    with pytest.raises(OverloadedError, match="has not arrived") as refusal:
        hall.taken()
    assert refusal.value.rule == "overload.stalled"
    call.arrive(b"late")
    assert not hall.ready


@pytest.mark.parametrize("problem", [grpc.RpcError("gone"), MemoryError("none")])
def test_a_call_that_cannot_be_waited_for_is_ready_at_once(problem: Exception) -> None:
    hall, call = Hall(), Call()
    call.problem = problem
    assert hall.begin(call)
    with pytest.raises(type(problem), match=str(problem)):
        hall.taken()


def test_a_call_that_ends_without_a_message() -> None:
    hall, call = Hall(), Call()
    hall.begin(call)
    call.problem = StopIteration()
    call.arrive(None)
    assert hall.taken() is None


def test_the_oldest_call_without_a_message_makes_room_for_a_new_one() -> None:
    # An honest message comes with its call: who has waited longest withholds it.
    hall, calls = Hall(most=2), [Call() for _ in range(4)]
    for call in calls:
        assert hall.begin(call)
    assert hall.reader.count == 2
    for _ in range(2):
        with pytest.raises(OverloadedError, match="has not arrived"):
            hall.taken()
    calls[3].arrive(b"fourth")
    calls[0].arrive(b"late")
    assert [incoming.take() for incoming in hall.ready] == [b"fourth"]
    assert hall.reader.count == 1


def test_a_call_that_has_its_message_makes_no_room() -> None:
    hall, calls = Hall(most=1), [Call() for _ in range(2)]
    hall.begin(calls[0])
    calls[0].arrive(b"first")
    hall.begin(calls[1])
    assert [incoming.take() for incoming in hall.ready] == [b"first"]


def test_only_the_time_after_the_message_came_is_the_bridges() -> None:
    hall, call = Hall(), Call()
    hall.begin(call)
    ((_, waiting),) = hall.reaper._watched.values()
    assert isinstance(waiting, IncomingMessage)
    waiting.since = 5.0
    call.arrive(b"message")
    assert waiting.since > 5.0


@pytest.mark.parametrize(
    "work",
    [(), ("run", "event", "state", "behavior"), (0, 1, 2, 3, 4), (0, 1, 2, 3, list)],
    ids=["nothing", "less", "no thunk", "no messages"],
)
def test_what_another_grpc_gives_is_run_as_it_is(work: tuple[Any, ...]) -> None:
    assert not Hall().reader.begin(work, lambda *_: pytest.fail("is not ready"))


def test_what_goes_wrong_when_a_message_comes_stays_out_of_grpcs_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_work: object, _since: float) -> None:
        raise RuntimeError("broken")

    call = Call()
    Hall().reader.begin(call.work(), fail)
    call.arrive(b"message")
    assert "a call could not be run" in caplog.text


def test_with_another_grpc_the_message_is_read_and_the_call_cancelled() -> None:
    def messages() -> Iterator[bytes]:
        yield b"message"

    cancelled: list[IncomingMessage] = []
    incoming = IncomingMessage(messages(), cancelled.append)
    assert incoming.take() == b"message"
    assert incoming.take() is None
    incoming.give_up()
    assert cancelled == [incoming]
