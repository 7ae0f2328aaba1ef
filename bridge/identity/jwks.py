"""A JSON Web Key Set, read into the keys that may verify a token.

A key says itself with which algorithms it may be used: what a token's header claims
never decides that.

Source:
    RFC 7517, sections 4 and 5; RFC 7518, sections 3.1 and 6.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import ConfigError, CSRError
from bridge.identity import jose
from bridge.x509.key_quality import require_good_key, require_good_rsa

_RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512"})
_CURVES: dict[object, tuple[ec.EllipticCurve, int, str]] = {
    "P-256": (ec.SECP256R1(), 32, "ES256"),
    "P-384": (ec.SECP384R1(), 48, "ES384"),
}
ALGORITHMS = _RSA_ALGORITHMS | {name for _, _, name in _CURVES.values()}
"""Every algorithm that a token may name."""
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_LONGEST_KID = 256
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One key of a cluster's API server."""

    kid: str | None
    public_key: PublicKey
    algorithms: frozenset[str]
    """With which it may be used: all of its type, or the one that its JWK names."""
    sha256: str
    """Of the SubjectPublicKeyInfo in DER: the same key under another ID is equal."""


def parse_jwks(document: bytes) -> tuple[VerificationKey, ...]:
    """Read the keys of a JWK Set that may verify a token.

    Keys of another type, curve, algorithm or use are passed over, as RFC 7517 wants it;
    a key that makes the whole source doubtful is an error.

    Args:
        document: JSON in UTF-8.

    Returns:
        At least one key.

    Raises:
        ConfigError: It is not a JWK Set or has no usable key; or a key is symmetric,
            private, weak, malformed, without an ID among several, or shares its ID.
    """
    try:
        entries = jose.json_object(document).get("keys")
    except ValueError as error:
        raise ConfigError(f"expected a JWK Set in JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ConfigError('expected a JWK Set with at least one key under "keys"')
    found = [_key(entry, f"keys[{index}]") for index, entry in enumerate(entries)]
    keys = tuple(key for key in found if key is not None)
    if not keys:
        raise ConfigError("expected at least one RSA, P-256 or P-384 signature key")
    _require_told_apart(keys)
    return keys


def _require_told_apart(keys: Sequence[VerificationKey]) -> None:
    kids = [key.kid for key in keys]
    if len(keys) > 1 and None in kids:
        raise ConfigError('expected a "kid" for every one of several keys')
    if len(set(kids)) != len(kids):
        raise ConfigError('expected a "kid" of its own for every key')


def _key(entry: object, where: str) -> VerificationKey | None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected an object")
    if entry.get("kty") == "oct":
        raise ConfigError(f"{where}: a symmetric key cannot tell who signed")
    if not _PRIVATE.isdisjoint(entry):
        raise ConfigError(f"{where}: a private key has no place here")
    if not _is_for_verifying(entry):
        return None
    try:
        public_key, algorithms = _public_key(entry)
    except CSRError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: not a valid key: {error}") from None
    if "alg" in entry:
        algorithms &= {entry["alg"]}
    if not algorithms:
        return None
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(spki).hexdigest()
    return VerificationKey(_kid(entry, where), public_key, algorithms, digest)


def _is_for_verifying(entry: dict[str, Any]) -> bool:
    operations = entry.get("key_ops", ["verify"])
    return (
        entry.get("kty") in ("RSA", "EC")
        and (entry["kty"] == "RSA" or entry.get("crv") in tuple(_CURVES))
        and entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(entry.get("alg", ""), str)
    )


def _public_key(entry: dict[str, Any]) -> tuple[PublicKey, frozenset[str]]:
    if entry["kty"] == "RSA":
        n, e = (int.from_bytes(jose.base64url(_text(entry, name))) for name in "ne")
        # Before the key is built: a modulus of a megabyte would take its time.
        require_good_rsa(n, e, what="key set")
        return rsa.RSAPublicNumbers(e, n).public_key(), _RSA_ALGORITHMS
    curve, size, algorithm = _CURVES[entry["crv"]]
    x, y = (jose.base64url(_text(entry, name)) for name in "xy")
    if len(x) != size or len(y) != size:
        raise ValueError("a coordinate has the wrong length")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve)
    public_key = numbers.public_key()
    require_good_key(public_key, what="key set")
    return public_key, frozenset({algorithm})


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is missing or no text")
    return value


def _kid(entry: dict[str, Any], where: str) -> str | None:
    kid = entry.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= _LONGEST_KID):
        raise ConfigError(
            f'{where}: expected a "kid" of 1 to {_LONGEST_KID} characters'
        )
    return kid
