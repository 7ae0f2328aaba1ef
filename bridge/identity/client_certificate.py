"""The identity in a client certificate that the TLS layer has verified.

Source:
    X509-SVID, sections 2, 4.1 and 5.2.
"""

from datetime import datetime

from cryptography import x509

from bridge.dns_names import is_label, is_subdomain
from bridge.errors import AuthenticationError, RequestError
from bridge.spiffe import SpiffeID
from bridge.x509.certificate import UNREADABLE

_LONGEST_CERTIFICATE = 64 * 1024
_SHOWN_NAMES, _SHOWN_CHARACTERS = 4, 300
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def spiffe_id_of(leaf: bytes, *, now: datetime) -> SpiffeID:
    """Read the SPIFFE ID of a client certificate, and check its validity.

    The TLS layer has verified its signature and chain when the connection began. The
    validity is checked again for each request: a connection can outlive a certificate.

    Args:
        leaf: One certificate in PEM or DER.
        now: The time of the request.

    Returns:
        The SPIFFE ID of a service account: no other workload gets certificates here.

    Raises:
        AuthenticationError: The certificate cannot be read, has expired, is a CA's, or
            has not exactly one URI SAN, the SPIFFE ID of a service account. SANs of
            other types are ignored.
    """
    if len(leaf) > _LONGEST_CERTIFICATE:
        raise _refused("the certificate is too large", "certificate.parse")
    try:
        certificate = _load(leaf)
        uris = _uris(certificate)
        is_ca = _is_ca(certificate)
    except UNREADABLE:
        raise _refused("the certificate cannot be read", "certificate.parse") from None
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not starts <= now <= ends:
        raise _refused(
            "the certificate is not valid now",
            "certificate.expired",
            f"valid from {starts:{_TIME}} to {ends:{_TIME}}, and it is {now:{_TIME}}",
        )
    if is_ca:
        raise _refused("a CA certificate is no workload's", "certificate.ca")
    if len(uris) != 1:
        found = ", ".join(map(repr, uris[:_SHOWN_NAMES])) or "none"
        raise _refused(
            "a certificate has exactly one URI SAN",
            "certificate.san",
            f"found {len(uris)}: {found[:_SHOWN_CHARACTERS]}",
        )
    return _service_account(uris[0])


def _refused(message: str, rule: str, detail: str = "") -> AuthenticationError:
    return AuthenticationError(message, rule=rule, detail=detail)


def _load(leaf: bytes) -> x509.Certificate:
    if not leaf.startswith(b"-----BEGIN "):
        return x509.load_der_x509_certificate(leaf)
    certificates = x509.load_pem_x509_certificates(leaf)
    if len(certificates) != 1:
        raise ValueError("more than one certificate")
    return certificates[0]


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        )
    except x509.ExtensionNotFound:
        return False
    return constraints.value.ca


def _service_account(uri: str) -> SpiffeID:
    try:
        spiffe_id = SpiffeID.parse(uri)
    except RequestError:
        raise _refused(
            "the certificate's URI SAN is no SPIFFE ID",
            "certificate.san",
            f"found {uri[:_SHOWN_CHARACTERS]!r}",
        ) from None
    match spiffe_id.service_account:
        case (namespace, name) if is_label(namespace) and is_subdomain(name):
            return spiffe_id
    raise _refused(
        "the certificate's SPIFFE ID is no service account's",
        "certificate.san",
        f"found {uri[:_SHOWN_CHARACTERS]!r}, expected spiffe://DOMAIN/ns/NS/sa/NAME",
    )
