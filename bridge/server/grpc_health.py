"""grpc.health.v1 and reflection, beside the CA's own service."""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection, reflection_pb2

from bridge.errors import OverloadedError
from bridge.server.front import has_too_long_headers, headers_refusal
from bridge.server.healthcalls import HealthCalls, Statuses, refusal
from bridge.server.transport.auxiliary_calls import SideCalls
from bridge.server.transport.call_pool import SteadyPool

_INTERVAL_SECONDS = 1.0
_REFLECTION = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
_MOST_WAITING = 16
"""Calls for reflection behind the one that runs, which may take for ever."""
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
        self._statuses = Statuses()
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
        server.add_generic_rpc_handlers((HealthCalls(self._statuses, side),))

    def look(self) -> bool:
        """Ask for the problems, tell watchers what changed, return whether ready."""
        with self._looking:
            problems = self._problems()
            ready = not problems
            if {*problems} != self._told:
                self._tell(problems)
            if ready is not self._ready and not self._closing.is_set():
                self._ready = ready
                self._say(ready=ready)
        return ready

    def _say(self, *, ready: bool) -> None:
        known = HealthCheckResponse.ServingStatus
        status = known.SERVING if ready else known.NOT_SERVING
        self._statuses.put(dict.fromkeys(self._services, status))

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
        with self._looking:
            self._say(ready=False)

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL_SECONDS):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the edge of a thread that must not end
                _log.exception("readiness could not be told")


def add_reflection(
    server: grpc.Server, pool: SteadyPool, refusals: SteadyPool, service: str
) -> None:
    """Let tools list the services and read their messages.

    Args:
        server: Not started yet.
        pool: Runs it. A reflection call holds a thread for as long as the peer likes:
            it must not be one that anything else waits for.
        refusals: Tells a peer that its call is one too many to wait for that.
        service: The API that is served beside health and reflection.
    """
    server.add_generic_rpc_handlers((_Reflection(pool, refusals, service),))


class _Reflection(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, pool: SteadyPool, refusals: SteadyPool, service: str) -> None:
        names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
        behavior: Any = partial(
            reflection.ReflectionServicer(names).ServerReflectionInfo
        )
        behavior.experimental_thread_pool = pool
        self._pool = pool
        self._handler = grpc.stream_stream_rpc_method_handler(
            behavior,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        busy = OverloadedError("too many calls wait", rule="overload.in-flight")
        self._too_many = refusal(busy, refusals)
        self._too_long = refusal(headers_refusal(), refusals)

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != _REFLECTION:
            return None
        if has_too_long_headers(handler_call_details.invocation_metadata):
            return self._too_long
        is_full = self._pool.waiting >= _MOST_WAITING
        return self._too_many if is_full else self._handler
