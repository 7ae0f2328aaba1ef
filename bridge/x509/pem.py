"""Read PEM strictly: one label, canonical base64, and no text beside a block.

Lenient readers skip what they do not know, so that two programs read two different
documents from one text. All functions are linear in the length of their input.

Source:
    RFC 7468, sections 2 and 3.
"""

import binascii
from typing import NoReturn

from cryptography import x509

from bridge.errors import ConfigError
from bridge.x509.certificate import UNREADABLE

_SPACE = " \t\r\n"
_BEGIN = "-----BEGIN "
_DASHES = "-----"
_LINE = 64


def parse_one(text: str, label: str) -> bytes:
    r"""Read the one PEM block that a text consists of.

    Args:
        text: The block; white space may surround it, and lines end in LF or CRLF, at
            any length.
        label: What must stand after `BEGIN`, such as `CERTIFICATE REQUEST`.

    Returns:
        The decoded bytes, at least one. Whether they are DER is not looked at.

    Raises:
        ValueError: There is no block, more than one, one with another label, text
            around it, a header, an empty line, or base64 that is not the encoding
            that an encoder makes. The message repeats nothing of the text.
    """
    begin, end = f"{_BEGIN}{label}-----", f"-----END {label}-----"
    block = text.strip(_SPACE)
    if not (block.startswith(begin) and block.endswith(end)):
        _refuse_frame(block, begin)
    body = block[len(begin) : -len(end)].replace("\r\n", "\n")
    # BEGIN and END may share neither dashes nor a line.
    if not (body and body[0] == body[-1] == "\n"):
        raise ValueError("a PEM block's BEGIN and END lines stand on their own")
    encoded = body.replace("\n", "")
    try:
        der = binascii.a2b_base64(encoded)
    except ValueError:  # binascii.Error is one, and so is a character beyond ASCII
        _refuse_body(body)
    # The decoder skips foreign characters; writing it anew shows that there were none.
    if not der or "\n\n" in body or _base64(der) != encoded:
        _refuse_body(body)
    return der


def encode_certificate(der: bytes) -> str:
    r"""Write one certificate as a PEM block of 64 columns that ends in `\n`."""
    text = _base64(der)
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    body = "\n".join(lines)
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def parse_certificates(data: bytes, source: str) -> tuple[x509.Certificate, ...]:
    """Read a file of certificates, in the order in which they stand.

    Args:
        data: One or more `CERTIFICATE` blocks, blank lines, and comment lines that
            start with `#`, in UTF-8.
        source: The file's name, for the message.

    Returns:
        At least one certificate. Names, extensions, validity and key of each can be
        read without an error.

    Raises:
        ConfigError: It holds anything else, a private key in particular, no
            certificate at all, or one that cannot be read. The message names the
            source, and the block by number and line.
    """
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise _bad(f"{source}: expected PEM certificates, found binary data") from error
    certificates: list[x509.Certificate] = []
    block: list[str] = []
    place = source
    for number, raw_line in enumerate(lines, start=1):
        line = raw_line.strip(_SPACE)
        if block:
            block.append(line)
            if line.startswith(_DASHES):
                certificates.append(_certificate(block, place))
                block = []
        elif line.startswith(_BEGIN):
            place = f"{source}: block {len(certificates) + 1} (line {number})"
            _require_certificate_label(line, place)
            block = [line]
        elif line and not line.startswith("#"):
            raise _bad(
                f"{source}: line {number} is neither part of a CERTIFICATE block nor "
                "a comment (#)"
            )
    if block:
        raise _bad(f"{place} has no END line")
    if not certificates:
        raise _bad(f"{source}: expected one or more CERTIFICATE blocks, found none")
    return tuple(certificates)


def _require_certificate_label(line: str, place: str) -> None:
    if line == "-----BEGIN CERTIFICATE-----":
        return
    if "PRIVATE KEY" in line:
        raise _bad(
            f"{place} is a private key: expected certificates only; take the key out "
            "of this file, and replace it if others could read it"
        )
    raise _bad(f"{place}: expected the label CERTIFICATE")


def _certificate(block: list[str], place: str) -> x509.Certificate:
    try:
        der = parse_one("\n".join(block), "CERTIFICATE")
        certificate = x509.load_der_x509_certificate(der)
        # These are read late, and raise late: a subject in TeletexString beyond
        # ASCII, an extension that stands twice, a key of an unknown kind.
        _ = certificate.subject, certificate.issuer, certificate.extensions
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        certificate.public_key()
    except UNREADABLE as error:
        message = f"{place}: expected a certificate that can be read: {error}"
        raise _bad(message) from error
    return certificate


def _base64(der: bytes) -> str:
    return binascii.b2a_base64(der, newline=False).decode("ascii")


def _refuse_frame(block: str, begin: str) -> NoReturn:
    """Say what is wrong where the block's first or last line is not as it must be."""
    blocks = block.count(_BEGIN)
    if not block:
        raise ValueError("the text is empty, expected one PEM block")
    if "\0" in block:
        raise ValueError("a PEM text holds no NUL character")
    if not blocks:
        raise ValueError("the text holds no PEM block")
    if blocks > 1:
        raise ValueError("the text holds more than one PEM block")
    if not block.startswith(_BEGIN):
        raise ValueError("text stands before the PEM block")
    if not block.startswith(begin):
        raise ValueError(f"the PEM block does not start with {begin}")
    raise ValueError("the PEM text does not end with the END line of its block")


def _refuse_body(body: str) -> NoReturn:
    """Say what is wrong between the block's first and last line."""
    if not body.strip("\n"):
        raise ValueError("the PEM block is empty")
    if "\0" in body:
        raise ValueError("a PEM text holds no NUL character")
    if _BEGIN in body:
        raise ValueError("the text holds more than one PEM block")
    if ":" in body:
        raise ValueError("the PEM block has headers")
    if "\n\n" in body:
        raise ValueError("the PEM block has an empty line")
    raise ValueError("the PEM block is not in base64 as an encoder writes it")


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="config.pem")
