"""The doors there are: Istio's, behind TLS, and Linkerd's, behind a sidecar."""

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from bridge.config import BridgeConfig, IstioConfig, LinkerdConfig
from bridge.errors import ConfigError
from bridge.metrics.instruments import Metrics
from bridge.process.place import Place
from bridge.server import istio, linkerd
from bridge.server.front import Issuer, Terms
from bridge.server.grpc_health import add_reflection
from bridge.server.listener import Door
from bridge.server.serving_certificate import (
    FileSource,
    IssuedSource,
    IssueServing,
    ServingCertificate,
    Source,
)
from bridge.server.transport.call_pool import CallPool, SteadyPool
from bridge.system.clock import Clock

_DEFAULT_SERVING_TTL = timedelta(hours=24)
_TOKENS = "fronts.istio.listen"
_CERTIFICATES = "fronts.istio.mtls_listen"
_LINKERD = "fronts.linkerd.listen"
_STREAMS = 1024
"""Of one connection. Calls of a client that has no stream left wait at its side, where
nobody refuses them in time: a few connections hold all calls that may be in flight."""


class IstioDoor(Door):
    """Opens once there is a serving certificate, which is renewed in the background.

    Args:
        config: The whole configuration, with an Istio front.
        issuer: Decides and issues.
        metrics: See `Door`.
        place: Where this process stands.
        issue_serving: Issues the listener's own certificate.
        anchors_pem: Returns the trust anchors that client certificates lead to; asked
            at each new connection.
        clock: The time that the serving certificate is renewed by.
    """

    front = istio.IstioFront
    service = istio.SERVICE
    streams = _STREAMS

    def __init__(  # noqa: PLR0913 - the server passes each by keyword
        self,
        config: BridgeConfig,
        issuer: Issuer,
        metrics: Metrics,
        place: Place,
        *,
        issue_serving: IssueServing,
        anchors_pem: Callable[[], bytes],
        clock: Clock,
    ) -> None:
        self._config = config
        self._issue_serving = issue_serving
        self._anchors_pem = anchors_pem
        self.serving = ServingCertificate(
            _source(config, issue_serving), clock, metrics
        )
        """The listener's certificate."""
        super().__init__(config, issuer, metrics, place)
        self._reflection = SteadyPool(1, "reflection")
        add_reflection(self.grpc, self._reflection, self.lanes.refusals, istio.SERVICE)

    @staticmethod
    def bounds(config: BridgeConfig) -> tuple[int, float]:
        """See `Door.bounds`."""
        return config.limits.in_flight, config.limits.queue_seconds

    @staticmethod
    def terms(config: BridgeConfig) -> Terms:
        """See `Door.terms`."""
        return Terms(
            audiences=frozenset(_istio(config).audiences),
            deadline_seconds=config.limits.deadline.total_seconds(),
            has_certificates=_istio(config).mtls_listen is not None,
        )

    def addresses(self) -> Mapping[str, tuple[str, Any]]:
        """See `Door.addresses`."""
        front = _istio(self._config)
        found = {_TOKENS: (front.listen, self.serving.credentials())}
        if front.mtls_listen is not None:
            credentials = self.serving.credentials(self._anchors_pem)
            found[_CERTIFICATES] = (front.mtls_listen, credentials)
        return found

    def is_ready(self) -> bool:
        """See `Door.is_ready`."""
        self.serving.refresh()
        return self.can_open()

    def can_open(self) -> bool:
        """See `Door.can_open`."""
        return self.serving.pair is not None

    def start(self) -> None:
        """See `Door.start`."""
        self.serving.start()

    def problems(self) -> dict[str, str]:
        """See `Door.problems`."""
        return self.serving.problems()

    def warnings(self) -> dict[str, str]:
        """See `Door.warnings`."""
        return self.serving.warnings()

    def prepare(
        self, config: BridgeConfig, issue_serving: IssueServing
    ) -> Callable[[], None]:
        """See `Door.prepare`."""
        pair = self.serving.fetch(_source(config, issue_serving))
        source = _source(config, self._issue_serving)
        change = super().prepare(config, issue_serving)

        def commit() -> None:
            self._config = config
            self.serving.change(source, pair)
            change()

        return commit

    def rest(self) -> None:
        """See `Door.rest`."""
        self.serving.close()

    def _pools(self) -> Iterator[CallPool | SteadyPool]:
        yield from super()._pools()
        yield self._reflection


class LinkerdDoor(Door):
    """Clear HTTP/2 with any number of streams: the sidecar brings all calls in one."""

    front = linkerd.LinkerdFront
    service = linkerd.SERVICE
    # A proxy that is given up comes back only after 10 s, and in a burst the messages
    # of honest ones are late, too: they are waited for.
    message_seconds = 5.0
    honest_seconds = 1.0
    is_behind_proxy = True

    def __init__(
        self, config: BridgeConfig, issuer: Issuer, metrics: Metrics, place: Place
    ) -> None:
        self._listen = _linkerd(config).listen
        super().__init__(config, issuer, metrics, place)

    @staticmethod
    def bounds(config: BridgeConfig) -> tuple[int, float]:
        """See `Door.bounds`."""
        front = _linkerd(config)
        return front.in_flight, front.queue_seconds

    @staticmethod
    def terms(config: BridgeConfig) -> Terms:
        """See `Door.terms`."""
        front, cluster = _linkerd(config), config.linkerd_cluster()
        return Terms(
            audiences=frozenset(front.audiences),
            deadline_seconds=front.deadline.total_seconds(),
            cluster=cluster.name if cluster else "",
        )

    def addresses(self) -> Mapping[str, tuple[str, Any]]:
        """See `Door.addresses`."""
        return {_LINKERD: (self._listen, None)}

    def start(self) -> None:
        """See `Door.start`: there is nothing."""

    def rest(self) -> None:
        """See `Door.rest`: there is nothing."""


def _istio(config: BridgeConfig) -> IstioConfig:
    if config.fronts.istio is None:
        raise ConfigError("fronts.istio is not configured")
    return config.fronts.istio


def _linkerd(config: BridgeConfig) -> LinkerdConfig:
    if config.fronts.linkerd is None:
        raise ConfigError("fronts.linkerd is not configured")
    return config.fronts.linkerd


def _source(config: BridgeConfig, issue: IssueServing) -> Source:
    tls = _istio(config).tls
    if tls.certificate is not None and tls.key is not None:
        return FileSource(config.resolve(tls.certificate), config.resolve(tls.key))
    ttl = tls.ttl or min(_DEFAULT_SERVING_TTL, config.issuance.max_ttl)
    return IssuedSource(issue, tls.dns_names, ttl)
