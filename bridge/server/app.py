"""One server process, put together from parts that are already built."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import grpc

from bridge.clock import Clock
from bridge.config import BridgeConfig, ServingConfig
from bridge.errors import ConfigError
from bridge.metrics import Metrics
from bridge.server.admin import Admin, Views, split_address
from bridge.server.health import Health, add_reflection
from bridge.server.istio import Issuer, IstioFront, Lanes
from bridge.server.listeners import leave_to_others
from bridge.server.place import ALONE, Place
from bridge.server.pool import CallPool, SteadyPool
from bridge.server.reaper import Reaper
from bridge.server.tls import (
    FileSource,
    IssuedSource,
    IssueServing,
    ServingCertificate,
    Source,
)

_DEFAULT_SERVING_TTL = timedelta(hours=24)
_LONGEST_MESSAGE_SECONDS = 2.0
_FLUSH_SECONDS = 0.5
_CUT_SECONDS = 2.0
"""How long the end waits for what should take no time: it comes, whatever hangs."""
_log = logging.getLogger(__name__)


class Server:
    """The Istio front, its health, and the admin address.

    Args:
        config: The whole configuration.
        issuer: Decides and issues.
        issue_serving: Issues the listener's own certificate.
        anchors_pem: Returns the trust anchors that client certificates lead to; asked
            at each new connection.
        metrics: Shown at /metrics.
        clock: The time that the serving certificate is renewed by.
        problems: What stands against being ready, by part (`admin.PARTS`); the
            server adds its listeners and their certificate.
        warnings: What does not, and is shown beside it.
        place: Where this process stands.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each by keyword
        self,
        config: BridgeConfig,
        issuer: Issuer,
        *,
        issue_serving: IssueServing,
        anchors_pem: Callable[[], bytes],
        metrics: Metrics,
        clock: Clock,
        problems: Callable[[], Mapping[str, str]],
        warnings: Callable[[], Mapping[str, str]] = dict,
        place: Place = ALONE,
    ) -> None:
        self._config = config
        self._issue_serving = issue_serving
        self._place = place
        self._anchors_pem = anchors_pem
        self._problems = problems
        self._warnings = warnings
        self._listening = threading.Lock()
        self._ports: dict[str, str] = {}
        self._failure = "waiting for the serving certificate"
        self._draining = False
        self._drained = threading.Event()
        self._serving = ServingCertificate(
            _source(config, issue_serving), clock, metrics
        )
        self._serving.on_first = self._listen_late
        self._health = Health(self.problems)
        self._admin = Admin(
            place.admin or config.admin.listen,
            Views(self.problems, self.warnings, metrics.render),
        )
        # From here on nothing raises: there are threads to end.
        self._lanes = _lanes(config)
        metrics.in_flight.set_function(lambda: self._lanes.calls.count)
        self._side = SteadyPool(2, "side")
        self._reflection = SteadyPool(1, "reflection")
        self._grpc = self._build(issuer, metrics)

    @property
    def istio_address(self) -> str:
        """`host:port` of the token port as bound; empty until the listeners are up."""
        return self._ports.get("listen", "")

    @property
    def mtls_address(self) -> str:
        """`host:port` of the client-certificate port; empty if there is none."""
        return self._ports.get("mtls_listen", "")

    @property
    def admin_address(self) -> str:
        """`host:port` of the admin address as bound."""
        return self._admin.address

    def problems(self) -> dict[str, str]:
        """Return what stands against being ready, by part; empty when ready."""
        own = {} if self._ports else {"listeners": self._failure}
        if self._draining:
            own["listeners"] = "the process is about to end"
        return {**self._problems(), **self._serving.problems(), **own}

    def warnings(self) -> dict[str, str]:
        """Return what wants attention although it does not stop the bridge."""
        return {**self._warnings(), **self._serving.warnings()}

    def start(self) -> None:
        """Listen, and return.

        Without a serving certificate, because no issuing CA answers, only the admin
        address is served; the other listeners follow as soon as there is one.

        Raises:
            ConfigError: An address cannot be listened on, or the system gives fewer
                threads than `limits.threads`.
        """
        try:
            self._start_threads()
            if self._serving.refresh():
                self._listen()
        except ConfigError:
            self.drain(0)
            raise
        self._serving.start()
        self._health.look()
        self._health.start()

    def prepare(
        self, config: BridgeConfig, issue_serving: IssueServing
    ) -> Callable[[], None]:
        """Make ready for another configuration with the same listeners and threads.

        Args:
            config: The other configuration.
            issue_serving: Issues by it, before it is in service.

        Returns:
            What puts it in service. It does not fail.

        Raises:
            BridgeError: There is no serving certificate as it wants it.
        """
        pair = _source(config, issue_serving).fetch()
        source = _source(config, self._issue_serving)

        def commit() -> None:
            self._config = config
            self._serving.change(source, pair)
            self._front.change(*_terms(config))
            limits, lanes = config.limits, self._lanes
            lanes.calls.in_flight = limits.in_flight
            lanes.calls.queue_seconds = limits.queue_seconds
            lanes.reaper.seconds = _message_seconds(config)

        return commit

    def drain(self, grace: float) -> None:
        """Stop in order: say so, finish the calls under way, close. May be repeated.

        Args:
            grace: Seconds that calls under way may take; what is left then is cut off.
        """
        began = time.monotonic()
        with self._listening:
            self._draining = True
        self._health.drain()
        if self._place.shares_ports:
            leave_to_others(self._ports.values(), grace)
        self._serving.close()
        ended = self._stop(grace)
        self._lanes.calls.wait_until_idle(grace)
        # Only watchers of our health are left, or replies on their way out.
        rest = grace - (time.monotonic() - began)
        ended.wait(max(0.0, min(rest, _FLUSH_SECONDS)))
        if not self._stop(0).wait(_CUT_SECONDS):
            _log.error("the listeners did not close in time")
        self._lanes.reaper.close()
        for pool in self._pools():
            if not pool.close(_CUT_SECONDS):
                _log.error("a call goes on after the end of its time")
        self._admin.close()
        self._drained.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `drain` is done; False if that takes longer."""
        return self._drained.wait(timeout)

    def _pools(self) -> tuple[SteadyPool, ...]:
        lanes = self._lanes
        return lanes.calls, lanes.refusals, self._side, self._reflection

    def _start_threads(self) -> None:
        self._admin.start()
        self._lanes.reaper.start()
        try:
            for pool in self._pools():
                pool.start()
        except RuntimeError as error:
            raise ConfigError(
                "limits.threads: the system gives no more threads", detail=str(error)
            ) from error

    def _stop(self, grace: float) -> threading.Event:
        try:
            ended: threading.Event = self._grpc.stop(grace)
        except RuntimeError:  # grpc starts a thread for it, and there is none to be had
            _log.exception("the listeners could not be told to end")
            ended = threading.Event()
        return ended

    def _build(self, issuer: Issuer, metrics: Metrics) -> grpc.Server:
        audiences, seconds = _terms(self._config)
        self._front = IstioFront(
            issuer,
            metrics,
            self._lanes,
            audiences=audiences,
            deadline_seconds=seconds,
        )
        server = grpc.server(self._side, options=self._place.grpc_options())
        server.add_generic_rpc_handlers((self._front,))
        self._health.add_to(server)
        add_reflection(server, self._reflection)
        return server

    def _listen_late(self) -> None:
        try:
            self._listen()
        except ConfigError as error:
            self._failure = str(error)
            _log.error("%s", error)

    def _listen(self) -> None:
        istio = self._config.fronts.istio
        wanted = {"listen": istio.listen, "mtls_listen": istio.mtls_listen}
        with self._listening:
            if self._draining:
                return
            ports = {
                key: self._bind(key, address)
                for key, address in wanted.items()
                if address is not None
            }
            self._grpc.start()
            self._ports = ports

    def _bind(self, key: str, address: str) -> str:
        credentials = self._serving.credentials(
            self._anchors_pem if key == "mtls_listen" else None
        )
        try:
            port = self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"fronts.istio.{key}: cannot listen on {address}", detail=str(error)
            ) from error
        host, _ = split_address(address)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lanes(config: BridgeConfig) -> Lanes:
    limits = config.limits
    return Lanes(
        calls=CallPool(limits.threads, limits.in_flight, limits.queue_seconds),
        refusals=SteadyPool(1, "refusals"),
        reaper=Reaper(_message_seconds(config), max(2, limits.threads // 2)),
    )


def _terms(config: BridgeConfig) -> tuple[frozenset[str], float]:
    audiences = frozenset(config.fronts.istio.audiences)
    return audiences, config.limits.deadline.total_seconds()


def _message_seconds(config: BridgeConfig) -> float:
    return min(_LONGEST_MESSAGE_SECONDS, config.limits.deadline.total_seconds())


def _source(config: BridgeConfig, issue: IssueServing) -> Source:
    tls: ServingConfig = config.fronts.istio.tls
    if tls.certificate is not None and tls.key is not None:
        return FileSource(config.resolve(tls.certificate), config.resolve(tls.key))
    ttl = tls.ttl or min(_DEFAULT_SERVING_TTL, config.issuance.max_ttl)
    return IssuedSource(issue, tls.dns_names, ttl)
