"""rustls's verdict on a server's chain, as a proxy comes to it: in a handshake."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import rtls
from cryptography import x509

from tests.support.pki import Key, bundle, key_pem

_ROUNDS = 20


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
        _shake_hands(client, server)
    except (rtls.SSLError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


def _shake_hands(
    client_context: rtls.SSLContext, server_context: ssl.SSLContext
) -> None:
    to_client, from_client = rtls.MemoryBIO(), rtls.MemoryBIO()
    to_server, from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, from_client)
    server = server_context.wrap_bio(to_server, from_server, server_side=True)
    ended: set[object] = set()
    for _ in range(_ROUNDS):
        for end in (client, server):
            if end in ended:
                continue
            try:
                end.do_handshake()
            except (rtls.SSLWantReadError, ssl.SSLWantReadError):
                pass
            else:
                ended.add(end)
            to_server.write(from_client.read())
            to_client.write(from_server.read())
        if len(ended) == len((client, server)):
            return
    raise AssertionError("the handshake does not end")
