"""What a CSR asks for: read where a mesh wants it to agree with the request.

Nothing of it becomes part of a certificate. `cryptography` warns of a common name of
more than 64 characters, which nearly every name of Linkerd is, so the subject is read
here as it stands in the DER.

Source:
    RFC 2986, 4.1; RFC 5280, 4.1.2.4 and 4.2.1.6.
"""

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from bridge.errors import CSRError
from bridge.x509.csr import CSR
from bridge.x509.der import SEQUENCE, content, elements, tlv

_COMMON_NAME = bytes.fromhex("0603550403")
_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")
_MOST_REQUESTS = 1
_LONGEST_DNS_NAME = 253
_NOBODY = bytes.fromhex("3000")
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
_REQUEST = bytes.fromhex("06092a864886f70d01090e")
_OCTETS, _PRINTABLE, _SET = 0x04, 0x13, 0x31
_DNS_NAME, _ATTRIBUTES = 0x82, 0xA0
_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x1E: "utf-16-be"}
"""String types of a common name by tag: UTF8, Printable, IA5 and BMPString."""


@dataclass(frozen=True, slots=True)
class AskedNames:
    """The names of a CSR, by form, in their order."""

    common_names: tuple[str, ...]
    dns: tuple[str, ...]
    emails: tuple[str, ...]
    ips: tuple[str, ...]
    uris: tuple[str, ...]


def asked_names(csr: CSR) -> AskedNames:
    """Read the common names of a CSR's subject, and its subjectAltName.

    Names of other forms are passed over.

    Raises:
        CSRError: Subject or extensions cannot be read, or extensions are asked for
            twice (`csr.names`).
    """
    names = _alternatives(csr.request)
    return AskedNames(
        common_names=_common_names(csr.subject),
        dns=_of(names, x509.DNSName),
        emails=_of(names, x509.RFC822Name),
        ips=_of(names, x509.IPAddress),
        uris=_of(names, x509.UniformResourceIdentifier),
    )


def asks_for_nothing_else(csr: CSR, name: str) -> bool:
    """Say whether a CSR is, byte for byte, one that asks for this one DNS name.

    Its subject is empty or has the name for its common name, and its only attribute
    asks for an extension with the name: `asked_names` would find just that. Most CSRs
    are such ones, and to compare them takes a tenth of reading them.
    """
    # Looked at before anything is kept: the name is the peer's, who has proven nothing.
    if len(name) > _LONGEST_DNS_NAME:
        return False
    usual = _usual(name)
    if usual is None or csr.attributes != usual[1]:
        return False
    return csr.subject in (usual[0], _NOBODY)


@lru_cache(maxsize=1024)  # the pods of a deployment have one name, and ask again
def _usual(name: str) -> tuple[bytes, bytes] | None:
    # What proxy-identity makes of a name: the subject, and the attributes.
    text = name.encode("utf-8", "replace")
    if not text.isascii():
        return None
    common_name = tlv(SEQUENCE, _COMMON_NAME + tlv(_PRINTABLE, text))
    subject = tlv(SEQUENCE, tlv(_SET, common_name))
    names = tlv(_OCTETS, tlv(SEQUENCE, tlv(_DNS_NAME, text)))
    extensions = tlv(SEQUENCE, tlv(SEQUENCE, _SUBJECT_ALT_NAME + names))
    request = tlv(SEQUENCE, _REQUEST + tlv(_SET, extensions))
    return subject, tlv(_ATTRIBUTES, request)


def _of(
    names: tuple[x509.GeneralName, ...], kind: type[x509.GeneralName]
) -> tuple[str, ...]:
    return tuple(str(name.value) for name in names if isinstance(name, kind))


def _alternatives(
    request: x509.CertificateSigningRequest,
) -> tuple[x509.GeneralName, ...]:
    try:
        requests = [one for one in request.attributes if one.oid == _EXTENSION_REQUEST]
        extensions = request.extensions
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    except (
        ValueError,
        TypeError,
        KeyError,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise _unreadable("its extensions", str(error)) from error
    # Only the first is read: a second one is a place to hide in.
    if len(requests) > _MOST_REQUESTS:
        raise _unreadable("its extensions, which are there twice")
    names = tuple(found.value)
    if not all(str(name.value).isascii() for name in names):
        raise _unreadable("its names, which are not in ASCII")
    return names


def _common_names(subject: bytes) -> tuple[str, ...]:
    found: list[str] = []
    try:
        for relative in elements(content(subject)):
            for attribute in elements(content(relative)):
                kind, value = elements(content(attribute))
                if kind == _COMMON_NAME:
                    # Of another string type it is told apart from every name we know.
                    encoding = _ENCODINGS.get(value[0], "latin-1")
                    found.append(content(value).decode(encoding))
    except ValueError as error:
        raise _unreadable("its subject", str(error)) from error
    return tuple(found)


def _unreadable(what: str, detail: str = "") -> CSRError:
    return CSRError(f"the CSR cannot be read: {what}", rule="csr.names", detail=detail)
