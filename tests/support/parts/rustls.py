"""rustls's verdict on a server's chain, as a proxy comes to it: in a handshake."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import rtls
from cryptography import x509

from tests.support.clients.handshake import End, RefusedError, shake_hands
from tests.support.parts.pki import Key, bundle, key_pem


def verdict(
    leaf: x509.Certificate,
    key: Key,
    intermediates: Sequence[x509.Certificate],
    anchor: x509.Certificate,
    folder: Path,
) -> str:
    """Return why rustls rejects the chain now; empty where it accepts it.

    Args:
        leaf: Verified for its path, not for a host.
        key: The leaf's.
        intermediates: Issuing CA first.
        anchor: The one trust anchor.
        folder: For the files.
    """
    chain, secret, roots = (folder / name for name in ("chain", "key", "roots"))
    chain.write_bytes(bundle(leaf, *intermediates))
    secret.write_bytes(key_pem(key))
    roots.write_bytes(bundle(anchor))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, secret)
    client = rtls.SSLContext(rtls.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = rtls.CERT_REQUIRED
    try:
        client.load_verify_locations(str(roots))
        shake_hands(End.of(rtls, client), End.of(ssl, server, server_side=True))
    except RefusedError as error:
        if not isinstance(error.reason, rtls.SSLError):
            raise  # the server has nothing to refuse
        return _text(error.reason)
    except (rtls.SSLError, ValueError) as error:
        return _text(error)
    return ""


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
