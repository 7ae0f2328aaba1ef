"""How each kind of CA key signs: one signature algorithm a key, never a choice."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)

from bridge.errors import ConfigError

_RSA_BITS = frozenset({2048, 3072, 4096})


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """One way of signing."""

    name: str
    """`rsa-sha256` (PKCS#1 v1.5), `ecdsa-sha256` or `ecdsa-sha384`."""
    hash: hashes.SHA256 | hashes.SHA384
    der: bytes
    """The AlgorithmIdentifier, as it stands in a certificate (RFC 4055, 5758)."""


_RSA_SHA256 = SignatureAlgorithm(
    "rsa-sha256", hashes.SHA256(), bytes.fromhex("300d06092a864886f70d01010b0500")
)
_ECDSA = {
    "secp256r1": SignatureAlgorithm(
        "ecdsa-sha256", hashes.SHA256(), bytes.fromhex("300a06082a8648ce3d040302")
    ),
    "secp384r1": SignatureAlgorithm(
        "ecdsa-sha384", hashes.SHA384(), bytes.fromhex("300a06082a8648ce3d040303")
    ),
}


def algorithm_of(public_key: CertificateIssuerPublicKeyTypes) -> SignatureAlgorithm:
    """Return how a CA with this key signs.

    Raises:
        ConfigError: The key is none that a leaf may be signed with.
    """
    if isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size in _RSA_BITS:
        return _RSA_SHA256
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        found = _ECDSA.get(public_key.curve.name)
        if found is not None:
            return found
    raise ConfigError(
        "a CA key is RSA with 2048, 3072 or 4096 bits, P-256 or P-384",
        rule="issuer.key",
    )


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
    if isinstance(public_key, rsa.RSAPublicKey):
        public_key.verify(signature, data, padding.PKCS1v15(), algorithm.hash)
    elif isinstance(public_key, ec.EllipticCurvePublicKey):
        public_key.verify(signature, data, ec.ECDSA(algorithm.hash))
    else:  # algorithm_of has refused it at load
        raise TypeError(f"no way to verify with {type(public_key).__name__}")


def issuer_key(certificate: x509.Certificate) -> CertificateIssuerPublicKeyTypes:
    """Return the key of a CA certificate.

    Raises:
        ConfigError: It is of a kind that signs no certificate.
    """
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return key
    raise ConfigError(
        "a CA key is RSA with 2048, 3072 or 4096 bits, P-256 or P-384",
        rule="issuer.key",
    )
