"""Read a JSON Web Key Set into the keys that may verify a token.

The key decides with which algorithms it may be used; a token's header never does. Keys
are built by PyJWT when the set is loaded; what PyJWT accepts and a mesh must not use is
refused here.

Source:
    RFC 7517, sections 4 and 5; RFC 7518, sections 3.1 and 6.
"""

import codecs
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK, PyJWTError

from bridge.errors import ConfigError, CSRError
from bridge.identity import jose
from bridge.x509.key_quality import require_good_rsa

_RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512"})
_CURVES: dict[object, str] = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
"""An API server signs with the algorithm of its key's curve."""
_COORDINATE = {"P-256": 43, "P-384": 64, "P-521": 88}
"""Characters of a coordinate: RFC 7518, 6.2.1.2 wants its full length."""
_MODULUS = range(171, 700)
"""Characters of an RSA modulus of 1024 to 4096 bits, with some zeros before it."""
ALGORITHMS = _RSA_ALGORITHMS | set(_CURVES.values())
"""Every algorithm that a token may name."""
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_LONGEST_KID = 1024
"""Characters. Kubernetes' interface of external signers permits as many."""
_MOST_ALIKE = 8
"""Keys that one token may have to be tried with. Anybody can send one."""
_TO_UTF8 = "convert it with `iconv -f UTF-16 -t UTF-8`"
_TEXTS = {
    b"-----BEGIN": "found PEM; `kubectl get --raw /openid/v1/jwks` shows the set",
    codecs.BOM_UTF16_LE: f"found UTF-16; {_TO_UTF8}",
    codecs.BOM_UTF16_BE: f"found UTF-16; {_TO_UTF8}",
}
"""What is brought in place of JSON in UTF-8, by its first bytes."""
_OBJECTS = {
    "kty": '; found a single key, which belongs into {"keys": [...]}',
    "jwks_uri": "; found the discovery document: the keys are behind its jwks_uri",
    "apiVersion": "; found an object of Kubernetes, such as the status of an error",
}
"""What is brought in place of a set, by a name in it."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One key of a cluster's API server."""

    kid: str | None
    """None if its JWK has none, or an empty one."""
    by_algorithm: Mapping[str, PyJWK]
    """The key for each allowed algorithm: all of its type, or the one that its JWK
    names."""
    sha256: str
    """Fingerprint of the SubjectPublicKeyInfo in DER; equal for a key with two IDs."""


def parse_jwks(document: bytes) -> tuple[VerificationKey, ...]:
    """Read the keys of a JWK Set that may verify a token.

    Keys of another type, curve, algorithm or use are ignored (RFC 7517, section 5). A
    private, symmetric or weak key makes the whole set an error. Keys may share an ID,
    or have none: a token is then tried with each of them. A repeated key is read once.

    Args:
        document: JSON in UTF-8.

    Returns:
        At least one key.

    Raises:
        ConfigError: The document is not a JWK Set or has no usable key; or a key is
            symmetric, private, weak or malformed; or too many share an ID.
    """
    found = [
        _key(entry, f"keys[{index}]") for index, entry in enumerate(_entries(document))
    ]
    keys = tuple(
        {
            (key.kid, key.sha256, *key.by_algorithm): key
            for key in found
            if key is not None
        }.values()
    )
    if not keys:
        raise ConfigError(
            "expected at least one signature key: RSA, P-256, P-384 or P-521"
        )
    for kid, count in Counter(key.kid for key in keys).items():
        if count > _MOST_ALIKE:
            raise ConfigError(
                f'expected at most {_MOST_ALIKE} keys with one "kid", or without one '
                f"(found {count} with {kid!r})"
            )
    return keys


def _entries(document: bytes) -> Sequence[object]:
    for start, what in _TEXTS.items():
        if document.startswith(start):
            raise ConfigError(f"expected a JWK Set in JSON and UTF-8: {what}")
    try:
        # PowerShell begins a file with this mark, which says nothing.
        found = jose.json_object(document.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise ConfigError(f"expected a JWK Set in JSON: {error}") from None
    entries = found.get("keys")
    if isinstance(entries, list) and entries:
        return entries
    instead = next((what for name, what in _OBJECTS.items() if name in found), "")
    raise ConfigError(f'expected a JWK Set with at least one key under "keys"{instead}')


def _key(entry: object, where: str) -> VerificationKey | None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected an object")
    if entry.get("kty") == "oct":
        raise ConfigError(f"{where}: a symmetric key cannot tell who signed")
    if not _PRIVATE.isdisjoint(entry):
        raise ConfigError(f"{where}: a private key has no place here")
    if not _is_for_verifying(entry):
        return None
    algorithms = _algorithms(entry)
    if not algorithms:
        return None
    try:
        _require_encoded(entry)
        keys = {name: PyJWK(entry, algorithm=name) for name in sorted(algorithms)}
        public_key = next(iter(keys.values())).key
        if isinstance(public_key, rsa.RSAPublicKey):
            numbers = public_key.public_numbers()
            require_good_rsa(numbers.n, numbers.e, what="key set")
    except CSRError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, TypeError, PyJWTError) as error:
        raise ConfigError(f"{where}: not a valid key: {error}") from None
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(spki).hexdigest()
    return VerificationKey(_kid(entry, where), keys, digest)


def _algorithms(entry: dict[str, Any]) -> frozenset[str]:
    own = (
        _RSA_ALGORITHMS if entry["kty"] == "RSA" else frozenset({_CURVES[entry["crv"]]})
    )
    return own & {entry["alg"]} if "alg" in entry else own


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


def _require_encoded(entry: dict[str, Any]) -> None:
    # PyJWT reads more than one encoding of a number, and numbers of any length.
    for name in "ne" if entry["kty"] == "RSA" else "xy":
        value = entry.get(name)
        if not isinstance(value, str):
            raise TypeError(f"{name!r} is missing or no text")
        jose.require_base64url(value)
        if entry["kty"] == "EC" and len(value) != _COORDINATE[entry["crv"]]:
            raise ValueError("a coordinate has the wrong length")
        if name == "n" and len(value) not in _MODULUS:
            raise ValueError("an RSA key has 2048, 3072 or 4096 bits")


def _kid(entry: dict[str, Any], where: str) -> str | None:
    kid = entry.get("kid")
    if kid is None or kid == "":
        return None
    if isinstance(kid, str) and len(kid) <= _LONGEST_KID:
        return kid
    raise ConfigError(f'{where}: expected a "kid" of at most {_LONGEST_KID} characters')
