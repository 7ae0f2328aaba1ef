"""Calls beside the CA's own, such as health checks: short, and begun by anybody.

They are taken as streams of one message, like the calls of a front (the wire is the
same): one whose message does not come holds no thread, and is given up.
"""

from typing import Any

import grpc

from bridge.errors import OverloadedError
from bridge.server.status import status_of
from bridge.server.transport.call_pool import CallPool, SteadyPool
from bridge.server.transport.message_reader import IncomingMessage, MessageReader
from bridge.server.transport.reaper import Reaper

_THREADS = 2
_IN_FLIGHT = 1024
"""Each takes some 20 KiB of memory for as long as its message may take."""


class SideCalls:
    """Runs them, and waits for their messages.

    Args:
        reaper: Gives up those whose message does not come.
        most: The most messages that are waited for at a time; the others wait for their
            turn, as long as for a message.
        refusals: Tells a peer that its call is one too many.
    """

    def __init__(self, reaper: Reaper, most: int, refusals: SteadyPool) -> None:
        self.reaper = reaper
        self.refusals = refusals
        self.pool = CallPool(
            _THREADS, _IN_FLIGHT, reaper.seconds, MessageReader(reaper, most)
        )
        """Where grpc has to run them."""
        self.news = SteadyPool(1, "news")
        """Sends what nobody asked for just now: it may have to wait for a peer."""

    def message(self, messages: Any, context: Any) -> bytes:
        """Return the message of a call; abort a call that has none.

        Args:
            messages: What a handler that takes a stream of bytes got.
            context: As grpc gave it.

        Raises:
            Exception: The call is aborted, or its peer has left.
        """
        try:
            found = self._take(messages, context)
        except OverloadedError as error:
            context.abort(*status_of(error))
        else:
            if found is not None:
                return found
            text = "request.protobuf: the call has no message"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        raise AssertionError  # pragma: no cover - abort does not return

    def _take(self, messages: Any, context: Any) -> bytes | None:
        if isinstance(messages, IncomingMessage):
            found = messages.take()
            if found is None and self.pool.is_overdue(messages.since):
                raise OverloadedError("too many calls wait", rule="overload.queue")
            return found
        # The pool does not wait for this one.
        if self.reaper.is_hostile(context.peer):
            raise OverloadedError(
                "several calls of this connection have left their messages out",
                rule="overload.stalled",
            )
        incoming = IncomingMessage(messages, lambda _: context.cancel())
        self.reaper.watch(incoming)
        try:
            return incoming.take()
        finally:
            self.reaper.forget(incoming)
