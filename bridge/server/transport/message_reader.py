"""Waits for the messages of calls: without a thread, and not without an end.

grpc begins to receive a message where a handler asks for it, and has the handler's
thread wait. Here the receiving begins when the call arrives, and a call gets a thread
when its message is there: a peer that never sends one holds no thread, and nobody is
put to sleep and woken up again for a message that comes at once.

grpc also knows no time limit there, and one way to wake who waits: to cancel the call.
The client then sees CANCELLED, after which Istio's does not ask again. Who waits here
can be told that it is enough.

All this is done with names that grpc does not promise. Where they are missing, a thread
waits as grpc has it, and the call is cancelled after all; a test says so.
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
"""Where grpc's work for a pool has what returns the messages of the call."""
_log = logging.getLogger(__name__)


class IncomingMessage:
    """The message of one call.

    Args:
        messages: As grpc hands them to a handler that takes a stream.
        end: Called by `give_up`, with this.
    """

    __slots__ = ("_end", "_has_begun", "_messages", "since")

    def __init__(
        self, messages: Any, end: "Callable[[IncomingMessage], object]"
    ) -> None:
        self._messages = messages
        self._end = end
        self._has_begun = False
        self.since = time.monotonic()
        """From when on it waits for us, and no longer for its peer."""

    def begin(self, done: Callable[[], None]) -> None:
        """Begin to receive.

        Args:
            done: Called once, when there is a message or will be none.

        Raises:
            grpc.RpcError: The peer has left.
            StopIteration: The call has ended.
        """
        self._has_begun = True
        messages = self._messages
        with messages._state.condition:  # noqa: SLF001 - see the top
            call = messages._call  # noqa: SLF001
            messages._call = _Announcing(call, done)  # noqa: SLF001
            try:
                messages._raise_or_start_receive_message()  # noqa: SLF001
            finally:
                messages._call = call  # noqa: SLF001 - or they would hold each other

    def skip(self) -> None:
        """Do not begin to receive: it is as if the call had no message."""
        self._has_begun = True

    def take(self) -> bytes | None:
        """Return the message, or None for a call that ends without one.

        Raises:
            OverloadedError: `give_up` was called (`overload.stalled`).
            grpc.RpcError: The call has ended.
        """
        if not self._has_begun:
            return next(self._messages, None)
        found: bytes | None = None
        with self._messages._state.condition:  # noqa: SLF001 - see the top
            try:
                found = self._messages._look_for_request()  # noqa: SLF001
            except StopIteration:
                return None
        if found is None:
            raise OverloadedError(
                "the message of the call has not come", rule="overload.stalled"
            )
        return found

    def give_up(self) -> None:
        """Have whoever waits wait no longer."""
        self._end(self)

    def peer(self) -> str:
        """Return the connection that the call came on."""
        return peer_of(self._messages)


class MessageReader:
    """The calls whose messages are on their way, a bounded number of them.

    The others wait in line: each message under way may take its length of memory, and
    one that is received and then shed was received in vain.

    Args:
        reaper: Looks at the clock.
        most: How many.
    """

    def __init__(self, reaper: Reaper, most: int) -> None:
        self._reaper = reaper
        self._most = most
        self.waiting: Callable[[], int] = int
        """Returns how many calls have their message and wait for a thread."""
        self._under_way: dict[IncomingMessage, Callable[[], None]] = {}
        self._line: deque[tuple[IncomingMessage, Callable[[], None]]] = deque()

    def begin(
        self, work: tuple[Any, ...], ready: Callable[[tuple[Any, ...], float], None]
    ) -> bool:
        """Wait for the message of a call that grpc wants to be run.

        Args:
            work: What grpc gave its pool.
            ready: Called with what is to be run instead, and since when it waits for
                us, once the message is there or is not waited for any longer.

        Returns:
            False where there is nothing to wait for; `ready` will not be called.
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
        """Let in from the line whom there is room for."""
        while self._line and self._has_room():
            try:
                following = self._line.popleft()
            except IndexError:  # somebody else was first
                return
            self._begin(*following)

    def release_overdue(self, is_overdue: Callable[[float], bool]) -> None:
        """Run what has stood in line for too long."""
        while self._line:
            try:
                first = self._line.popleft()
            except IndexError:  # somebody else was first
                break
            incoming, run = first
            # Judged in our hands: of two looks at the line, the second may see another
            # call, whose message would be left out although its time is not up.
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
        except Exception:  # noqa: BLE001 - grpc's thread must not end; `take` says why
            self._settle(incoming)

    def _end(self, incoming: IncomingMessage) -> None:
        self._settle(incoming)
        self.admit_next()

    def _has_room(self) -> bool:
        return len(self._under_way) + self.waiting() < self._most

    def _settle(self, incoming: IncomingMessage) -> None:
        run = self._under_way.pop(incoming, None)
        if run is not None:  # its message and its end may both come
            self._reaper.forget(incoming)
            if not self._line:
                # Otherwise we are behind, and the whole time is ours.
                incoming.since = time.monotonic()
            run()


class _Announcing:
    # grpc's call, as far as an iterator of messages uses it.
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
    """Say whether this version of grpc has what `IncomingMessage.begin` needs."""
    return all(hasattr(messages, name) for name in _ITERATOR)


def peer_of(messages: Any) -> str:
    """Return the connection that a call came on."""
    return bytes(messages._call.peer()).decode("utf-8", "replace")  # noqa: SLF001 - see the top


def _messages(work: tuple[Any, ...]) -> Any:
    # What grpc gives a pool is its own affair, too.
    try:
        found = work[_THUNK]()
    except (IndexError, TypeError):
        return None
    return found if can_announce(found) else None
