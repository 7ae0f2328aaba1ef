"""One server process: the fronts, gRPC health and the admin address, put together."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from bridge.admin.endpoints import PARTS, Admin, Views, readiness
from bridge.config import BridgeConfig
from bridge.errors import ConfigError
from bridge.issuance.procedure import Issuance
from bridge.metrics.instruments import Metrics
from bridge.server.grpc_health import Health, HealthServer
from bridge.server.istio import IstioListener
from bridge.server.linkerd import LinkerdListener
from bridge.server.listener import Listener, most_connections
from bridge.server.serving_certificate import PART as SERVING
from bridge.server.serving_certificate import IssueServing
from bridge.server.transport.socket_drain import leave_to_others
from bridge.system.clock import Clock

_FLUSH_SECONDS = 0.5
_CUT_SECONDS = 2.0
"""The longest wait for what should take no time. The process ends all the same."""
_NO_CERTIFICATE = "waiting for the serving certificate"
_log = logging.getLogger(__name__)


class Server:
    """The fronts, gRPC health, and the admin address.

    Args:
        config: The whole configuration.
        issuance: Decides and issues.
        issue_serving: Issues the certificate of Istio's listener.
        anchors_pem: Returns the trust anchors for client certificates, in PEM; called
            for each new connection.
        metrics: Served at /metrics.
        clock: Tells when the serving certificate is due for renewal.
        problems: Returns what stands against being ready, by part
            (`bridge.admin.endpoints.PARTS`); the server adds those of its listeners.
        warnings: Returns what needs attention and does not stand against it.
        shares_ports: Other processes listen on the same ports (SO_REUSEPORT).
        admin_address: Where to serve health and metrics in place of `admin.listen`.
        held: Why `start` opens no port of callers, until `release`; empty if it does.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each by keyword
        self,
        config: BridgeConfig,
        issuance: Issuance,
        *,
        issue_serving: IssueServing,
        anchors_pem: Callable[[], bytes],
        metrics: Metrics,
        clock: Clock,
        problems: Callable[[], Mapping[str, str]],
        warnings: Callable[[], Mapping[str, str]] = dict,
        shares_ports: bool = False,
        admin_address: str | None = None,
        held: str = "",
    ) -> None:
        self._shares_ports = shares_ports
        self._is_held = bool(held)
        self._problems = problems
        self._warnings = warnings
        self._listening = threading.Lock()
        self._failure = held or _NO_CERTIFICATE
        self._draining = False
        self._listeners: tuple[Listener, ...] = ()
        self._admin = Admin(
            admin_address or config.admin.listen,
            Views(
                lambda: readiness(self.problems(), self.warnings(), _parts(config)),
                metrics.render,
            ),
        )
        # From here on nothing raises: there are threads to end.
        listeners: list[Listener] = []
        if config.fronts.istio is not None:
            istio = IstioListener(
                config,
                issuance,
                metrics,
                shares_ports=shares_ports,
                issue_serving=issue_serving,
                anchors_pem=anchors_pem,
                clock=clock,
            )
            istio.serving.on_pair = lambda: self._open_late(istio)
            listeners.append(istio)
        if config.fronts.linkerd is not None:
            linkerd = LinkerdListener(
                config, issuance, metrics, shares_ports=shares_ports
            )
            listeners.append(linkerd)
        self._listeners = tuple(listeners)
        self._health = Health(
            self.problems, _health_server(config, listeners, shares_ports=shares_ports)
        )
        metrics.in_flight.set_function(
            lambda: sum(listener.pools.calls.count for listener in listeners)
        )

    @property
    def istio_address(self) -> str:
        """`host:port` of the token port as bound; empty until the listeners are up."""
        return self._ports().get("fronts.istio.listen", "")

    @property
    def mtls_address(self) -> str:
        """`host:port` of the client-certificate port; empty if there is none."""
        return self._ports().get("fronts.istio.mtls_listen", "")

    @property
    def linkerd_address(self) -> str:
        """`host:port` of Linkerd's front; empty if there is none."""
        return self._ports().get("fronts.linkerd.listen", "")

    @property
    def health_address(self) -> str:
        """`host:port` of gRPC health as bound; empty if it is not served."""
        return self._health.address

    @property
    def admin_address(self) -> str:
        """`host:port` of the admin address as bound."""
        return self._admin.address

    def problems(self) -> dict[str, str]:
        """Return what stands against being ready, by part; empty when ready."""
        found = dict(self._problems())
        for listener in self._listeners:
            found |= listener.problems()
        if self._draining:
            found["listeners"] = "the process is about to end"
        elif not self._listeners or not all(
            listener.ports for listener in self._listeners
        ):
            found["listeners"] = self._failure
        return found

    def warnings(self) -> dict[str, str]:
        """Return what needs attention and does not stand against being ready."""
        found = dict(self._warnings())
        for listener in self._listeners:
            found |= listener.warnings()
        return found

    def start(self) -> None:
        """Listen, and return.

        Without a serving certificate, because no issuing CA answers, the ports of
        Istio's front stay closed. They open as soon as there is one.

        Raises:
            ConfigError: An address cannot be listened on, or the system gives fewer
                threads than `limits.threads`.
        """
        try:
            self._start_threads()
            for listener in self._listeners:
                if listener.is_ready():
                    self._open(listener)
        except ConfigError:
            self.drain(0)
            raise
        for listener in self._listeners:
            listener.start_background()
        self._health.look()
        self._health.start()

    def release(self) -> None:
        """Open the ports that were held. May be repeated.

        Raises:
            ConfigError: See `start`.
        """
        with self._listening:
            if not self._is_held:
                return
            self._is_held, self._failure = False, _NO_CERTIFICATE
        self._open_health()
        for listener in self._listeners:
            self._open(listener)
        self._health.look()

    def drain(self, grace: float) -> None:
        """Report NOT_SERVING, finish the running calls, and close. May be repeated.

        Args:
            grace: Seconds that running calls may take. What is left then is cut off.
        """
        began = time.monotonic()
        with self._listening:
            self._draining = True
        self._health.drain()
        if self._shares_ports:
            ports = [*self._ports().values(), self._health.address]
            leave_to_others([port for port in ports if port], grace)
        for listener in self._listeners:
            listener.stop_background()
        ended = [listener.stop(grace) for listener in self._listeners]
        for listener, left in zip(self._listeners, _left(began, grace), strict=False):
            listener.pools.calls.wait_until_idle(left)
        # Only replies on their way out are left.
        for event, left in zip(ended, _left(began, grace), strict=False):
            event.wait(min(left, _FLUSH_SECONDS))
        for event in [listener.stop(0) for listener in self._listeners]:
            if not event.wait(_CUT_SECONDS):
                _log.error("the listeners did not close in time")
        for listener in self._listeners:
            listener.close()
        self._health.close()
        self._admin.close()

    def _ports(self) -> dict[str, str]:
        return {
            key: port
            for listener in self._listeners
            for key, port in listener.ports.items()
        }

    def _start_threads(self) -> None:
        self._admin.start()
        try:
            for listener in self._listeners:
                listener.start_threads()
        except RuntimeError as error:
            raise _no_thread(error) from error
        if not self._is_held:
            self._open_health()

    def _open_health(self) -> None:
        try:
            self._health.open()
        except RuntimeError as error:
            raise _no_thread(error) from error

    def _open_late(self, listener: Listener) -> None:
        try:
            self._open(listener)
        except Exception as error:  # noqa: BLE001 - who calls has to go on
            known, self._failure = self._failure, str(error)
            if self._failure != known:
                _log.error("a front cannot listen: %s", error)

    def _open(self, listener: Listener) -> None:
        with self._listening:
            if self._is_held or self._draining or listener.ports:
                return
            if listener.can_open():
                listener.open()


def _no_thread(error: RuntimeError) -> ConfigError:
    return ConfigError(
        "limits.threads: the system gives no more threads", detail=str(error)
    )


def _parts(config: BridgeConfig) -> tuple[str, ...]:
    absent = set() if config.fronts.istio else {SERVING}
    return tuple(part for part in PARTS if part not in absent)


def _left(began: float, grace: float) -> Iterator[float]:
    # The listeners share the time.
    while True:
        yield max(0.0, began + grace - time.monotonic())


def _health_server(
    config: BridgeConfig, listeners: Sequence[Listener], *, shares_ports: bool
) -> HealthServer | None:
    if config.admin.grpc_listen is None:
        return None
    services = tuple(listener.service for listener in listeners)
    return HealthServer(
        config.admin.grpc_listen,
        services,
        shares_ports=shares_ports,
        connections=most_connections(config),
    )
