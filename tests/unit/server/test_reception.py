"""The wait for a message, with the grpc that is installed."""

from collections.abc import Iterator

from grpc import _server as grpc_server

from bridge.server.reception import Reception, can_leave


def test_this_grpc_lets_the_wait_be_left() -> None:
    # If this fails after an upgrade, peers that stall are cancelled as before: see
    # `bridge.server.reception`.
    assert can_leave(grpc_server._RequestIterator(object(), object(), None))


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
