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
from collections import deque
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

    def skip(self) -> None:
        """Never begin to receive: `take` finds no message."""
        self._has_begun = True

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

    def peer(self) -> str:
        """Return the name of the call's connection."""
        return peer_of(self._messages)


class MessageReader:
    """Receives the messages of a bounded number of calls at a time; the others wait.

    Each message that is being received may take memory for its length. A message that
    is received and then shed was received in vain.

    Args:
        reaper: Ends the wait for messages that do not arrive.
        most: The most messages at a time.
    """

    def __init__(self, reaper: Reaper, most: int) -> None:
        self._reaper = reaper
        self._most = most
        self.waiting: Callable[[], int] = int
        """Returns the number of calls that have their message and wait for a thread."""
        self._under_way: dict[IncomingMessage, Callable[[], None]] = {}
        self._line: deque[tuple[IncomingMessage, Callable[[], None]]] = deque()

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
        if messages is None or self._reaper.is_hostile(partial(peer_of, messages)):
            return False
        incoming = IncomingMessage(messages, self._end)
        instead = (*work[:_THUNK], lambda: incoming, *work[_THUNK + 1 :])

        def run() -> None:
            ready(instead, incoming.since)

        if self._line or not self._has_room():
            self._line.append((incoming, run))
        else:
            self._begin(incoming, run)
        return True

    def admit_next(self) -> None:
        """Begin to receive for the calls in line, as long as there is room."""
        while self._line and self._has_room():
            try:
                following = self._line.popleft()
            except IndexError:  # another thread was first
                return
            self._begin(*following)

    def release_overdue(self, is_overdue: Callable[[float], bool]) -> None:
        """Run the calls that have waited in line too long, without their message."""
        while self._line:
            try:
                first = self._line.popleft()
            except IndexError:  # another thread was first
                break
            incoming, run = first
            # Removed before it is judged: another look at the line might find another
            # call, which would be run without its message although it is not overdue.
            if not is_overdue(incoming.since):
                self._line.appendleft(first)
                break
            incoming.skip()
            run()
        self.admit_next()

    def _begin(self, incoming: IncomingMessage, run: Callable[[], None]) -> None:
        self._under_way[incoming] = run
        self._reaper.watch(incoming)
        try:
            incoming.begin(partial(self._end, incoming))
        except Exception:  # noqa: BLE001 - grpc's thread must not end; `take` raises it
            self._settle(incoming)

    def _end(self, incoming: IncomingMessage) -> None:
        self._settle(incoming)
        self.admit_next()

    def _has_room(self) -> bool:
        return len(self._under_way) + self.waiting() < self._most

    def _settle(self, incoming: IncomingMessage) -> None:
        run = self._under_way.pop(incoming, None)
        if run is not None:  # the message may arrive at the end of the wait
            self._reaper.forget(incoming)
            if not self._line:
                # With calls in line, the whole time counts as waiting for the bridge.
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


def peer_of(messages: Any) -> str:
    """Return the name of a call's connection."""
    return bytes(messages._call.peer()).decode("utf-8", "replace")


def _messages(work: tuple[Any, ...]) -> Any:
    # The arguments that grpc submits are not part of its API either.
    try:
        found = work[_THUNK]()
    except (IndexError, TypeError):
        return None
    return found if can_announce(found) else None
