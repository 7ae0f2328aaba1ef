"""How each kind of CA key signs: one signature algorithm a key, never a choice.

Every one of them is in the list of linkerd2-proxy, and Envoy 1.40 verifies chains of
each (`tests/interop/test_envoy.py`).

Source:
    linkerd2-proxy, linkerd/rustls/src/crypto.rs: RSA (PKCS#1 v1.5) with the NULL that
    RFC 4055 wants, ECDSA, Ed25519; no RSA-PSS, no SHA-1.
"""

from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)
from cryptography.x509.oid import PublicKeyAlgorithmOID

from bridge.errors import ConfigError
from bridge.x509.certificate import key_of, name_of, signature_identifiers

CAPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
CAPrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
)
KeyAlgorithm = Literal[
    "p256", "p384", "p521", "rsa2048", "rsa3072", "rsa4096", "ed25519"
]
"""A kind of key that a CA may have, with its size."""
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


_NULL = "0500"
_KEYS = frozenset(
    bytes.fromhex(identifier)
    for identifier in (
        f"300d06092a864886f70d010101{_NULL}",
        "301306072a8648ce3d020106082a8648ce3d030107",  # P-256
        "301006072a8648ce3d020106052b81040022",  # P-384
        "301006072a8648ce3d020106052b81040023",  # P-521
        "300506032b6570",  # Ed25519
    )
)
"""AlgorithmIdentifiers of keys that every data plane reads."""
_HYBRID_POINT = frozenset({6, 7})
RSA_SIGNATURES = frozenset(
    bytes.fromhex(f"300d06092a864886f70d0101{hash_}{_NULL}")
    for hash_ in ("0b", "0c", "0d")
)
RSA_SIGNATURES_WITHOUT_NULL = frozenset(
    bytes.fromhex(f"300b06092a864886f70d0101{hash_}") for hash_ in ("0b", "0c", "0d")
)
PSS_SIGNATURES = frozenset(
    bytes.fromhex(
        "304106092a864886f70d01010a3034"
        f"a00f300d06096086480165030402{hash_}{_NULL}"
        f"a11c301a06092a864886f70d010108300d06096086480165030402{hash_}{_NULL}"
        f"a2030201{salt}"
    )
    for hash_, salt in (("01", "20"), ("02", "30"), ("03", "40"))
)
"""Those whose salt has the length of the hash; data planes read no others."""
ECDSA_SIGNATURES = frozenset(
    bytes.fromhex(f"300a06082a8648ce3d0403{hash_}") for hash_ in ("02", "03", "04")
)
ECDSA_SIGNATURES_WITH_NULL = frozenset(
    bytes.fromhex(f"300c06082a8648ce3d0403{hash_}{_NULL}")
    for hash_ in ("02", "03", "04")
)
ED25519_SIGNATURE = bytes.fromhex("300506032b6570")
_SIGNATURES = (
    RSA_SIGNATURES
    | RSA_SIGNATURES_WITHOUT_NULL
    | PSS_SIGNATURES
    | ECDSA_SIGNATURES
    | ECDSA_SIGNATURES_WITH_NULL
    | {ED25519_SIGNATURE}
)
"""AlgorithmIdentifiers of signatures that a data plane reads, byte for byte."""

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


def key_encoding_problem(certificate: x509.Certificate) -> str | None:
    """Tell why no data plane reads the key of a certificate, if none does.

    Source:
        The table of `tests/interop/planes`.
    """
    if certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS:
        # `cryptography` reads it as any RSA key, and drops the restriction.
        return (
            "has a key that is restricted to RSA-PSS, which no data plane reads: "
            "reissue it with the algorithm rsaEncryption"
        )
    identifier, key = key_of(certificate)
    kind = certificate.public_key_algorithm_oid
    is_hybrid = kind == PublicKeyAlgorithmOID.EC_PUBLIC_KEY and key[0] in _HYBRID_POINT
    if identifier in _KEYS and not is_hybrid:
        return None
    return (
        f"has a key of the kind {name_of(kind)} that is written in a way that no data "
        f"plane reads: expected {CA_KEYS}, the curve by its name, the point not "
        "hybrid, RSA with the parameters NULL; reissue it with such a key"
    )


def signature_problem(certificate: x509.Certificate) -> str | None:
    """Tell what is wrong with a certificate's signature algorithm, if anything is.

    What only some data planes refuse, such as RSA-PSS, is no problem here: see
    `bridge.dataplanes.acceptance`.
    """
    inner, outer = signature_identifiers(certificate)
    if inner != outer:
        return (
            "names one signature algorithm inside and another one outside what is "
            "signed, byte for byte: reissue it"
        )
    if outer in _SIGNATURES:
        return None
    return (
        f"is signed with {name_of(certificate.signature_algorithm_oid)}, or with "
        "parameters that no data plane reads: expected RSA (PKCS#1 v1.5, or PSS with "
        "a salt as long as the hash) or ECDSA with SHA-256, SHA-384 or SHA-512, or "
        "Ed25519"
    )


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


def new_key(algorithm: KeyAlgorithm) -> CAPrivateKey:
    """Make a key with this machine's randomness."""
    match algorithm:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            bits = int(algorithm.removeprefix("rsa"))
            return rsa.generate_private_key(65537, bits)


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
