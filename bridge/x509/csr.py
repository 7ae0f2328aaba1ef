"""CSRs: one request, in one encoding, with a good key and proof of its possession.

`cryptography` reads more than we certify: it skips text around a PEM block, takes EC
keys with explicit parameters, weak RSA keys and foreign curves. So what is accepted is
listed here, byte for byte where that is possible, and everything else is refused.

The checks go from cheap to dear, and the key is judged before it is used: verifying a
signature with a key of the peer's choice would be work of the peer's choice.

Source:
    RFC 2986 (CSR), RFC 3279 2.3.1 and RFC 5480 2.1.1 (keys), RFC 4055 5 and RFC 5758
    3.2 (signature algorithms).
"""

from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from bridge.errors import CSRError
from bridge.x509.certificate import UNREADABLE
from bridge.x509.der import content, elements
from bridge.x509.key_quality import require_good_key
from bridge.x509.pem import parse_one

LONGEST_CSR = 16 * 1024
"""Bytes of a CSR, in PEM or DER. One with RSA-4096 and a name has under 2,000."""

# The AlgorithmIdentifier of an RSA key. Of an EC key everything before the point is
# fixed, with the octet that marks it as uncompressed.
_RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d010101")
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_RSA_KEY = bytes.fromhex("300d") + _RSA_ENCRYPTION + bytes.fromhex("0500")
_EC_KEYS = (
    bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200 04"),
    bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200 04"),
)
_CURVES = frozenset(
    bytes.fromhex(curve) for curve in ("06082a8648ce3d030107", "06052b81040022")
)
_OBJECT_IDENTIFIER = 0x06
_LONG_HEADER = 4  # bytes of tag and length, where the content has 256 to 65,535

# AlgorithmIdentifiers of signatures, complete: RSA with NULL, ECDSA without parameters.
_PKCS1 = padding.PKCS1v15()
_RSA_HASHES: dict[bytes, hashes.HashAlgorithm] = {
    bytes.fromhex("300d06092a864886f70d01010b0500"): hashes.SHA256(),
    bytes.fromhex("300d06092a864886f70d01010c0500"): hashes.SHA384(),
    bytes.fromhex("300d06092a864886f70d01010d0500"): hashes.SHA512(),
}
_ECDSA_HASHES = {
    bytes.fromhex("300a06082a8648ce3d040302"): ec.ECDSA(hashes.SHA256()),
    bytes.fromhex("300a06082a8648ce3d040303"): ec.ECDSA(hashes.SHA384()),
    bytes.fromhex("300a06082a8648ce3d040304"): ec.ECDSA(hashes.SHA512()),
}

# Subjects that name nobody: no RDN (ztunnel), or one empty organization (istio-agent),
# as PrintableString or UTF8String.
_NAMELESS = frozenset(
    bytes.fromhex(subject)
    for subject in (
        "3000",
        "300b3109300706035504 0a1300",
        "300b3109300706035504 0a0c00",
    )
)
_COMMON_NAME = bytes.fromhex("0603550403")
_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")
_MOST_REQUESTS = 1
_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x1E: "utf-16-be"}
"""String types of a common name by tag: UTF8, Printable, IA5 and BMPString."""


@dataclass(frozen=True, slots=True)
class CSR:
    """A certificate signing request that passed every check of `parse_csr_der`."""

    der: bytes
    """The CertificationRequest, as it came."""
    subject: bytes
    """Its subject in DER, as it came: nothing is copied from it."""
    spki: bytes
    """The SubjectPublicKeyInfo in DER, as the CSR holds it: the only encoding of this
    key that is accepted, so that equal keys have equal bytes."""
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    """The key that `spki` holds."""
    request: x509.CertificateSigningRequest
    """For its names. Reading them may raise late: see `require_only_names`."""


class _Parts(NamedTuple):
    """The parts of a CertificationRequest: elements of DER, but for the signature."""

    info: bytes
    subject: bytes
    spki: bytes
    algorithm: bytes
    signature: bytes


def parse_csr(pem: str) -> CSR:
    """Read a CSR that is one `CERTIFICATE REQUEST` block of PEM.

    Raises:
        CSRError: It is longer than `LONGEST_CSR` (`csr.size`), is not one PEM block
            (`csr.pem`), or is refused by `parse_csr_der`.
    """
    if len(pem) > LONGEST_CSR:
        raise _too_long()
    try:
        der = parse_one(pem, "CERTIFICATE REQUEST")
    except ValueError as error:
        raise CSRError(f"the CSR is not in PEM: {error}", rule="csr.pem") from error
    return parse_csr_der(der)


def parse_csr_der(der: bytes) -> CSR:
    """Read a CSR, judge its key, and verify that the key's owner signed it.

    Names and attributes are not looked at. A compressed EC point is refused, like every
    second way to write the same key.

    Raises:
        CSRError: It is longer than `LONGEST_CSR` (`csr.size`), is not the DER of one
            CertificationRequest (`csr.der`), its key is not RSA or EC (`csr.key-type`),
            not in the one accepted encoding (`csr.key-encoding`) or not good (the rules
            of `require_good_key`), it is not signed with SHA-256, SHA-384 or SHA-512 by
            ECDSA or RSA PKCS#1 v1.5, as fits the key (`csr.signature-algorithm`), or
            the signature is not that key's (`csr.possession`).
    """
    if len(der) > LONGEST_CSR:
        raise _too_long()
    try:
        request = x509.load_der_x509_csr(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise _not_der(str(error)) from error
    parts = _split(der)
    public_key = _public_key(parts.spki)
    require_good_key(public_key)
    _require_possession(public_key, parts)
    return CSR(
        der=der,
        subject=parts.subject,
        spki=parts.spki,
        public_key=public_key,
        request=request,
    )


def require_only_names(csr: CSR, names: tuple[x509.GeneralName, ...]) -> None:
    """Refuse a CSR that asks for more than some of the caller's names.

    The strict mode: what is asked for is not only ignored, it must not be there. The
    CSRs of istio-agent and ztunnel pass with the one name of their workload.

    Args:
        csr: A parsed CSR.
        names: What the caller may have, typed; a dNSName is no match for a URI.

    Raises:
        CSRError: The subject is neither empty nor one empty organization, there is an
            attribute or an extension besides subjectAltName, no subjectAltName, an
            unreadable one, a name twice, or one that is not in `names` (`csr.names`).
    """
    if csr.subject not in _NAMELESS:
        raise _bad_names("its subject must be empty, or an empty organization")
    try:
        attributes = len(csr.request.attributes)
        extensions = tuple(csr.request.extensions)
    except UNREADABLE as error:
        raise _bad_names("its extensions cannot be read", str(error)) from error
    # A second request for extensions, or another attribute, is a place to hide in.
    if attributes != 1 or len(extensions) != 1:
        raise _bad_names("it must hold one extension, subjectAltName, and nothing else")
    san = extensions[0].value
    if not isinstance(san, x509.SubjectAlternativeName):
        raise _bad_names("its only extension must be subjectAltName")
    asked = tuple(san)
    if not asked or len(set(asked)) != len(asked):
        raise _bad_names("its subjectAltName must hold names, each once")
    if not set(asked) <= set(names):
        raise _bad_names("its subjectAltName holds a name that is not the caller's")


def _public_key(spki: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    if not (spki.startswith(_EC_KEYS) or spki.startswith(_RSA_KEY, _LONG_HEADER)):
        _require_rsa_algorithm(spki)
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        # Not on the curve, not two numbers, a number not in its shortest form, ...
        raise _bad_key_encoding(str(error)) from error
    # Loading has checked the length and the point behind the prefix.
    if isinstance(key, ec.EllipticCurvePublicKey) and spki.startswith(_EC_KEYS):
        return key
    if (
        isinstance(key, rsa.RSAPublicKey)
        and key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
    ):
        return key
    raise _bad_key_encoding()


def _require_rsa_algorithm(spki: bytes) -> None:
    """Find out what a key is that does not start like one on P-256 or P-384."""
    try:
        algorithm, _ = elements(content(spki))
        oid, *parameters = elements(content(algorithm))
    except ValueError as error:
        raise _bad_key_encoding(str(error)) from error
    if algorithm == _RSA_KEY:
        return
    if oid not in {_RSA_ENCRYPTION, _EC_PUBLIC_KEY}:
        raise CSRError(
            "the CSR's key must be RSA (rsaEncryption), or EC on P-256 or P-384",
            rule="csr.key-type",
        )
    named = oid == _EC_PUBLIC_KEY and [p[0] for p in parameters] == [_OBJECT_IDENTIFIER]
    if named and parameters[0] not in _CURVES:
        raise CSRError("the CSR's EC key must be on P-256 or P-384", rule="csr.curve")
    raise _bad_key_encoding()


def _require_possession(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, parts: _Parts
) -> None:
    # The algorithm is looked at first: a signature over SHA-1 would only show as an
    # invalid one. What is verified are the bytes that came, not an encoding of ours.
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            ecdsa = _ECDSA_HASHES.get(parts.algorithm)
            if ecdsa is None:
                raise _bad_signature_algorithm("ECDSA")
            key.verify(parts.signature, parts.info, ecdsa)
        else:
            digest = _RSA_HASHES.get(parts.algorithm)
            if digest is None:
                raise _bad_signature_algorithm("RSA PKCS#1 v1.5")
            key.verify(parts.signature, parts.info, _PKCS1, digest)
    except InvalidSignature as error:
        raise CSRError(
            "the CSR's signature is not that of its key", rule="csr.possession"
        ) from error


def _split(der: bytes) -> _Parts:
    try:
        (request,) = elements(der)
        info, algorithm, bits = elements(content(request))
        _version, subject, spki, *_attributes = elements(content(info))
        signature = content(bits)
    except ValueError as error:
        raise _not_der(str(error)) from error
    if not signature.startswith(b"\0"):
        raise _not_der("the signature has unused bits")
    return _Parts(info, subject, spki, algorithm, signature[1:])


def _too_long() -> CSRError:
    return CSRError(f"the CSR has more than {LONGEST_CSR} bytes", rule="csr.size")


def _not_der(detail: str) -> CSRError:
    return CSRError(
        "the CSR is not the DER of one PKCS#10 request", rule="csr.der", detail=detail
    )


def _bad_key_encoding(detail: str = "") -> CSRError:
    return CSRError(
        "the CSR's key must be in its one DER form: named curve and uncompressed "
        "point, or rsaEncryption with NULL",
        rule="csr.key-encoding",
        detail=detail,
    )


def _bad_signature_algorithm(kind: str) -> CSRError:
    return CSRError(
        f"the CSR must be signed by {kind} with SHA-256, SHA-384 or SHA-512",
        rule="csr.signature-algorithm",
    )


def _bad_names(message: str, detail: str = "") -> CSRError:
    return CSRError(
        f"the CSR asks for more than it may: {message}", rule="csr.names", detail=detail
    )


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
    except UNREADABLE as error:
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
