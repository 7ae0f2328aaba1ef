"""What a TLS port shows and asks for, as grpc wants to be told.

grpc asks for the certificate at each new connection, so a new one needs no restart and
cuts no connection.
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
    """Return credentials for a port that follow every change.

    Args:
        pair: The certificate that is in service; asked at each new connection.
        client_anchors_pem: If given, a client must show a certificate that leads to
            one of these trust anchors; asked at each new connection.

    Raises:
        RuntimeError: There is no certificate yet.
        ConfigError: There are no trust anchors where some were to be.
    """
    port = DynamicCredentials(pair, client_anchors_pem)
    return grpc.dynamic_ssl_server_credentials(
        port.configuration(),
        port.changed_configuration,
        require_client_authentication=client_anchors_pem is not None,
    )


class DynamicCredentials:
    """One port's view of what it shows: grpc wants None while nothing has changed.

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
        """Return what grpc is to show from now on.

        Raises:
            RuntimeError: There is no certificate yet.
            ConfigError: Clients are to be verified, and there are no trust anchors.
        """
        pair = self._pair()
        if pair is None:
            raise RuntimeError("credentials are asked for before there are any")
        anchors = self._client_anchors_pem() if self._client_anchors_pem else None
        if anchors is not None and not anchors.strip():
            raise ConfigError("there are no trust anchors to verify clients with")
        self._last = (pair, anchors)
        return grpc.ssl_server_certificate_configuration(
            [(pair.private_key_pem, pair.certificate_chain_pem)],
            root_certificates=anchors,
        )

    def changed_configuration(self) -> Any:
        """Return `configuration` if there is another than before, else None."""
        # Called by grpc at each new connection, from a thread of its own. None keeps
        # what is in service; so does an error, but noisily.
        pair = self._pair()
        anchors = self._client_anchors_pem() if self._client_anchors_pem else None
        if (
            self._last is not None
            and self._last[0] is pair
            and self._last[1] == anchors
        ):
            return None
        return self.configuration()
