"""grpc.health.v1 and reflection, beside the CA's own service."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from bridge.server.side import SideCalls

_INTERVAL_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Health:
    """Answers gRPC health checks by readiness, and pushes changes to watchers.

    Args:
        problems: What stands against being ready; empty when ready.
        services: The services that have a state, besides the server as a whole.
    """

    def __init__(
        self,
        problems: Callable[[], Mapping[str, str]],
        services: tuple[str, ...] = (),
    ) -> None:
        self._problems = problems
        self._services = ("", *services)
        self._servicer = health.HealthServicer()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health")
        self._ready: bool | None = None
        self._told: set[str] | None = None
        self._was_ready = False
        self._looking = threading.Lock()
        self.look()

    def add_to(self, server: grpc.Server, side: SideCalls) -> None:
        """Register the service.

        Args:
            server: Runs its calls on the pool of `side`.
            side: Has their messages.
        """
        server.add_generic_rpc_handlers((_Handlers(self._servicer, side),))

    def look(self) -> bool:
        """Ask for the problems, tell watchers what changed, return whether ready."""
        with self._looking:
            problems = self._problems()
            ready = not problems
            if {*problems} != self._told:
                self._tell(problems)
            if ready is not self._ready:
                self._ready = ready
                state = (
                    HealthCheckResponse.SERVING
                    if ready
                    else HealthCheckResponse.NOT_SERVING
                )
                for service in self._services:
                    self._servicer.set(service, state)
        return ready

    def _tell(self, problems: Mapping[str, str]) -> None:
        # By part: a reason may hold numbers that change each time.
        self._told = {*problems}
        if not problems:
            _log.info("ready again" if self._was_ready else "ready")
            self._was_ready = True
            return
        reasons = "; ".join(f"{part}: {why}" for part, why in problems.items())
        if self._was_ready:
            _log.warning("not ready: %s", reasons)
        else:
            _log.info("not ready yet: %s", reasons)

    def start(self) -> None:
        """Look once a second."""
        self._thread.start()

    def drain(self) -> None:
        """Say NOT_SERVING from now on, whatever the problems are. May be repeated."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._servicer.enter_graceful_shutdown()

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL_SECONDS):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the edge of a thread that must not end
                _log.exception("readiness could not be told")


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    # grpc's own have a thread wait for the message, and without an end: two calls
    # would hold both threads.

    def __init__(self, servicer: health.HealthServicer, side: SideCalls) -> None:
        self._servicer = servicer
        self._side = side
        watch: Any = partial(self._watch)
        watch.experimental_non_blocking = True  # a watcher holds no thread
        write = HealthCheckResponse.SerializeToString
        self._handlers = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, None, write),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, None, write),
        }

    def service(self, handler_call_details: Any) -> Any:
        service, _, method = handler_call_details.method[1:].partition("/")
        return self._handlers.get(method) if service == health.SERVICE_NAME else None

    def _check(self, messages: Any, context: Any) -> HealthCheckResponse:
        return self._servicer.Check(self._request(messages, context), context)

    def _watch(self, messages: Any, context: Any, send: Callable[[Any], None]) -> None:
        self._servicer.Watch(self._request(messages, context), context, send)

    def _request(self, messages: Any, context: Any) -> HealthCheckRequest:
        message = self._side.message(messages, context)
        try:
            return HealthCheckRequest.FromString(message)
        except DecodeError:
            text = "request.protobuf: the message cannot be read"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
            raise  # pragma: no cover - abort does not return


def add_reflection(server: grpc.Server, pool: ThreadPoolExecutor, service: str) -> None:
    """Let tools list the services and read their messages.

    Args:
        server: Not started yet.
        pool: Runs it. A reflection call holds a thread for as long as the peer likes:
            it must not be one that anything else waits for.
        service: The API that is served beside health and reflection.
    """
    names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.ReflectionServicer(names)
    behavior: Any = partial(servicer.ServerReflectionInfo)
    behavior.experimental_thread_pool = pool
    servicer.ServerReflectionInfo = behavior
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
