"""What a ztunnel sends, and what it takes of an answer.

Source:
    ztunnel src/identity/caclient.rs, src/identity/auth.rs, src/tls/csr.rs and
    src/tls/certificate.rs.
"""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.x509.pem import parse_certificates
from tests.support.clients.istio_raw import Answer, Wire, bearer
from tests.support.harness.core import csr
from tests.support.parts.pki import new_key

_TTL_SECONDS = 24 * 3600
_LEAST = 2
"""A leaf, and the trust anchors."""


def ask(wire: Wire, token: str, identity: str, cluster: str = "") -> Answer:
    """Ask for the certificate of a workload, as in proxy mode `Shared`.

    Args:
        wire: To the bridge.
        token: The ztunnel's own.
        identity: Of the workload; any text.
        cluster: The header `clusterid`.
    """
    # What cannot be the URI of a CSR is in the metadata alone.
    is_uri = identity.isascii() and identity.isprintable() and identity
    names = (x509.UniformResourceIdentifier(identity),) if is_uri else ()
    return wire.ask(
        bearer(token, cluster),
        csr=csr(*names, key=new_key()),
        ttl_seconds=_TTL_SECONDS,
        extra={"ImpersonatedIdentity": identity},
    )


def require_taken(answer: Answer, identity: str) -> None:
    """Raise AssertionError if a ztunnel would not take the answer for this identity."""
    assert answer.code == "OK", answer
    assert len(answer.chain) >= _LEAST
    leaf, *between, anchors = answer.chain
    for one in (leaf, *between):
        parse_one(one)
    assert parse_certificates(anchors.encode(), "the anchors")
    found = parse_one(leaf)
    assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
    # Compared byte for byte: the first URI is the identity that was asked for.
    assert answer.uris[0] == identity


def parse_one(element: str) -> x509.Certificate:
    """Read a middle element: ztunnel loses all of it but the first certificate."""
    (found,) = parse_certificates(element.encode(), "an element")
    return found
