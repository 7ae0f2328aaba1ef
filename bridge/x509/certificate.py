"""Names, signatures and key identifiers: what joins a certificate to its issuer's.

Source:
    RFC 5280, 4.1.2.4, 4.2.1.1, 4.2.1.2 and 6.1.3 (a).
"""

from collections.abc import Iterator
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ObjectIdentifier, SignatureAlgorithmOID

from bridge.x509.der import content, elements

UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""`cryptography` parses late: a bad field shows as one of these when it is read."""

_SIGNATURES = frozenset(
    {
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
        SignatureAlgorithmOID.ED25519,
    }
)
_VERSION = 0xA0  # [0] EXPLICIT
_ISSUER, _SUBJECT = 3, 5


def issuer_of(certificate: x509.Certificate) -> bytes:
    """Return the issuer's name as its very bytes: names are compared by them."""
    return _field(certificate, _ISSUER)


def subject_of(certificate: x509.Certificate) -> bytes:
    """Return the subject's name as its very bytes: names are compared by them."""
    return _field(certificate, _SUBJECT)


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


def signature_problem(certificate: x509.Certificate) -> str | None:
    """Tell what is wrong with a certificate's signature algorithm, if anything is."""
    oid = certificate.signature_algorithm_oid
    if oid in _SIGNATURES:
        return None
    return (
        f"is signed with {name_of(oid)}: expected RSA (PKCS#1 v1.5) or ECDSA with "
        "SHA-256, SHA-384 or SHA-512, or Ed25519"
    )


def link_faults(child: x509.Certificate, parent: x509.Certificate) -> Iterator[str]:
    """Yield why `parent` is not the issuer of `child`."""
    if issuer_of(child) != subject_of(parent):
        yield (
            f"its issuer ({name_text(child, 'issuer')}) is not the other's subject "
            f"({name_text(parent, 'subject')}), byte for byte"
        )
        return
    if signature_problem(child) is None:
        fault = signature_fault(child, parent)
        if fault is not None:
            yield fault
    yield from _key_identifier_faults(child, parent)


def signature_fault(child: x509.Certificate, parent: x509.Certificate) -> str | None:
    """Tell why the signature of `child` is not one of `parent`, if it is not."""
    try:
        child.verify_directly_issued_by(parent)
    except InvalidSignature:
        return "the signature is not one of the other's key"
    except UNREADABLE as error:
        return f"the signature cannot be verified: {error}"
    return None


def _key_identifier_faults(
    child: x509.Certificate, parent: x509.Certificate
) -> Iterator[str]:
    """Yield differences of the identifiers, where both certificates have them."""
    try:
        wanted = child.extensions.get_extension_for_class(
            x509.AuthorityKeyIdentifier
        ).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return
    serial = wanted.authority_cert_serial_number
    if serial is not None and serial != parent.serial_number:
        yield "its authority key identifier names another serial number"
    try:
        found = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return
    if wanted.key_identifier not in {None, found.value.digest}:
        yield "its authority key identifier is not the other's subject key identifier"


def _field(certificate: x509.Certificate, index: int) -> bytes:
    fields = [*elements(content(certificate.tbs_certificate_bytes))]
    return fields[index if fields[0][0] == _VERSION else index - 1]
