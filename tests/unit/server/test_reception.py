"""The wait for a message, with the grpc that is installed."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from grpc import _server as grpc_server

from bridge.errors import OverloadedError
from bridge.server.reception import Reception, can_leave


def test_this_grpc_lets_the_wait_be_left() -> None:
    # If this fails after an upgrade, peers that stall are cancelled as before: see
    # `bridge.server.reception`.
    assert can_leave(grpc_server._RequestIterator(object(), object(), None))


class Messages:
    """What grpc hands over, of a call whose message never comes."""

    class Condition(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            raise AssertionError("nobody would wake it")

    def __init__(self) -> None:
        self._state = SimpleNamespace(condition=self.Condition())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        raise AssertionError("this waits without an end")

    def _raise_or_start_receive_message(self) -> None:
        pass

    def _look_for_request(self) -> None:
        raise AssertionError("nothing has come")


def test_who_was_given_up_before_it_waits_does_not_wait() -> None:
    reception = Reception(Messages(), Context())
    reception.give_up()
    with pytest.raises(OverloadedError, match="has not come") as refusal:
        reception.take()
    assert refusal.value.rule == "overload.stalled"


class Context:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_with_another_grpc_the_message_is_read_and_the_call_cancelled() -> None:
    def messages() -> Iterator[bytes]:
        yield b"message"

    context = Context()
    reception = Reception(messages(), context)
    assert reception.take() == b"message"
    assert reception.take() is None
    reception.give_up()
    assert context.cancelled
