"""Where the key of a CA lives, as the hierarchy file names it. No secret stands there.

PINs, passphrases and tokens are given to the commands that use a key, and never to the
file: its digest is read aloud, and it is kept for as long as the hierarchy.
"""

import re
from typing import Annotated, Literal, get_args
from urllib.parse import unquote_to_bytes

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field

from bridge.config.types import FilePath, Section, Text, WrongError, require_https
from bridge.x509.algorithm import KeyAlgorithm

_URI = re.compile(r"pkcs11:(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KNOWN = ("token", "serial", "object", "id")
_REST = ("type=private",)
_EXPECTED = 'expected a PKCS#11 URI such as "pkcs11:token=offline;object=root"'


def _algorithm(value: object) -> object:
    if value not in get_args(KeyAlgorithm):
        raise ValueError(
            f"expected one of {', '.join(get_args(KeyAlgorithm))}: verifiers take no "
            "shorter RSA key and no other curve"
        )
    return value


def _uri(value: str) -> str:
    attributes_of(value)
    return value


def attributes_of(uri: str) -> dict[str, bytes]:
    """Return the attributes of a PKCS#11 URI: `token`, `serial`, `object` and `id`.

    Only those that are there are returned, without percent-encoding. A token is always
    named, and a key by its label or its ID.

    Raises:
        ValueError: It is no such URI, names a PIN or a module, or has an attribute that
            does not choose a token or a key.

    Source:
        RFC 7512, 2.3.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise ValueError(_EXPECTED)
    if "pin-" in uri.lower():
        raise WrongError(
            "expected a PKCS#11 URI without pin-value and pin-source: the PIN is asked "
            "for when the key is used",
            "one that is not shown",
        )
    if found["query"]:
        raise ValueError(f"{_EXPECTED}, without a query: write the module as `module`")
    attributes: dict[str, bytes] = {}
    for part in filter(None, found["path"].split(";")):
        name, equals, value = part.partition("=")
        if part in _REST:
            continue
        if name not in _KNOWN or not equals or not value or name in attributes:
            raise ValueError(
                f"{_EXPECTED}: each of {', '.join(_KNOWN)} at most once, and no other "
                f"attribute than these (found {part!r})"
            )
        attributes[name] = unquote_to_bytes(value)
    if "token" not in attributes or not attributes.keys() & {"object", "id"}:
        raise ValueError(f"{_EXPECTED}: token, and object or id, are required")
    return attributes


def _vault(value: str) -> str:
    expected = "Vault is asked over https:// only: expected https://HOST:PORT"
    return require_https(value, expected)


def _pin(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ValueError(
            "expected the SHA-256 of the public key (SubjectPublicKeyInfo in DER), as "
            "64 hex digits in lower case"
        )
    return value


Algorithm = Annotated[KeyAlgorithm, BeforeValidator(_algorithm)]


class _Key(Section):
    algorithm: Algorithm
    """Its kind and size."""
    spki_sha256: Annotated[str, AfterValidator(_pin)] | None = None
    """The SHA-256 of the public key (SubjectPublicKeyInfo in DER), where it is known
    when the file is agreed: no other key is then used, and no other CSR is signed."""


class KeyInFile(_Key):
    """A private key in a file, encrypted or not."""

    backend: Literal["file"]
    """Where it is."""
    path: FilePath
    """The private key, in PEM. Only the owner of the file may read it."""


class KeyInToken(_Key):
    """A private key in an HSM or another PKCS#11 token."""

    backend: Literal["pkcs11"]
    """Where it is."""
    uri: Annotated[str, AfterValidator(_uri)]
    """RFC 7512: `token`, and `object` or `id`, and `serial` where several tokens have
    the label. Without a PIN."""
    module: FilePath | None = None
    """The PKCS#11 module. It differs from machine to machine, so commands take it too,
    as `--module`."""

    def attributes(self) -> dict[str, bytes]:
        """Return the attributes of the URI. See `attributes_of`."""
        return attributes_of(self.uri)


class KeyInTransit(_Key):
    """A private key in Vault's or OpenBao's Transit engine, which signs with it."""

    backend: Literal["vault-transit"]
    """Where it is."""
    address: Annotated[str, AfterValidator(_vault)]
    """Such as `https://vault.corp.example:8200`. The token of a person is asked for."""
    mount: Text = "transit"
    """Where the engine is mounted."""
    name: Text
    """Of the key in the engine."""
    version: Annotated[int, Field(ge=1)] = 1
    """A rotated key is another key: the version is pinned."""
    namespace: Text | None = None
    """Of Vault, where it has some."""
    ca_file: FilePath | None = None
    """The CAs of the server's certificate. By default those of this machine."""


class KeyBehindCSR(_Key):
    """A private key that stays where it is, such as in Vault's PKI engine.

    Of the CSR only the public key is used, once the CSR has proven that its maker has
    the private key. This key signs nothing in a ceremony, so its CA is the lowest one.
    """

    backend: Literal["csr"]
    """Where it is."""
    path: FilePath
    """The CSR, in PEM or DER."""


KeyLocation = Annotated[
    KeyInFile | KeyInToken | KeyInTransit | KeyBehindCSR, Discriminator("backend")
]
BACKENDS = ("file", "pkcs11", "vault-transit", "csr")
"""The values of `backend`."""


def identity_of(
    key: KeyInFile | KeyInToken | KeyInTransit | KeyBehindCSR,
) -> tuple[object, ...]:
    """Return what two locations have in common if they are of one key."""
    match key:
        case KeyInFile() | KeyBehindCSR():
            return key.backend, key.path
        case KeyInToken():
            return key.backend, *sorted(key.attributes().items())
        case KeyInTransit():
            where = (key.address, key.namespace, key.mount)
            return key.backend, *where, key.name, key.version
