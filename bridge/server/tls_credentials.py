"""The TLS credentials of a port, which follow every change of the certificate.

grpc asks for the certificate at each new connection. So a renewal needs no restart, and
ends no connection.
"""

from collections.abc import Callable
from typing import Any

import grpc

from bridge.errors import ConfigError
from bridge.x509.key_pair import KeyPair


def credentials(
    pair: Callable[[], KeyPair | None],
    client_anchors_pem: Callable[[], bytes] | None = None,
) -> grpc.ServerCredentials:
    """Return the dynamic credentials of a port.

    Args:
        pair: Returns the certificate in service; called at each new connection.
        client_anchors_pem: If given, a client must present a certificate that chains to
            one of these trust anchors; called at each new connection.

    Raises:
        RuntimeError: There is no certificate yet.
        ConfigError: Clients are to be verified, and there are no trust anchors.
    """
    port = DynamicCredentials(pair, client_anchors_pem)
    return grpc.dynamic_ssl_server_credentials(
        port.configuration(),
        port.changed_configuration,
        require_client_authentication=client_anchors_pem is not None,
    )


class DynamicCredentials:
    """The certificate configuration of one port, as grpc asks for it.

    grpc expects None for as long as nothing has changed.

    Args:
        pair: See `credentials`.
        client_anchors_pem: See `credentials`.
    """

    def __init__(
        self,
        pair: Callable[[], KeyPair | None],
        client_anchors_pem: Callable[[], bytes] | None,
    ) -> None:
        self._pair = pair
        self._client_anchors_pem = client_anchors_pem
        self._last: tuple[KeyPair, bytes | None] | None = None

    def configuration(self) -> Any:
        """Return the certificate configuration for new connections.

        Raises:
            RuntimeError: There is no certificate yet.
            ConfigError: Clients are to be verified, and there are no trust anchors.
        """
        pair = self._pair()
        if pair is None:
            raise RuntimeError("there is no certificate yet")
        anchors = self._client_anchors_pem() if self._client_anchors_pem else None
        if anchors is not None and not anchors.strip():
            raise ConfigError("there are no trust anchors to verify clients with")
        self._last = (pair, anchors)
        return grpc.ssl_server_certificate_configuration(
            [(pair.private_key_pem, pair.certificate_chain_pem)],
            root_certificates=anchors,
        )

    def changed_configuration(self) -> Any:
        """Return `configuration` if it has changed since the last call, else None."""
        # grpc calls this at each new connection. None keeps the certificate that is in
        # service. So does an error, which grpc also logs.
        pair = self._pair()
        anchors = self._client_anchors_pem() if self._client_anchors_pem else None
        if (
            self._last is not None
            and self._last[0] is pair
            and self._last[1] == anchors
        ):
            return None
        return self.configuration()
