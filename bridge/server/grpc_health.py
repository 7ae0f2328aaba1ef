"""Readiness as gRPC health, with reflection, on `admin.grpc_listen`.

The address has no authentication, and a call on it holds a thread for as long as its
peer likes. So it shares no port, thread or connection with the CA.
"""

import logging
import threading
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from bridge.server.listener import bind, grpc_options
from bridge.server.transport.connection_guard import MOST_CONNECTIONS
from bridge.system.background import BackgroundLoop, SteadyPool

LISTEN = "admin.grpc_listen"
"""The key of the address."""
_THREADS = 8
"""Also the bound on concurrent calls: one more is refused at once."""
_CONNECTION_SECONDS = 60
"""The longest life of a connection, and so of a call that its peer keeps open."""
_INTERVAL_SECONDS = 1.0
_CUT_SECONDS = 2.0
_log = logging.getLogger(__name__)


class HealthServer:
    """Serves `grpc.health.v1` and reflection with grpcio's own servicers.

    Args:
        listen: `host:port`.
        services: The services that have a status, besides the server as a whole.
        shares_ports: Other processes listen on the same port (SO_REUSEPORT).
        connections: The most that it may have.
    """

    def __init__(
        self,
        listen: str,
        services: tuple[str, ...],
        *,
        shares_ports: bool,
        connections: int = MOST_CONNECTIONS,
    ) -> None:
        self._listen = listen
        self._services = ("", *services)
        # In blocking mode, a watcher that reads nothing holds a thread of the pool. In
        # the other mode it would hold the servicer's lock, and with it every caller.
        self._servicer = health.HealthServicer(experimental_non_blocking=False)
        self._pool = SteadyPool(_THREADS, "health")
        self._grpc = grpc.server(
            self._pool,
            options=grpc_options(
                shares_ports=shares_ports,
                connections=connections,
                age_seconds=_CONNECTION_SECONDS,
            ),
            maximum_concurrent_rpcs=_THREADS,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._grpc)
        shown = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(shown, self._grpc)
        self.address = ""
        """`host:port` as bound; empty before `open`."""

    def put(self, *, ready: bool) -> None:
        """Set the status of every service, and send it to the watchers."""
        known = HealthCheckResponse.ServingStatus
        status = known.SERVING if ready else known.NOT_SERVING
        for service in self._services:
            self._servicer.set(service, status)

    def open(self) -> None:
        """Listen.

        Raises:
            ConfigError: The address cannot be listened on.
            RuntimeError: The system gives no more threads.
        """
        self._pool.start()
        self.address = bind(self._grpc, LISTEN, self._listen)
        self._grpc.start()

    def close(self) -> None:
        """End every call and every thread. May be repeated, or before `open`."""
        if not self._grpc.stop(None).wait(_CUT_SECONDS) or not self._pool.close(
            _CUT_SECONDS
        ):
            _log.error("%s did not close in time", LISTEN)


class Health:
    """Looks at readiness once a second, logs each change, and serves it by gRPC.

    Args:
        problems: Returns what stands against being ready; empty when ready.
        server: Serves the status; None where `admin.grpc_listen` is not set.
    """

    def __init__(
        self, problems: Callable[[], Mapping[str, str]], server: HealthServer | None
    ) -> None:
        self._problems = problems
        self._server = server
        self._loop = BackgroundLoop("health", self.look, _INTERVAL_SECONDS)
        self._ready: bool | None = None
        self._logged: set[str] | None = None
        self._was_ready = False
        self._looking = threading.Lock()
        self.look()

    @property
    def address(self) -> str:
        """`host:port` of gRPC health as bound; empty if it is not served."""
        return self._server.address if self._server else ""

    def look(self) -> None:
        """Ask for the problems; log and serve what has changed."""
        with self._looking:
            problems = self._problems()
            ready = not problems
            if {*problems} != self._logged:
                self._log_change(problems)
            if ready is not self._ready and not self._loop.is_closing:
                self._ready = ready
                self._put(ready=ready)

    def open(self) -> None:
        """Listen, where `admin.grpc_listen` is set. See `HealthServer.open`."""
        if self._server is not None:
            self._server.open()

    def start(self) -> None:
        """Look once a second from now on."""
        self._loop.start()

    def drain(self) -> None:
        """Serve NOT_SERVING from now on, whatever the problems. May be repeated."""
        self._loop.close()
        with self._looking:
            self._put(ready=False)

    def close(self) -> None:
        """Stop serving, after `drain`. May be repeated."""
        if self._server is not None:
            self._server.close()

    def _put(self, *, ready: bool) -> None:
        if self._server is not None:
            self._server.put(ready=ready)

    def _log_change(self, problems: Mapping[str, str]) -> None:
        # By part: a reason may hold numbers that change each time.
        self._logged = {*problems}
        if not problems:
            _log.info("ready again" if self._was_ready else "ready")
            self._was_ready = True
            return
        reasons = "; ".join(f"{part}: {why}" for part, why in problems.items())
        if self._was_ready:
            _log.warning("not ready: %s", reasons)
        else:
            _log.info("not ready yet: %s", reasons)
