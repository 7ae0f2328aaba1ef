"""Linkerd's identity API: translates calls, and decides nothing.

Certificates and CSRs are DER in both directions, although the comments of Linkerd's
own definition say otherwise.
"""

from collections.abc import Mapping
from typing import Any

from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge.config import BridgeConfig, LinkerdConfig
from bridge.errors import ConfigError
from bridge.identity.caller import TokenCredential
from bridge.issuance.call import Call, Issued
from bridge.issuance.procedure import Issuance
from bridge.metrics.instruments import Metrics
from bridge.resilience.budget import Budget
from bridge.server.front import Front, FrontSettings, Pools
from bridge.server.listener import Listener
from bridge.server.messages import parse_message

SERVICE = "io.linkerd.proxy.identity.Identity"
METHOD = f"/{SERVICE}/Certify"
_LISTEN = "fronts.linkerd.listen"


class LinkerdFront(Front):
    """Serves `io.linkerd.proxy.identity.Identity`. See `Front`."""

    name = "linkerd"
    method = METHOD

    def __init__(
        self,
        issuance: Issuance,
        metrics: Metrics,
        pools: Pools,
        settings: FrontSettings,
    ) -> None:
        super().__init__(issuance, metrics, pools, settings)
        self._service = metrics.service(METHOD)

    def service(self, handler_call_details: Any) -> Any:
        """See `Front.service`."""
        handler = super().service(handler_call_details)
        if handler is not None:
            self._service.started.inc()
        return handler

    def ended(self, code: str, seconds: float) -> None:
        """See `Front.ended`: also counts under the names of Linkerd's dashboards."""
        super().ended(code, seconds)
        self._service.handled(code)
        self._service.seconds.observe(seconds)

    def translate(self, message: bytes, context: Any, budget: Budget) -> Call:
        """See `Front.translate`: the token is in the message."""
        request = parse_message(CertifyRequest, message, "a CertifyRequest")
        # Bytes that are not ASCII stay different characters, and fail as a token.
        # A proxy sends its token file as it is, and that may end in a newline.
        token = request.token.decode("latin-1").removesuffix("\n")
        return Call(
            front=self.name,
            csr=request.certificate_signing_request,
            credential=TokenCredential(
                (f"Bearer {token}",) if token else (), (self._settings.cluster,)
            ),
            audiences=self._settings.audiences,
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


class LinkerdListener(Listener):
    """The listener of Linkerd's front: clear HTTP/2, behind a sidecar.

    The sidecar sends the calls of all proxies in one connection.
    """

    front = LinkerdFront
    service = SERVICE
    # More than the calls that wait, run, and have no message yet: above the bound a
    # sidecar queues calls itself, behind those that send no message.
    streams = 6144
    # A proxy whose call is given up asks again only after 10 s. In a burst the messages
    # of honest proxies are late, too.
    message_seconds = 5.0
    is_behind_proxy = True

    def __init__(
        self,
        config: BridgeConfig,
        issuance: Issuance,
        metrics: Metrics,
        *,
        shares_ports: bool = False,
    ) -> None:
        self._listen = _linkerd(config).listen
        super().__init__(config, issuance, metrics, shares_ports=shares_ports)

    @staticmethod
    def bounds(config: BridgeConfig) -> tuple[int, float]:
        """See `Listener.bounds`."""
        front = _linkerd(config)
        return front.in_flight, front.queue_seconds

    @staticmethod
    def settings(config: BridgeConfig) -> FrontSettings:
        """See `Listener.settings`."""
        front, cluster = _linkerd(config), config.linkerd_cluster()
        return FrontSettings(
            audiences=frozenset(front.audiences),
            deadline_seconds=front.deadline.total_seconds(),
            cluster=cluster.name if cluster else "",
        )

    def addresses(self) -> Mapping[str, tuple[str, Any]]:
        """See `Listener.addresses`."""
        return {_LISTEN: (self._listen, None)}


def _linkerd(config: BridgeConfig) -> LinkerdConfig:
    if config.fronts.linkerd is None:
        raise ConfigError("fronts.linkerd is not configured")
    return config.fronts.linkerd
