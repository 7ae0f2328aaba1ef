"""Read PEM: a caller's one block strictly, an operator's file with text around blocks.

Lenient readers skip what they do not know, so that two programs read two different
documents from one text. A block that comes from a caller has one label, canonical
base64, and no text beside it. A file may have text around its blocks, and nothing there
that could be a block. All functions are linear in the length of their input.

Source:
    RFC 7468, sections 2, 3 and 5.2.
"""

import binascii
import re
from dataclasses import dataclass
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from bridge.errors import ConfigError
from bridge.x509.algorithm import CAPrivateKey
from bridge.x509.certificate import UNREADABLE, extensions_of

_SPACE = " \t\r\n"
_BEGIN = "-----BEGIN "
_DASHES = "-----"
_BEGIN_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"
_LINE = 64
_AROUND = f"{_SPACE}\ufeff"
"""What may surround a line of a file: white space and a byte order mark."""
_LINE_END = re.compile(r"\r*\n|\r")
_BODY = re.compile(r"[A-Za-z0-9+/]{60,}={0,2}")
"""A line that can only be the base64 of a block."""
_DAMAGED = re.compile(
    r"^-----END |^[-\N{EN DASH}\N{EM DASH}\s]*(BEGIN|END) [A-Z0-9 ]+"
    r"[-\N{EN DASH}\N{EM DASH}\s]*$"
)
"""A BEGIN line with other dashes or too few of them, or an END line without BEGIN."""
_START = 40
_SEQUENCE = b"\x30"
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_VERSION_3 = bytes.fromhex("020103")
_JAVA = bytes.fromhex("feedfeed")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_BASE64_OF_PEM = binascii.b2a_base64(_BEGIN.encode(), newline=False)[:14]
_SPLIT = (
    r"sed 's/-----\(BEGIN\|END\) CERTIFICATE-----/\n&\n/g' {} | "
    r"sed '/^-----/!s/ /\n/g' | grep . > {}"
)
_UNESCAPE = "printf '%b\\n' \"$(cat {})\" > {}"
_PLAIN = "openssl x509 -in {} -out {}"
_PKCS7 = "openssl pkcs7 -print_certs -in {} -out {}"
_LABELS = (
    ("PKCS7", "PKCS#7", _PKCS7),
    ("PKCS #7 SIGNED DATA", "PKCS#7", _PKCS7),
    ("TRUSTED CERTIFICATE", "OpenSSL's trusted certificate", _PLAIN),
    ("X509 CERTIFICATE", "the old label X509 CERTIFICATE", _PLAIN),
    ("CERTIFICATE REQUEST", "a CSR: have the CA above sign it", ""),
    ("NEW CERTIFICATE REQUEST", "a CSR: have the CA above sign it", ""),
    ("X509 CRL", "a CRL: take it out of this file", ""),
    ("PUBLIC KEY", "a public key: take it out of this file", ""),
)
"""Other labels, what they are, and the command that makes certificates of them."""


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


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Return certificates as PEM blocks, in order."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def key_pem(key: CAPrivateKey) -> bytes:
    """Return a private key in PEM: PKCS#8, and not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_certificates(data: bytes, source: str) -> tuple[x509.Certificate, ...]:
    """Read a file of certificates, in the order in which they stand.

    Args:
        data: One or more `CERTIFICATE` blocks. Text may stand around them, such as that
            of `openssl x509 -text` and bag attributes of a PKCS#12 file. Lines may be
            indented or empty, and begin with a byte order mark.
        source: The file's name, for the message; a key and `: ` may stand before it.

    Returns:
        At least one certificate. Names, extensions, validity and key of each can be
        read without an error.

    Raises:
        ConfigError: It holds another block, a private key in particular, something
            that could be a damaged block, no certificate at all, or one that cannot be
            read. The message names the source and the line, what was found, and the
            command that converts another format.
    """
    return tuple(block.certificate() for block in parse_blocks(data, source))


@dataclass(frozen=True, slots=True)
class Block:
    """One PEM block of a file of certificates. Its content is not read yet."""

    text: str
    place: str
    """Source, number and line, for messages."""

    def certificate(self) -> x509.Certificate:
        """Read the certificate.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            der = parse_one(self.text, "CERTIFICATE")
            certificate = x509.load_der_x509_certificate(der)
            # These are read late, and raise late: a name in no encoding, an extension
            # that stands twice, a key of an unknown kind.
            extensions = extensions_of(certificate)
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            certificate.public_key()
            if certificate.version is x509.Version.v1 and [*extensions]:
                # Envoy cannot read it, and with it loses the other anchors of a bundle.
                raise ValueError("it is of version 1, and has extensions")
        except UNREADABLE as error:
            message = f"{self.place}: expected a certificate that can be read: {error}"
            raise _bad(message) from error
        return certificate


def parse_blocks(data: bytes, source: str) -> tuple[Block, ...]:
    """Find the blocks of a file of certificates. See `parse_certificates`.

    Raises:
        ConfigError: There is another block, or something that could be a damaged one,
            or there are no `CERTIFICATE` blocks.
    """
    if _BEGIN.encode() not in data:
        _refuse_format(data, source)
    found: list[Block] = []
    block: list[str] = []
    place = source
    text = data.decode(errors="replace")
    for number, raw_line in enumerate(_LINE_END.split(text), start=1):
        line = raw_line.strip(_AROUND)
        if block:
            block.append(line)
            if line.startswith(_DASHES):
                if _BEGIN in line[1:]:
                    raise _glued(f"{source}: line {number}", source)
                found.append(Block("\n".join(filter(None, block)), place))
                if line != _END:
                    found[-1].certificate()  # says what is wrong with the block
                block = []
        elif line.startswith(_BEGIN):
            place = f"{source}: block {len(found) + 1} (line {number})"
            _require_certificate_label(line, place, source)
            block = [line]
        else:
            _require_text(line, f"{source}: line {number}", source)
    if block:
        raise _bad(f"{place} has no END line")
    if not found:
        raise _bad(f"{source}: expected one or more CERTIFICATE blocks, found none")
    return tuple(found)


def _refuse_format(data: bytes, source: str) -> None:
    """Raise for a format that is not PEM; return for a text."""
    if data.startswith(_UTF16_MARKS) or b"\0" in data[:2]:
        order = "BE" if data.startswith(b"\0") else ""
        raise _convert(source, "UTF-16", f"iconv -f UTF-16{order} -t UTF-8 {{}} > {{}}")
    if data.lstrip().startswith(_BASE64_OF_PEM):
        raise _convert(
            source,
            "base64 of a PEM file, as in a Secret's `data`",
            "base64 -d {} > {}",
        )
    for found, command, is_it in (
        ("a certificate in DER", "openssl x509 -inform DER -in {} -out {}", _is_der),
        (
            "PKCS#7 in DER",
            "openssl pkcs7 -inform DER -print_certs -in {} -out {}",
            lambda data: _SIGNED_DATA in data[:_START],
        ),
        (
            "PKCS#12",
            "openssl pkcs12 -nokeys -in {} -out {}",
            lambda data: _VERSION_3 in data[:_START] and data[:1] == _SEQUENCE,
        ),
        (
            "a Java key store",
            "keytool -list -rfc -keystore {} > {}",
            lambda data: data.startswith(_JAVA),
        ),
    ):
        if is_it(data):
            raise _convert(source, found, command)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"{source}: expected PEM certificates, found binary data") from error


def _is_der(data: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(data)
    except UNREADABLE:
        return False
    return True


def _require_text(line: str, place: str, source: str) -> None:
    """Refuse a line outside of the blocks that could be part of one."""
    if line.startswith("#"):
        return
    if _BEGIN in line and "\\n" in line:
        raise _bad(
            f"{place} is a PEM text in JSON or YAML, with \\n in place of line breaks: "
            "expected the PEM file itself; take the value out, as with jq -r"
        )
    if _BEGIN in line:
        raise _glued(place, source)
    if _BASE64_OF_PEM.decode() in line:
        raise _bad(
            f"{place} is base64 of a PEM file, as in a Secret's `data`: expected the "
            "PEM file itself; decode the value with base64 -d"
        )
    if _DAMAGED.search(line) or _BODY.fullmatch(line):
        raise _bad(
            f"{place} looks like part of a block, and is in none: expected the line "
            "-----BEGIN CERTIFICATE----- before it, with five hyphens on each side"
        )


def _require_certificate_label(line: str, place: str, source: str) -> None:
    if line == _BEGIN_CERTIFICATE:
        return
    if "PRIVATE KEY" in line:
        raise _bad(
            f"{place} is a private key: expected certificates only; take the key out "
            "of this file, and replace it if others could read it"
        )
    if "\\n" in line:
        raise _convert(place, "\\n in place of line breaks", _UNESCAPE, source)
    if not line.endswith(_DASHES) or _DASHES in line[len(_BEGIN) : -len(_DASHES)]:
        raise _glued(place, source)
    for label, found, command in _LABELS:
        if line == f"{_BEGIN}{label}{_DASHES}":
            raise _convert(place, found, command, source)
    raise _bad(f"{place}: expected the label CERTIFICATE")


def _glued(place: str, source: str) -> ConfigError:
    return _convert(
        place, "a BEGIN or END line that does not stand on its own", _SPLIT, source
    )


def _convert(place: str, found: str, command: str, source: str = "") -> ConfigError:
    file = (source or place).rpartition(": ")[2]
    convert = f"; convert it: {command.format(file, f'{file}.pem')}" if command else ""
    return _bad(f"{place}: expected PEM certificates, found {found}{convert}")


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
