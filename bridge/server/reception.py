"""Waits for the message of a call, until somebody says that it is enough.

grpc lets a handler wait for a message without an end, and knows one way to wake it: to
cancel the call. The client then sees CANCELLED, after which Istio's does not ask again.
So this waits on grpc's own condition, which can be left. grpc does not promise that it
is there: where it is not, the call is cancelled after all, and a test says so.
"""

from collections.abc import Iterator
from typing import Any

from bridge.errors import OverloadedError

_INTERNALS = ("_state", "_raise_or_start_receive_message", "_look_for_request")


class Reception:
    """The message of one call.

    Args:
        messages: As grpc hands them to a handler that takes a stream.
        context: Of the call.
    """

    def __init__(self, messages: Iterator[bytes], context: Any) -> None:
        self._messages: Any = messages
        self._context = context
        self._can_leave = can_leave(messages)
        self._is_given_up = False

    def take(self) -> bytes | None:
        """Return the message, or None for a call that ends without one.

        Raises:
            OverloadedError: `give_up` was called (`overload.stalled`).
            grpc.RpcError: The call has ended.
        """
        if not self._can_leave:
            return next(self._messages, None)
        messages = self._messages
        condition = messages._state.condition  # noqa: SLF001 - see the top
        with condition:
            try:
                messages._raise_or_start_receive_message()  # noqa: SLF001
                # It may have been given up before this began to wait.
                while not self._is_given_up:
                    condition.wait()
                    found: bytes | None = messages._look_for_request()  # noqa: SLF001
                    if found is not None:
                        return found
            except StopIteration:
                return None
        raise OverloadedError(
            "the message of the call has not come", rule="overload.stalled"
        )

    def give_up(self) -> None:
        """Have `take` return with an error."""
        if not self._can_leave:
            self._context.cancel()
            return
        condition = self._messages._state.condition  # noqa: SLF001 - see the top
        with condition:
            self._is_given_up = True
            condition.notify_all()

    def peer(self) -> str:
        """Return the connection that the call came on."""
        return str(self._context.peer())


def can_leave(messages: object) -> bool:
    """Say whether this version of grpc has what `Reception` waits on."""
    return all(hasattr(messages, name) for name in _INTERNALS)
