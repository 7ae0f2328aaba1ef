"""The part that every front shares: accepting calls, shedding, the outermost layer.

A front accepts a unary call as a stream of one message, which is the same on the wire.
So a call can be shed before its message is received, at the cost of its headers alone,
and a message that never arrives can be given up.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import grpc

from bridge.errors import (
    AuthenticationError,
    BridgeError,
    OverloadedError,
    RequestError,
    drop_tracebacks,
)
from bridge.issuance.call import Call, Issued
from bridge.issuance.procedure import Issuance
from bridge.metrics.instruments import SHED_REASONS, Metrics
from bridge.resilience.budget import Budget
from bridge.server.status import BUG, status_of
from bridge.server.transport.call_pool import CallPool, InlinePool
from bridge.server.transport.connection_guard import ConnectionGuard
from bridge.server.transport.message_reader import IncomingMessage
from bridge.server.transport.reaper import Reaper
from bridge.system.background import SteadyPool

LONGEST_HEADERS_BYTES = 64 * 1024
"""The longest headers of a call, as they are held in memory. On the wire, grpc takes at
most 32 KiB, and a token has at most 16 KiB."""
_EACH_BYTES = 200
"""The memory of a header besides its text."""
_LONG_HEADERS = "headers"
_TOO_LONG = "request.headers"
_JUNK = (AuthenticationError, RequestError)
"""What is wrong with the call of a peer that sends junk."""
_JUNK_RULES = {"overload.stalled", "overload.gone"}
_ENDING = {"certificate": "certificate", _TOO_LONG: "junk"}
"""Why a connection ends with its first such call, by rule or by what rules begin with.

No other call with this client certificate can be granted; and no client sends headers
that are too long by accident.
"""
_log = logging.getLogger(__name__)
_transport_log = logging.getLogger("grpc._cython.cygrpc")


class _HeadersStayOut(logging.Filter):
    # grpc logs every header that is not UTF-8, with a traceback. Any peer may send one,
    # and it may be a token.
    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Invalid encoding on ")


_HEADERS_STAY_OUT = _HeadersStayOut()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The threads of one front."""

    calls: CallPool
    """Runs calls."""
    refusals: SteadyPool
    """Answers the calls that are shed."""
    reaper: Reaper
    """Gives up the calls whose message does not arrive."""
    guard: ConnectionGuard
    """Closes the connections of peers that send junk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """The settings of a front that come from the configuration."""

    audiences: frozenset[str]
    """A token must be for one of these audiences."""
    deadline_seconds: float
    """The longest that a call may take. Clients of neither mesh set a deadline."""
    cluster: str = ""
    """The cluster of the callers, where the API does not name it."""
    has_certificates: bool = False
    """One of the ports requires a client certificate."""


class Front(grpc.GenericRpcHandler, ABC):  # type: ignore[misc]  # grpc has no types
    """Serves one method of one mesh's API: translates calls, and decides nothing.

    Args:
        issuance: Decides and issues.
        metrics: Counts calls by how they ended.
        pools: The threads of the front.
        settings: From the configuration.
    """

    name: ClassVar[str]
    """The front's name in the ledger and in the metrics."""
    method: ClassVar[str]
    """The path of the call."""

    def __init__(
        self,
        issuance: Issuance,
        metrics: Metrics,
        pools: Pools,
        settings: FrontSettings,
    ) -> None:
        self._issuance = issuance
        self._metrics = metrics
        self._pools = pools
        self._settings = settings
        self._seconds = metrics.request_seconds(self.name)
        self._other = _other_method(pools)
        _transport_log.addFilter(_HEADERS_STAY_OUT)

    @abstractmethod
    def translate(self, message: bytes, context: Any, budget: Budget) -> Call:
        """Read a message and the headers of its call.

        Raises:
            BridgeError: The message cannot be read.
        """

    @abstractmethod
    def reply(self, issued: Issued) -> bytes:
        """Write the message that answers a call."""

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call. Runs on grpc's thread when the call arrives."""
        if handler_call_details.method != self.method:
            # Without a handler, grpc answers by itself. So nobody would know the peer.
            return self._other if self._pools.guard.knows_peers else None
        arrived = time.monotonic()
        pools = self._pools
        excess = pools.calls.excess()
        if has_too_long_headers(handler_call_details.invocation_metadata):
            excess = _LONG_HEADERS
        behavior = partial(self._handle, arrived, excess)
        # grpc runs a handler on the pool that the handler names.
        behavior.experimental_thread_pool = (  # type: ignore[attr-defined]
            pools.refusals if excess else pools.calls
        )
        return grpc.stream_unary_rpc_method_handler(behavior)

    def _handle(
        self,
        arrived: float,
        excess: str,
        messages: IncomingMessage | Iterator[bytes],
        context: Any,
    ) -> bytes:
        # The outermost layer: whatever happens, the peer gets a status of our table.
        try:
            reply = self._answer(arrived, excess, messages, context)
        except BridgeError as error:
            code, text = status_of(error, self.name)
            self._judge_peer(error, context)
            if isinstance(error, OverloadedError):
                self._metrics.shed[_reason(error)].inc()
                if not context.is_active():  # the peer has left and gets no answer
                    code = grpc.StatusCode.CANCELLED
            drop_tracebacks(error)
        except BaseException as error:  # noqa: BLE001 - see below
            # Every kind: a panic in Rust is no `Exception`, and a call that is not
            # ended stays open for ever at a peer without a deadline.
            if isinstance(error, grpc.RpcError) and not context.is_active():
                # The peer left before its message arrived. While the peer is there,
                # such an error is a plugin's, and grpc would send its text to the peer.
                self._ended("CANCELLED", arrived)
                self._metrics.shed["gone"].inc()
                self._pools.guard.junk(context.peer())
                drop_tracebacks(error)  # grpc keeps it beside the call
                return b""  # to nobody
            _log.exception("a call failed by an unexpected error")
            drop_tracebacks(error)
            code, text = BUG
        else:
            self._ended("OK", arrived)
            return reply
        self._ended(code.name, arrived)
        # Ends the call with trailers only. `abort` always raises.
        context.abort(code, text)
        raise AssertionError  # pragma: no cover - abort does not return

    def _answer(
        self,
        arrived: float,
        excess: str,
        messages: IncomingMessage | Iterator[bytes],
        context: Any,
    ) -> bytes:
        if excess == _LONG_HEADERS:
            raise self._too_long()
        if excess:
            raise _overloaded(excess)
        pools = self._pools
        # As a rule the pool has received the message already.
        incoming = messages if isinstance(messages, IncomingMessage) else None
        if pools.calls.is_overdue(incoming.since if incoming else arrived):
            raise _overloaded("queue")
        deadline = min(
            arrived + self._settings.deadline_seconds,
            # 9.2e18 for a client without a deadline. Not `or`: 0.0 is a deadline that
            # has passed.
            time.monotonic() + context.time_remaining(),
        )
        budget = Budget(deadline, context.is_active)
        budget.require()
        message = incoming.take() if incoming else self._wait(messages, context)
        issued = self._issuance.issue(self._translated(message, context, budget))
        began = time.perf_counter()
        reply = self.reply(issued)
        self._metrics.steps["reply"].observe(time.perf_counter() - began)
        return reply

    def _judge_peer(self, error: BridgeError, context: Any) -> None:
        guard, peer = self._pools.guard, context.peer()
        if isinstance(error, _JUNK) or error.rule in _JUNK_RULES:
            guard.junk(peer)
        ending = _ENDING.get(error.rule) or _ENDING.get(error.rule.partition(".")[0])
        if ending:
            end = partial(guard.end, peer, ending)
            if not context.add_callback(end):  # once the answer has left
                end()

    def _too_long(self) -> RequestError:
        # Recorded before it is raised: the traceback of a raised error holds the
        # headers. For the same reason no frame of that traceback may hold the error.
        error = RequestError(
            "the headers of the call are too long", rule="request.headers"
        )
        self._issuance.refuse(error, front=self.name)
        return error

    def _wait(self, messages: Any, context: Any) -> bytes | None:
        reaper = self._pools.reaper
        incoming = IncomingMessage(messages, lambda _: context.cancel())
        reaper.watch(incoming)
        try:
            return incoming.take()
        finally:
            reaper.forget(incoming)

    def _translated(self, message: bytes | None, context: Any, budget: Budget) -> Call:
        if message is None:
            # Without a row: so end calls whose message was too large for grpc, too.
            raise RequestError("the call has no message", rule="request.protobuf")
        try:
            return self.translate(message, context, budget)
        except BridgeError as error:
            self._issuance.refuse(error, front=self.name)
            raise

    def ended(self, code: str, seconds: float) -> None:
        """Count a call that ended with `code`, `seconds` after it arrived."""
        self._metrics.requests(self.name, code).inc()
        self._seconds.observe(seconds)

    def _ended(self, code: str, arrived: float) -> None:
        self.ended(code, time.monotonic() - arrived)


def _overloaded(excess: str) -> OverloadedError:
    text, rule = {
        "in_flight": ("the CA has as many calls as it can take", "overload.in-flight"),
        "queue": ("the CA could not begin with the call in time", "overload.queue"),
    }[excess]
    return OverloadedError(text, rule=rule)


def _other_method(pools: Pools) -> Any:
    def refuse(_messages: object, context: Any) -> None:
        pools.guard.junk(context.peer())
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    refuse.experimental_thread_pool = InlinePool()  # type: ignore[attr-defined]
    return grpc.stream_unary_rpc_method_handler(refuse)


def _reason(error: OverloadedError) -> str:
    reason = error.rule.removeprefix("overload.").replace("-", "_")
    return reason if reason in SHED_REASONS else "backend"


def has_too_long_headers(headers: Collection[tuple[str, str | bytes]] | None) -> bool:
    """Tell whether the headers of a call are too long to be held while it waits.

    A header that was sent once can be repeated with one byte on the wire, and thousands
    of calls may wait, each with its headers.

    Source:
        RFC 7541, 6.1 and 7.3.
    """
    held = _EACH_BYTES * len(headers or ())
    if held <= LONGEST_HEADERS_BYTES:  # else there may be thousands of them
        held += sum(len(name) + len(value) for name, value in headers or ())
    return held > LONGEST_HEADERS_BYTES
