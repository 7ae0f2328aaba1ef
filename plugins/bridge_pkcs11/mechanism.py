"""How a key in a token signs: the mechanism, what it is given, and what it returns.

A token has its own idea of a default mechanism, and truncates a digest that is too long
for a curve (SoftHSM). So the mechanism is always named, the digest is made here, and
each length is checked.
"""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import KeyType, Mechanism

from bridge.sdk import CAPublicKey, algorithm_of
from bridge.spi import BackendBrokenError

_SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""DigestInfo up to the digest. Source: RFC 8017, 9.2, note 1."""
_ED25519_BYTES = 64


@dataclass(frozen=True, slots=True)
class KeyMechanism:
    """The one way that a key signs."""

    key_type: KeyType
    mechanism: Mechanism
    signed_data: Callable[[bytes], bytes]
    """Makes what the mechanism is given, of what is to be signed."""
    length: int
    """How long the token's signature is, in bytes."""
    is_raw: bool = False
    """The token's signature is r and s, one after the other (ECDSA)."""

    def signature(self, data: bytes) -> bytes:
        """Return a token's signature as it stands in a certificate.

        Raises:
            BackendBrokenError: It has not the length of the key's signatures.
        """
        if len(data) != self.length:
            raise BackendBrokenError(
                "the token's signature has not the length of the key's",
                rule="pkcs11.signature",
                detail=f"expected {self.length} bytes with {self.mechanism.name}, "
                f"found {len(data)}",
            )
        if not self.is_raw:
            return data
        half = self.length // 2
        r, s = data[:half], data[half:]
        return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


def mechanism_of(public_key: CAPublicKey, offered: Collection[object]) -> KeyMechanism:
    """Choose the mechanism for a key.

    Args:
        public_key: The public key of the issuing CA's certificate.
        offered: The mechanisms that the token lists.

    Raises:
        BackendBrokenError: The token has none that signs as the key does.
    """
    for found in _mechanisms(public_key):
        if found.mechanism in offered:
            return found
    wanted = " or ".join(f"CKM_{one.mechanism.name}" for one in _mechanisms(public_key))
    raise BackendBrokenError(
        "the token has no mechanism for the key",
        rule="pkcs11.mechanism",
        detail=f"expected a token that lists {wanted}; perhaps its policy (FIPS) "
        "forbids it",
    )


def _mechanisms(public_key: CAPublicKey) -> tuple[KeyMechanism, ...]:
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        key_type, mechanism = KeyType.EC_EDWARDS, Mechanism.EDDSA
        return (KeyMechanism(key_type, mechanism, _unchanged, _ED25519_BYTES),)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        length = 2 * ((public_key.curve.key_size + 7) // 8)
        digest = _digest(public_key)
        return (KeyMechanism(KeyType.EC, Mechanism.ECDSA, digest, length, is_raw=True),)
    return _rsa_mechanisms(public_key)


def _rsa_mechanisms(public_key: rsa.RSAPublicKey) -> tuple[KeyMechanism, ...]:
    length = public_key.key_size // 8
    whole = Mechanism.SHA256_RSA_PKCS
    return (
        KeyMechanism(KeyType.RSA, whole, _unchanged, length),
        KeyMechanism(KeyType.RSA, Mechanism.RSA_PKCS, _digest_info, length),
    )


def _digest(public_key: CAPublicKey) -> Callable[[bytes], bytes]:
    algorithm = algorithm_of(public_key).hash
    if algorithm is None:
        raise TypeError("this key hashes by itself")
    name = algorithm.name
    return lambda data: hashlib.new(name, data).digest()


def _digest_info(data: bytes) -> bytes:
    return _SHA256_DIGEST_INFO + hashlib.sha256(data).digest()


def _unchanged(data: bytes) -> bytes:
    return data
