"""How each kind of CA key signs: one signature algorithm a key, never a choice.

Every one of them is in the list of linkerd2-proxy, and Envoy 1.40 verifies chains of
each (`tests/interop/test_envoy.py`).

Source:
    linkerd2-proxy, linkerd/rustls/src/crypto.rs: RSA (PKCS#1 v1.5) with the NULL that
    RFC 4055 wants, ECDSA, Ed25519; no RSA-PSS, no SHA-1.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)

from bridge.errors import ConfigError

CAPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
CAPrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
)
CA_KEYS = "RSA with 2048, 3072 or 4096 bits, P-256, P-384, P-521 or Ed25519"
"""The kinds of a CA key, for people."""

RSA_BITS = frozenset({2048, 3072, 4096})


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """One way of signing."""

    name: str
    """`rsa-sha256` (PKCS#1 v1.5), `ecdsa-sha256`, `ecdsa-sha384`, `ecdsa-sha512` or
    `ed25519`."""
    hash: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None
    """What is applied before the key; `None` for Ed25519, which hashes by itself."""
    der: bytes
    """The AlgorithmIdentifier, as it stands in a certificate (RFC 4055, 5758, 8410)."""
    ecdsa: ec.ECDSA | None = None
    """`hash` as `cryptography` wants it for a key on a curve."""


_PKCS1 = padding.PKCS1v15()
_RSA_SHA256 = SignatureAlgorithm(
    "rsa-sha256", hashes.SHA256(), bytes.fromhex("300d06092a864886f70d01010b0500")
)
_ECDSA = {
    curve: SignatureAlgorithm(name, digest, bytes.fromhex(der), ec.ECDSA(digest))
    for curve, name, digest, der in (
        ("secp256r1", "ecdsa-sha256", hashes.SHA256(), "300a06082a8648ce3d040302"),
        ("secp384r1", "ecdsa-sha384", hashes.SHA384(), "300a06082a8648ce3d040303"),
        ("secp521r1", "ecdsa-sha512", hashes.SHA512(), "300a06082a8648ce3d040304"),
    )
}
CURVES = frozenset(_ECDSA)
"""The curves of CA keys, by their names in `cryptography`."""
_ED25519 = SignatureAlgorithm("ed25519", None, bytes.fromhex("300506032b6570"))


def algorithm_of(public_key: CertificateIssuerPublicKeyTypes) -> SignatureAlgorithm:
    """Return how a CA with this key signs.

    Raises:
        ConfigError: The key is none that a leaf may be signed with.
    """
    if isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size in RSA_BITS:
        return _RSA_SHA256
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        found = _ECDSA.get(public_key.curve.name)
        if found is not None:
            return found
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return _ED25519
    raise _no_ca_key()


def signature_of(
    key: CAPrivateKey, algorithm: SignatureAlgorithm, data: bytes
) -> bytes:
    """Sign `data` with a key that is held in this process.

    Args:
        key: The private key.
        algorithm: What `algorithm_of` says of its public half.
        data: What the certificate's signature is over.

    Raises:
        TypeError: The algorithm is another key's.
    """
    if algorithm.ecdsa and isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, algorithm.ecdsa)
    if algorithm.hash and isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, _PKCS1, algorithm.hash)
    if isinstance(key, ed25519.Ed25519PrivateKey) and not algorithm.hash:
        return key.sign(data)
    raise TypeError(f"no way to sign with {type(key).__name__} and {algorithm.name}")


def require_signature(
    public_key: CertificateIssuerPublicKeyTypes,
    algorithm: SignatureAlgorithm,
    signature: bytes,
    data: bytes,
) -> None:
    """Verify `signature` over `data`.

    Raises:
        cryptography.exceptions.InvalidSignature: It does not.
    """
    if algorithm.ecdsa and isinstance(public_key, ec.EllipticCurvePublicKey):
        public_key.verify(signature, data, algorithm.ecdsa)
    elif algorithm.hash and isinstance(public_key, rsa.RSAPublicKey):
        public_key.verify(signature, data, _PKCS1, algorithm.hash)
    elif isinstance(public_key, ed25519.Ed25519PublicKey) and not algorithm.hash:
        public_key.verify(signature, data)
    else:  # algorithm_of has refused it at load
        raise TypeError(f"no way to verify with {type(public_key).__name__}")


def issuer_key(certificate: x509.Certificate) -> CAPublicKey:
    """Return the key of a CA certificate.

    Raises:
        ConfigError: It is of a kind that signs no certificate.
    """
    key = certificate.public_key()
    if isinstance(key, CAPublicKey):
        return key
    raise _no_ca_key()


def _no_ca_key() -> ConfigError:
    return ConfigError(f"a CA key is {CA_KEYS}", rule="issuer.key")
