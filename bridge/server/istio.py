"""Istio's CA API. Translates; decides nothing."""

from typing import Any

from bridge.errors import AuthenticationError
from bridge.identity.caller import (
    CertificateCredential,
    Credential,
    TokenCredential,
)
from bridge.issuance.call import Call, Issued
from bridge.metrics.instruments import Metrics
from bridge.resilience.failover import Budget
from bridge.server.front import Front, Issuer, Lanes, Terms
from bridge.server.messages import ResponseWriter, read_request

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = f"/{SERVICE}/CreateCertificate"
_CERTIFICATES = "x509_pem_cert"


class IstioFront(Front):
    """Serves `istio.v1.auth.IstioCertificateService`. See `Front`."""

    name = "istio"
    method = METHOD

    def __init__(
        self, issuer: Issuer, metrics: Metrics, lanes: Lanes, terms: Terms
    ) -> None:
        super().__init__(issuer, metrics, lanes, terms)
        self._responses = ResponseWriter()

    def translate(
        self, message: bytes, context: Any, terms: Terms, budget: Budget
    ) -> Call:
        """See `Front.translate`."""
        request = read_request(message)
        return Call(
            front=self.name,
            csr=request.csr,
            credential=_credential(context, terms),
            audiences=terms.audiences,
            ttl_seconds=request.ttl_seconds,
            cert_signer=request.cert_signer,
            impersonated=request.impersonated,
            budget=budget,
        )

    def reply(self, issued: Issued) -> bytes:
        """See `Front.reply`: leaf, each intermediate, all trust anchors."""
        return self._responses.write(
            issued.leaf_pem, issued.chain_pem, issued.anchors_pem
        )


def _credential(context: Any, terms: Terms) -> Credential:
    # Where a client certificate was asked for, the listener let nobody in without one:
    # there it is the credential, and headers count for nothing.
    certificates = terms.has_certificates and context.auth_context().get(_CERTIFICATES)
    if certificates:
        if len(certificates) != 1:
            raise AuthenticationError("a connection has one client certificate")
        return CertificateCredential(certificates[0])
    authorization: list[str] = []
    cluster_ids: list[str] = []
    for key, value in context.invocation_metadata():
        if key == "authorization":
            authorization.append(value)
        elif key == "clusterid":
            cluster_ids.append(value)
    return TokenCredential(tuple(authorization), tuple(cluster_ids))
