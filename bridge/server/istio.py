"""Istio's CA API: translates calls, and decides nothing."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from bridge.config import BridgeConfig, IstioConfig
from bridge.errors import AuthenticationError, ConfigError
from bridge.identity.caller import (
    CertificateCredential,
    Credential,
    TokenCredential,
)
from bridge.issuance.call import Call, Issued
from bridge.issuance.procedure import Issuance
from bridge.metrics.instruments import Metrics
from bridge.resilience.budget import Budget
from bridge.server.front import Front, FrontSettings
from bridge.server.listener import Listener
from bridge.server.messages import read_request, write_response
from bridge.server.serving_certificate import (
    CertificateSource,
    FileCertificateSource,
    IssuedCertificateSource,
    IssueServing,
    ServingCertificate,
)
from bridge.system.clock import Clock

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = f"/{SERVICE}/CreateCertificate"
_CERTIFICATES = "x509_pem_cert"
_CHAIN = "x509_pem_cert_chain"
_DEFAULT_SERVING_TTL = timedelta(hours=24)
_LISTEN = "fronts.istio.listen"
_MTLS_LISTEN = "fronts.istio.mtls_listen"
_STREAMS = 100
"""Concurrent calls on one connection. A client has one at a time."""


class IstioFront(Front):
    """Serves `istio.v1.auth.IstioCertificateService`. See `Front`."""

    name = "istio"
    method = METHOD

    def translate(self, message: bytes, context: Any, budget: Budget) -> Call:
        """See `Front.translate`."""
        request = read_request(message)
        return Call(
            front=self.name,
            csr=request.csr,
            credential=_credential(context, self._settings),
            audiences=self._settings.audiences,
            ttl_seconds=request.ttl_seconds,
            cert_signer=request.cert_signer,
            impersonated=request.impersonated,
            budget=budget,
        )

    def reply(self, issued: Issued) -> bytes:
        """See `Front.reply`: leaf, each intermediate, all trust anchors."""
        return write_response(issued.leaf_pem, issued.chain_pem, issued.anchors_pem)


def _credential(context: Any, settings: FrontSettings) -> Credential:
    # A port that requires a client certificate rejects any connection without one.
    # There the certificate is the credential, and the headers are ignored.
    peer = context.auth_context() if settings.has_certificates else {}
    certificates = peer.get(_CERTIFICATES)
    if certificates:
        if len(certificates) != 1:
            raise AuthenticationError("a connection has one client certificate")
        return CertificateCredential(certificates[0], b"".join(peer.get(_CHAIN, ())))
    authorization: list[str] = []
    cluster_ids: list[str] = []
    for key, value in context.invocation_metadata():
        if key == "authorization":
            authorization.append(value)
        elif key == "clusterid":
            cluster_ids.append(value)
    return TokenCredential(tuple(authorization), tuple(cluster_ids))


class IstioListener(Listener):
    """The listeners of Istio's front, with TLS.

    They open once there is a serving certificate, which is renewed in the background.

    Args:
        config: The whole configuration, with an Istio front.
        issuance: Decides and issues.
        metrics: See `Listener`.
        shares_ports: See `Listener`.
        issue_serving: Issues the listener's own certificate.
        anchors_pem: Returns the trust anchors for client certificates, in PEM; called
            for each new connection.
        clock: Tells when the serving certificate is due for renewal.
    """

    front = IstioFront
    service = SERVICE
    streams = _STREAMS
    header_bytes = 16 * 1024  # the longest token is in one

    def __init__(  # noqa: PLR0913 - the server passes each by keyword
        self,
        config: BridgeConfig,
        issuance: Issuance,
        metrics: Metrics,
        *,
        shares_ports: bool = False,
        issue_serving: IssueServing,
        anchors_pem: Callable[[], bytes],
        clock: Clock,
    ) -> None:
        self._config = config
        self._anchors_pem = anchors_pem
        self.serving = ServingCertificate(
            _source(config, issue_serving), clock, metrics
        )
        """The listener's certificate."""
        super().__init__(config, issuance, metrics, shares_ports=shares_ports)

    @staticmethod
    def bounds(config: BridgeConfig) -> tuple[int, float]:
        """See `Listener.bounds`."""
        return config.limits.in_flight, config.limits.queue_seconds

    @staticmethod
    def settings(config: BridgeConfig) -> FrontSettings:
        """See `Listener.settings`."""
        return FrontSettings(
            audiences=frozenset(_istio(config).audiences),
            deadline_seconds=config.limits.deadline.total_seconds(),
            has_certificates=_istio(config).mtls_listen is not None,
        )

    def addresses(self) -> Mapping[str, tuple[str, Any]]:
        """See `Listener.addresses`."""
        front = _istio(self._config)
        found = {_LISTEN: (front.listen, self.serving.credentials())}
        if front.mtls_listen is not None:
            credentials = self.serving.credentials(self._anchors_pem)
            found[_MTLS_LISTEN] = (front.mtls_listen, credentials)
        return found

    def is_ready(self) -> bool:
        """See `Listener.is_ready`."""
        self.serving.refresh()
        return self.can_open()

    def can_open(self) -> bool:
        """See `Listener.can_open`."""
        return self.serving.pair is not None

    def start_background(self) -> None:
        """See `Listener.start_background`."""
        self.serving.start()

    def problems(self) -> dict[str, str]:
        """See `Listener.problems`."""
        return self.serving.problems()

    def warnings(self) -> dict[str, str]:
        """See `Listener.warnings`."""
        return self.serving.warnings()

    def stop_background(self) -> None:
        """See `Listener.stop_background`."""
        self.serving.close()


def _istio(config: BridgeConfig) -> IstioConfig:
    if config.fronts.istio is None:
        raise ConfigError("fronts.istio is not configured")
    return config.fronts.istio


def _source(config: BridgeConfig, issue: IssueServing) -> CertificateSource:
    tls = _istio(config).tls
    if tls.certificate is not None and tls.key is not None:
        return FileCertificateSource(tls.certificate, tls.key)
    ttl = tls.ttl or min(_DEFAULT_SERVING_TTL, config.issuance.max_ttl)
    return IssuedCertificateSource(issue, tls.dns_names, ttl)
