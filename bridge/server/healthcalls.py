"""grpc.health.v1 on the wire.

Not by grpc's own servicer: it has threads wait for messages without an end, and sends
to watchers while everybody waits for its lock, also those that take nothing.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from bridge.errors import BridgeError, OverloadedError, RequestError
from bridge.server.front import has_too_long_headers, headers_refusal
from bridge.server.messages import parse_message, shortened
from bridge.server.status import status_of
from bridge.server.transport.auxiliary_calls import SideCalls
from bridge.server.transport.call_pool import SteadyPool

_LONGEST_SERVICE = 256
"""Characters: a watcher's is kept for as long as it watches, and may be of anybody."""
_MOST_WATCHERS = 1000
"""Of one server: each takes some 20 KiB of memory, and none needs a credential."""


class Statuses:
    """What is said of each service, and who wants to hear of changes."""

    def __init__(self) -> None:
        self._statuses: Mapping[str, int] = {}
        self._watchers: dict[_Watcher, None] = {}

    def put(self, statuses: Mapping[str, int]) -> None:
        """Say this from now on, by service; returns before watchers have heard it."""
        self._statuses = statuses
        for watcher in self._watchers.copy():  # a copy is atomic
            watcher.hear()

    def of(self, service: str) -> int | None:
        """Return what is said of `service`; None if nobody knows it."""
        return self._statuses.get(service)

    def add(self, watcher: "_Watcher") -> None:
        """Have a watcher hear of each change, and of what is now."""
        self._watchers[watcher] = None
        watcher.hear()

    def forget(self, watcher: "_Watcher") -> None:
        """Have it hear no more."""
        self._watchers.pop(watcher, None)


class HealthCalls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers `Check` and `Watch`.

    Args:
        statuses: What to answer.
        side: Has the messages of the calls.
    """

    def __init__(self, statuses: Statuses, side: SideCalls) -> None:
        self._statuses = statuses
        self._side = side
        self._watchers: dict[_Watcher, None] = {}
        watch: Any = partial(self._watch)
        watch.experimental_non_blocking = True  # a watcher holds no thread
        write = HealthCheckResponse.SerializeToString
        self._handlers = {
            "Check": grpc.stream_unary_rpc_method_handler(
                self._check, shortened, write
            ),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, shortened, write),
        }
        self._too_many, self._too_long = (
            refusal(error, side.refusals)
            for error in (
                OverloadedError("too many calls wait", rule="overload.in-flight"),
                headers_refusal(),
            )
        )

    def service(self, handler_call_details: Any) -> Any:
        """Take a call in."""
        service, _, method = handler_call_details.method[1:].partition("/")
        if service != health.SERVICE_NAME or method not in self._handlers:
            return None
        if has_too_long_headers(handler_call_details.invocation_metadata):
            return self._too_long
        return self._too_many if self._side.pool.excess() else self._handlers[method]

    def _check(self, messages: Any, context: Any) -> HealthCheckResponse:
        status = self._statuses.of(self._service(messages, context))
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return HealthCheckResponse(status=status)

    def _watch(self, messages: Any, context: Any, send: Callable[[Any], None]) -> None:
        service, statuses = self._service(messages, context), self._statuses
        if len(self._watchers) >= _MOST_WATCHERS:
            error = OverloadedError("too many watch already", rule="overload.watchers")
            context.abort(*status_of(error))
        watcher = _Watcher(partial(statuses.of, service), send, context, self._side)
        self._watchers[watcher] = None
        statuses.add(watcher)
        if not context.add_callback(partial(self._forget, watcher)):
            self._forget(watcher)  # it has left

    def _forget(self, watcher: "_Watcher") -> None:
        self._watchers.pop(watcher, None)
        self._statuses.forget(watcher)

    def _service(self, messages: Any, context: Any) -> str:
        message = self._side.message(messages, context)
        try:
            return _read(message)
        except RequestError as error:
            context.abort(*status_of(error))
            raise  # pragma: no cover - abort does not return


def refusal(error: BridgeError, pool: SteadyPool) -> Any:
    """Return what answers a call of any kind with `error`, on `pool`, at once."""

    def refuse(_messages: Any, context: Any) -> None:
        context.abort(*status_of(error))

    refuse.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.stream_unary_rpc_method_handler(refuse)


def _read(message: bytes) -> str:
    asked = parse_message(HealthCheckRequest, message, "a HealthCheckRequest")
    if len(asked.service) > _LONGEST_SERVICE:
        raise RequestError(
            f"a service has at most {_LONGEST_SERVICE} characters",
            rule="request.service",
        )
    return str(asked.service)


class _Watcher:
    # A peer that wants to hear of changes. One that does not take what it is sent holds
    # up the other watchers for a while, and nobody else.

    def __init__(
        self,
        status: Callable[[], int | None],
        send: Callable[[Any], None],
        context: Any,
        side: SideCalls,
    ) -> None:
        self._status = status
        self._send = send
        self._context = context
        self._side = side
        self._told: int | None = None

    def hear(self) -> None:
        self._side.news.submit(self._tell)

    def give_up(self) -> None:
        self._context.cancel()

    def peer(self) -> str:
        return str(self._context.peer())

    def _tell(self) -> None:
        status = self._status()
        if status is None:
            status = HealthCheckResponse.SERVICE_UNKNOWN
        if status == self._told:
            return
        self._told = status
        reaper = self._side.reaper
        if reaper.is_hostile(self.peer):
            self.give_up()
            return
        reaper.watch(self)
        try:
            self._send(HealthCheckResponse(status=status))
        finally:
            reaper.forget(self)
