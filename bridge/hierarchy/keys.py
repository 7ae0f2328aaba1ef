"""The keys of a ceremony: where the hierarchy file says, or throwaway ones.

A key in a token, a file or Transit is opened by the plugin of its backend. It never
comes here: what signs is a `Signer`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import ConfigError, CSRError
from bridge.hierarchy.schema import (
    KeyBehindCSR,
    KeyInFile,
    KeyInToken,
    KeyInTransit,
    KeyLocation,
)
from bridge.hierarchy.schema.key_location import attributes_of
from bridge.hierarchy.transcript import HSM
from bridge.registry import Secret, load_signer
from bridge.spi import Signer
from bridge.x509.algorithm import (
    CA_KEYS,
    CAPrivateKey,
    CAPublicKey,
    SignatureAlgorithm,
    signature_of,
)
from bridge.x509.key_quality import require_good_ca_key

SIGN_SECONDS = 60.0
"""How long a key may take for a signature."""


@runtime_checkable
class Device(Protocol):
    """A `Signer` whose key is in a device that tells of itself."""

    def device(self) -> Mapping[str, str]:
        """Return `serial`, `firmware` and `model`."""


def device_of(signer: Signer) -> HSM | None:
    """Return what the device of a key tells of itself; None without a device."""
    return HSM(**signer.device()) if isinstance(signer, Device) else None


class LocalKey:
    """A `Signer` of a key in this process.

    Args:
        key: The private key.
    """

    def __init__(self, key: CAPrivateKey) -> None:
        self.private_key = key

    def public_key(self) -> CAPublicKey:
        """See `Signer.public_key`."""
        return self.private_key.public_key()

    def check(self, *, timeout: float) -> None:
        """See `Signer.check`."""

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        """See `Signer.sign`."""
        return signature_of(self.private_key, algorithm, tbs)

    def close(self) -> None:
        """See `Signer.close`."""


def algorithm_name(key: CAPublicKey) -> str:
    """Return the kind of a key as the hierarchy file names it."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa{key.key_size}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    return key.curve.name.replace("secp", "p").removesuffix("r1")


def spki_sha256(key: CAPublicKey | CertificatePublicKeyTypes) -> str:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo, in hex."""
    form = PublicFormat.SubjectPublicKeyInfo
    return sha256(key.public_bytes(Encoding.DER, form)).hexdigest()


@contextmanager
def opened(
    name: str,
    location: KeyLocation,
    secret: Secret,
    *,
    module: Path | None = None,
    make: bool = False,
) -> Iterator[Signer]:
    """Open the key of a CA or of an officer, and close it at the end.

    Args:
        name: Whose key it is, for people.
        location: Where the hierarchy file says that it is.
        secret: Asked for a PIN, a passphrase or a token.
        module: The PKCS#11 module, in place of the one in the file.
        make: Make the key if it is not there.

    Raises:
        ConfigError: The key stays elsewhere, is not there, or is another one than the
            file plans.
        BackendError: Its device cannot be used, or refuses the secret.
    """
    options = _options(name, location, module)
    if make:
        options["make"] = location.algorithm
    signer = load_signer(location.backend)(options, secret)
    try:
        require_planned(name, signer.public_key(), location)
        yield signer
    finally:
        signer.close()


@contextmanager
def opened_officer(
    name: str, where: str, secret: Secret, *, module: Path | None = None
) -> Iterator[Signer]:
    """Open the key of an officer, and close it at the end.

    Args:
        name: The officer, for people.
        where: A file, or a PKCS#11 URI. See `key_location.attributes_of`.
        secret: Asked for a passphrase or a PIN.
        module: The PKCS#11 module, where it is a URI.

    Raises:
        ConfigError: The key is not there, or `where` is no such URI.
        BackendError: Its device cannot be used, or refuses the secret.
    """
    backend, options = "file", dict[str, object](path=Path(where))
    if where.startswith("pkcs11:"):
        if module is None:
            raise _bad(f"{name}: expected the module of the HSM's vendor as --module")
        try:
            backend, options = "pkcs11", _in_token(attributes_of(where), module)
        except ValueError as error:
            raise _bad(f"{name}: --key: {error}") from None
    signer = load_signer(backend)(options, secret)
    try:
        yield signer
    finally:
        signer.close()


def require_planned(name: str, key: object, location: KeyLocation) -> CAPublicKey:
    """Return a CA's key if it is good and of the kind that the file plans.

    Raises:
        ConfigError: It is weak, of another kind, or another one than the file pins.
    """
    try:
        require_good_ca_key(key)  # type: ignore[arg-type]
    except CSRError as error:
        raise _bad(f"{name}: its key is not fit for a CA: {error}") from None
    if not isinstance(key, CAPublicKey):
        raise _bad(f"{name}: expected {CA_KEYS}")
    found = algorithm_name(key)
    if found != location.algorithm:
        raise _bad(
            f"{name}: the key is not the planned one: expected {location.algorithm} as "
            f"in cas.{name}.key.algorithm (found {found}); give the right key, or "
            "correct the plan and have it agreed again"
        )
    if location.spki_sha256 not in {None, digest := spki_sha256(key)}:
        raise _bad(
            f"{name}: the key is not the planned one: expected the SHA-256 "
            f"{location.spki_sha256} of its public key, as in cas.{name}.key."
            f"spki_sha256 (found {digest}); give the right key or CSR"
        )
    return key


def _options(
    name: str, location: KeyLocation, module: Path | None
) -> dict[str, object]:
    match location:
        case KeyInFile():
            return {"path": location.path}
        case KeyInTransit():
            fields = ("address", "namespace", "ca_file", "mount", "name", "version")
            given = {field: getattr(location, field) for field in fields}
            return {field: one for field, one in given.items() if one is not None}
        case KeyBehindCSR():
            raise _bad(
                f"{name}: its key stays where the CSR {location.path} was made, and "
                "signs nothing here: sign below it where the key is, with a file that "
                "names its place"
            )
        case KeyInToken():
            return _token_options(name, location, module)


def _token_options(
    name: str, location: KeyInToken, module: Path | None
) -> dict[str, object]:
    found = module or location.module
    if found is None:
        raise _bad(
            f"{name}: expected the PKCS#11 module of the HSM's vendor: give it with "
            f"--module, or as cas.{name}.key.module"
        )
    return _in_token(location.attributes(), found)


def _in_token(attributes: Mapping[str, bytes], module: Path) -> dict[str, object]:
    named = {
        "token_label": attributes["token"].decode(),
        "token_serial": attributes.get("serial", b"").decode(),
        "key_label": attributes.get("object", b"").decode(),
        "key_id": attributes.get("id", b"").hex(),
    }
    return {"module": module, **{key: value for key, value in named.items() if value}}


def secret_from(
    name: str, *, file_descriptor: int | None, prompt: Callable[[str], str] | None
) -> Secret:
    """Return what gives the secret of a CA's key.

    It is the next line of a file descriptor, else it is taken from `MESHCA_PIN_<NAME>`
    or `MESHCA_PIN` of the environment, else a person is asked. It is never an argument
    of a command, which every user of the machine can see.

    Args:
        name: Of the CA, or of the officer.
        file_descriptor: Each secret is a line of it, in the order in which they are
            asked for.
        prompt: Asks a person; None where nobody is there.
    """
    variable = "MESHCA_PIN_" + "".join(c if c.isalnum() else "_" for c in name).upper()

    def secret(what: str) -> str:
        if file_descriptor is not None:
            found = _next_line(name, file_descriptor)
        else:
            found = os.environ.get(variable) or os.environ.get("MESHCA_PIN") or ""
        if not found and prompt is not None:
            found = prompt(what)
        if not found:
            raise _bad(
                f"{name}: {what} is needed: run the command on a terminal, give it in "
                f"{variable} of the environment, or on a descriptor with --pin-fd"
            )
        return found

    return secret


def _next_line(name: str, file_descriptor: int) -> str:
    # Byte by byte: whatever else is read would be missing for the next secret.
    line = bytearray()
    try:
        while (byte := os.read(file_descriptor, 1)) not in {b"", b"\n"}:
            line += byte
        return line.decode().rstrip("\r")
    except OSError as error:
        raise _bad(
            f"{name}: --pin-fd {file_descriptor}: cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise _bad(
            f"{name}: --pin-fd {file_descriptor}: expected lines of UTF-8"
        ) from None


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.key")
