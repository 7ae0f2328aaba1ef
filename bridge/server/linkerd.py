"""Linkerd's identity API. Translates; decides nothing.

The wire is DER in both directions, whatever the comments of Linkerd's own definition
say.
"""

from typing import Any

from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge.identity.caller import TokenCredential
from bridge.issuance.call import Call, Issued
from bridge.metrics.instruments import Metrics
from bridge.resilience.failover import Budget
from bridge.server.front import Front, Issuer, Lanes, Terms
from bridge.server.messages import parse_message

SERVICE = "io.linkerd.proxy.identity.Identity"
METHOD = f"/{SERVICE}/Certify"


class LinkerdFront(Front):
    """Serves `io.linkerd.proxy.identity.Identity`. See `Front`."""

    name = "linkerd"
    method = METHOD

    def __init__(
        self, issuer: Issuer, metrics: Metrics, lanes: Lanes, terms: Terms
    ) -> None:
        super().__init__(issuer, metrics, lanes, terms)
        self._service = metrics.service(METHOD)

    def service(self, handler_call_details: Any) -> Any:
        """See `Front.service`."""
        handler = super().service(handler_call_details)
        if handler is not None:
            self._service.started.inc()
        return handler

    def ended(self, code: str, seconds: float) -> None:
        """See `Front.ended`: also under the names that Linkerd's dashboards know."""
        super().ended(code, seconds)
        self._service.handled(code)
        self._service.seconds.observe(seconds)

    def translate(
        self, message: bytes, context: Any, terms: Terms, budget: Budget
    ) -> Call:
        """See `Front.translate`: the token is in the message, headers are none."""
        request = parse_message(CertifyRequest, message, "a CertifyRequest")
        # What is no ASCII stays something else, and is refused as a token.
        token = request.token.decode("latin-1")
        return Call(
            front=self.name,
            csr=request.certificate_signing_request,
            credential=TokenCredential(
                (f"Bearer {token}",) if token else (), (terms.cluster,)
            ),
            audiences=terms.audiences,
            identity=request.identity,
            budget=budget,
        )

    def reply(self, issued: Issued) -> bytes:
        """See `Front.reply`: leaf, issuing CA, further intermediates, no root."""
        response = CertifyResponse(
            leaf_certificate=issued.leaf, intermediate_certificates=issued.chain
        )
        response.valid_until.FromDatetime(issued.valid_until)
        return response.SerializeToString()
