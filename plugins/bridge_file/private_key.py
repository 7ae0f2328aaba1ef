"""Parses a CA key in PEM: PKCS#8, SEC1 or PKCS#1, encrypted or not."""

import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.sdk import CA_KEYS, CURVES, RSA_BITS, CAPrivateKey
from bridge.spi import ConfigError

_BLOCK = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]+)-----\r?\n.*?-----END (?P=label)-----",
    re.DOTALL,
)
_RSA_EXPONENT = 65537
_KINDS = f"expected {CA_KEYS} (RSA with the exponent {_RSA_EXPONENT})"


def parse_key(
    data: bytes, source: Path, passphrase: bytes | None, passphrase_file: Path | None
) -> CAPrivateKey:
    """Parse the one private key of a file.

    Args:
        data: The content. `openssl ecparam` puts EC PARAMETERS before the key.
        source: The file, for the message.
        passphrase: The passphrase of an encrypted key, or None.
        passphrase_file: The file of the passphrase, for the message.

    Raises:
        ConfigError: There is no key or more than one, it is damaged, its kind is not
            one that signs for a mesh, or it and the passphrase do not go together. No
            message repeats anything of the files.
    """
    block = _only_key(data, source)
    encrypted = block.startswith(b"-----BEGIN ENCRYPTED") or b"4,ENCRYPTED" in block
    if encrypted and passphrase is None:
        raise _bad(f"{source}: the key is encrypted: expected passphrase_file")
    if not encrypted and passphrase is not None:
        raise _bad(
            f"{source}: the key is not encrypted: expected no passphrase_file "
            f"(found {passphrase_file})"
        )
    try:
        key = load_pem_private_key(block, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The library's text is not shown: it may describe decrypted content.
        if encrypted:
            raise _bad(
                f"{source}: cannot be decrypted: the passphrase in {passphrase_file} "
                "is another one, or the key is damaged"
            ) from error
        raise _bad(f"{source}: the private key is damaged: {_KINDS}") from error
    return _require_kind(key, source)


def _only_key(data: bytes, source: Path) -> bytes:
    blocks = [
        match[0]
        for match in _BLOCK.finditer(data)
        if match["label"].endswith(b"PRIVATE KEY")
    ]
    if not blocks and b"-----BEGIN CERTIFICATE-----" in data:
        raise _bad(
            f"{source}: this is a certificate: expected the private key that belongs "
            "to the issuing CA's, in PEM"
        )
    if len(blocks) != 1:
        raise _bad(
            f"{source}: expected one private key in PEM (PKCS#8, SEC1 or PKCS#1), "
            f"found {len(blocks)}"
        )
    return blocks[0] + b"\n"


def _require_kind(key: object, source: Path) -> CAPrivateKey:
    if isinstance(key, rsa.RSAPrivateKey):
        exponent = key.public_key().public_numbers().e
        if key.key_size in RSA_BITS and exponent == _RSA_EXPONENT:
            return key
        kind = f"RSA with {key.key_size} bits and exponent {exponent}"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name in CURVES:
            return key
        kind = f"EC on {key.curve.name}"
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    else:
        kind = type(key).__name__.removesuffix("PrivateKey")
    raise _bad(f"{source}: {_KINDS} (found {kind})")


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="file.key")
