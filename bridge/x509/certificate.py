"""Read a certificate's names, as bytes and as text, and make its key usage.

Source:
    RFC 5280, 4.1 and 4.1.2.4.
"""

from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from bridge.x509.der import content, elements

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


def issuer_of(certificate: x509.Certificate) -> bytes:
    """Return the issuer's name as its very bytes: names are compared by them."""
    return _field(certificate, _ISSUER)


def subject_of(certificate: x509.Certificate) -> bytes:
    """Return the subject's name as its very bytes: names are compared by them."""
    return _field(certificate, _SUBJECT)


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
        name = certificate.issuer if which == "issuer" else certificate.subject
    except ValueError:
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
