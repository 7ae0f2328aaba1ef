"""Read a certificate's names, as bytes and as text, and make its key usage.

Source:
    RFC 5280, 4.1 and 4.1.2.4.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from bridge.x509.der import SEQUENCE, content, elements, tlv

UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a malformed field, when that field is read."""

_VERSION = 0xA0  # [0] EXPLICIT
_SERIAL, _SIGNATURE, _ISSUER, _SUBJECT, _KEY = 1, 2, 3, 5, 6
_UNIQUE_IDS = frozenset({0x81, 0x82})
_EXTENSIONS = 0xA3  # [3] EXPLICIT
_CONSTRUCTED = 0x20
_UTF8_STRING = 0x0C
_BYTE_STRINGS = frozenset({0x12, 0x14, 0x16, 0x1A})
"""Numeric, Teletex, IA5 and VisibleString."""
_CERTIFICATE_POLICIES = bytes.fromhex("0603551d20")
_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)


def issuer_of(certificate: x509.Certificate) -> bytes:
    """Return the issuer's name as its very bytes: names are compared by them."""
    return _field(certificate, _ISSUER)


def subject_of(certificate: x509.Certificate) -> bytes:
    """Return the subject's name as its very bytes: names are compared by them."""
    return _field(certificate, _SUBJECT)


def validity_of(certificate: x509.Certificate) -> tuple[int, int]:
    """Return notBefore and notAfter in seconds since 1970-01-01 UTC.

    Raises:
        ValueError: They cannot be read; or what `UNREADABLE` lists.
    """
    ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return int(ends[0].timestamp()), int(ends[1].timestamp())


def readable(certificate: x509.Certificate) -> x509.Certificate:
    """Return the certificate, or a copy of it whose names and extensions can be read.

    Verifiers compare the bytes of a name and do not read the text of a policy, so they
    take strings that `cryptography` refuses. Most of them are in Latin-1. In the copy
    they are UTF8Strings, and a policy has no qualifiers. The copy is for reading only:
    its bytes and its signature are not the certificate's.

    Raises:
        ValueError: Something else cannot be read; or what `UNREADABLE` lists.
    """
    try:
        _ = certificate.subject, certificate.issuer, certificate.extensions
    except ValueError:
        return _copy(certificate)
    return certificate


def extensions_of(certificate: x509.Certificate) -> x509.Extensions:
    """Return the extensions. Raises as `readable`."""
    return readable(certificate).extensions


def value_in(
    extensions: x509.Extensions, kind: type[_ExtensionT]
) -> _ExtensionT | None:
    """Return the value of the extension of a kind; None where there is none."""
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def policy_texts(certificate: x509.Certificate) -> Iterator[bytes]:
    """Yield the explicit text of each notice in certificatePolicies, in DER.

    Source:
        RFC 5280, 4.2.1.4.
    """
    for extension in raw_extensions(certificate):
        oid, *_, value = _inside(extension)
        if oid == _CERTIFICATE_POLICIES:
            for policy in _inside(content(value)):
                for qualifiers in _inside(policy)[1:]:
                    for qualifier in _inside(qualifiers):
                        _, notice = _inside(qualifier)
                        # Of a notice the last part, unless that is a reference.
                        if notice[0] == SEQUENCE:
                            yield from (
                                one for one in _inside(notice) if one[0] != SEQUENCE
                            )


def key_of(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """Return the AlgorithmIdentifier of the key, and the bytes of the key itself."""
    identifier, key = elements(content(_field(certificate, _KEY)))
    return identifier, content(key)[1:]


def signature_identifiers(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """Return the AlgorithmIdentifier inside what is signed, and the one outside."""
    _, outer, _ = elements(content(certificate.public_bytes(Encoding.DER)))
    return _field(certificate, _SIGNATURE), outer


def has_unique_id(certificate: x509.Certificate) -> bool:
    """Tell whether it has an issuerUniqueID or subjectUniqueID (RFC 5280, 4.1.2.8)."""
    fields = elements(content(certificate.tbs_certificate_bytes))
    return any(field[0] in _UNIQUE_IDS for field in fields)


def name_text(
    certificate: x509.Certificate, which: Literal["issuer", "subject"]
) -> str | None:
    """Return a name for people; `None` where `cryptography` cannot read it."""
    try:
        name: x509.Name = getattr(certificate, which)
    except ValueError:
        try:
            name = getattr(readable(certificate), which)
        except UNREADABLE:
            return None
    return name.rfc4514_string() or "no name"


def name_of(oid: ObjectIdentifier) -> str:
    """Return an OID with its name, if it has one."""
    # The name of an OID is `cryptography`'s private matter; its repr is not.
    name = repr(oid).partition("name=")[2].rstrip(")>")
    known = name and name != "Unknown OID"
    return f"{name} ({oid.dotted_string})" if known else oid.dotted_string


def _field(certificate: x509.Certificate, index: int) -> bytes:
    fields = [*elements(content(certificate.tbs_certificate_bytes))]
    return fields[index if fields[0][0] == _VERSION else index - 1]


def _copy(certificate: x509.Certificate) -> x509.Certificate:
    fields = [*elements(content(certificate.tbs_certificate_bytes))]
    first = 0 if fields[0][0] == _VERSION else -1
    for index in (_ISSUER + first, _SUBJECT + first):
        fields[index] = _in_utf8(fields[index])
    if fields[-1][0] == _EXTENSIONS:
        changed = b"".join(map(_readable_extension, raw_extensions(certificate)))
        fields[-1] = tlv(_EXTENSIONS, tlv(SEQUENCE, changed))
    _, *signature = _inside(certificate.public_bytes(Encoding.DER))
    tbs = tlv(SEQUENCE, b"".join(fields))
    copy = x509.load_der_x509_certificate(tlv(SEQUENCE, b"".join([tbs, *signature])))
    _ = copy.subject, copy.issuer, copy.extensions
    return copy


def raw_extensions(certificate: x509.Certificate) -> list[bytes]:
    """Return each extension in DER."""
    *_, last = elements(content(certificate.tbs_certificate_bytes))
    return _inside(content(last)) if last[0] == _EXTENSIONS else []


def _readable_extension(extension: bytes) -> bytes:
    *head, value = _inside(extension)
    found = content(value)
    if head[0] == _CERTIFICATE_POLICIES:
        policies = (tlv(SEQUENCE, _inside(one)[0]) for one in _inside(found))
        found = tlv(SEQUENCE, b"".join(policies))
    else:
        # Such as an issuer's name in an authorityKeyIdentifier.
        with suppress(ValueError, IndexError):
            found = _in_utf8(found)
    return tlv(SEQUENCE, b"".join([*head, tlv(value[0], found)]))


def _in_utf8(element: bytes) -> bytes:
    if element[0] in _BYTE_STRINGS:
        return tlv(_UTF8_STRING, content(element).decode("latin-1").encode())
    if element[0] & _CONSTRUCTED:
        return tlv(element[0], b"".join(map(_in_utf8, _inside(element))))
    return element


def _inside(element: bytes) -> list[bytes]:
    return [*elements(content(element))]


def key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    """Make a keyUsage with all other bits unset."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
