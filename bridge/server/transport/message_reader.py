"""Receives the messages of calls without a thread, and with a time limit.

grpc begins to receive a message when a handler asks for it, and the handler's thread
waits. Here the bridge begins to receive when the call arrives, and the call gets a
thread when its message is there. So a peer that never sends its message holds no
thread, and no thread is put to sleep and woken up for a message that arrives at once.

grpc has no time limit for a message, and only one way to wake the thread: to cancel the
call. The client then sees CANCELLED, after which Istio's client does not try again.
Here the wait can be ended, and the call is answered.

This module uses private names of grpc (decision 11). If they are missing, a thread
waits as grpc does, and the call is cancelled. Two tests fail then.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bridge.errors import OverloadedError
from bridge.server.transport.reaper import Reaper

_ITERATOR = ("_state", "_call", "_raise_or_start_receive_message", "_look_for_request")
_THUNK = 4
"""Index of the function that returns a call's messages, in what grpc submits."""
_log = logging.getLogger(__name__)


class IncomingMessage:
    """The message of one call.

    Args:
        messages: The iterator that grpc passes to a handler for a stream.
        end: Called by `give_up` with this object.
    """

    __slots__ = ("_end", "_has_begun", "_messages", "since")

    def __init__(
        self, messages: Any, end: "Callable[[IncomingMessage], object]"
    ) -> None:
        self._messages = messages
        self._end = end
        self._has_begun = False
        self.since = time.monotonic()
        """When the call began to wait for the bridge, and not for its peer."""

    def begin(self, done: Callable[[], None]) -> None:
        """Begin to receive.

        Args:
            done: Called once, when the message has arrived or none will arrive.

        Raises:
            grpc.RpcError: The peer has left.
            StopIteration: The call has ended.
        """
        self._has_begun = True
        messages = self._messages
        with messages._state.condition:
            call = messages._call
            messages._call = _Announcing(call, done)
            try:
                messages._raise_or_start_receive_message()
            finally:
                messages._call = call  # or the two would refer to each other

    def take(self) -> bytes | None:
        """Return the message; None for a call that ends without one.

        Raises:
            OverloadedError: `give_up` was called (`overload.stalled`).
            grpc.RpcError: The call has ended.
        """
        if not self._has_begun:
            return next(self._messages, None)
        found: bytes | None = None
        with self._messages._state.condition:
            try:
                found = self._messages._look_for_request()
            except StopIteration:
                return None
        if found is None:
            raise OverloadedError(
                "the message of the call has not arrived", rule="overload.stalled"
            )
        return found

    def give_up(self) -> None:
        """End the wait for the message."""
        self._end(self)


class MessageReader:
    """Receives the messages of all calls, and gives up the oldest when there are many.

    An honest message comes with its call. So the calls that have waited longest are
    those whose messages do not come, and they make room for new ones.

    Args:
        reaper: Ends the wait for messages that do not arrive.
        most: The most messages at a time. Each may take memory for its length.
    """

    def __init__(self, reaper: Reaper, most: int) -> None:
        self._reaper = reaper
        self._most = most
        self._under_way: dict[IncomingMessage, Callable[[], None]] = {}

    @property
    def count(self) -> int:
        """The number of calls whose messages are awaited."""
        return len(self._under_way)

    def begin(
        self, work: tuple[Any, ...], ready: Callable[[tuple[Any, ...], float], None]
    ) -> bool:
        """Begin to receive the message of a call that grpc has submitted.

        Args:
            work: The arguments that grpc submitted.
            ready: Called once, when the message has arrived or the wait for it has
                ended, with the arguments to run instead and when the call began to
                wait.

        Returns:
            False if there is no message to receive; `ready` will not be called.
        """
        messages = _messages(work)
        if messages is None:
            return False
        incoming = IncomingMessage(messages, self._settle)
        instead = (*work[:_THUNK], lambda: incoming, *work[_THUNK + 1 :])
        self._make_room()
        self._under_way[incoming] = lambda: ready(instead, incoming.since)
        self._reaper.watch(incoming)
        try:
            incoming.begin(partial(self._settle, incoming))
        except Exception:  # noqa: BLE001 - grpc's thread must not end; `take` raises it
            self._settle(incoming)
        return True

    def _make_room(self) -> None:
        while len(self._under_way) >= self._most:
            try:
                oldest = next(iter(self._under_way))
            except (StopIteration, RuntimeError):  # another thread has made room
                return
            oldest.give_up()

    def _settle(self, incoming: IncomingMessage) -> None:
        run = self._under_way.pop(incoming, None)
        if run is not None:  # the message may arrive at the end of the wait
            self._reaper.forget(incoming)
            incoming.since = time.monotonic()
            run()


class _Announcing:
    # grpc's call, with the one method that an iterator of messages uses.
    __slots__ = ("_call", "_done")

    def __init__(self, call: Any, done: Callable[[], None]) -> None:
        self._call = call
        self._done = done

    def start_server_batch(self, operations: Any, tag: Callable[[Any], Any]) -> Any:
        def received(event: Any) -> Any:
            found = tag(event)
            try:
                self._done()
            except Exception:  # noqa: BLE001 - grpc's one thread must not end
                _log.exception("a call could not be run")
            return found

        return self._call.start_server_batch(operations, received)


def can_announce(messages: object) -> bool:
    """Tell whether this version of grpc has the names `IncomingMessage` needs."""
    return all(hasattr(messages, name) for name in _ITERATOR)


def _messages(work: tuple[Any, ...]) -> Any:
    # The arguments that grpc submits are not part of its API either.
    try:
        found = work[_THUNK]()
    except (IndexError, TypeError):
        return None
    return found if can_announce(found) else None
