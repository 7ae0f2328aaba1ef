"""The client certificate of a connection: whose it is, and whether it is trusted now.

The TLS layer verifies it once, when the connection begins, by the trust anchors of that
moment and by OpenSSL's rules. Each call judges it again, by the anchors in service and
by the rules that the bridge holds its own chains to.

Source:
    X509-SVID, sections 2, 4.1 and 5.2; RFC 5280, 6.1.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from bridge.dns_names import is_label, is_subdomain
from bridge.errors import (
    AuthenticationError,
    ConfigError,
    CSRError,
    DeniedError,
    RequestError,
)
from bridge.identity.caller import CertificateCredential
from bridge.spiffe import SpiffeID
from bridge.x509.certificate import (
    UNREADABLE,
    issuer_of,
    readable,
    subject_of,
    value_in,
)
from bridge.x509.key_quality import require_good_key
from bridge.x509.path import ValidatedChain, find_chain, verify_leaf_signature

_LONGEST_CERTIFICATE = 64 * 1024
_LONGEST_CHAIN = 4 * _LONGEST_CERTIFICATE
_MOST_CAS = 8
"""So many CA certificates are read of those that a client sends with its own."""
_SHOWN_NAMES, _SHOWN_CHARACTERS = 4, 300
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def spiffe_id_of(leaf: bytes, *, now: datetime) -> SpiffeID:
    """Read the SPIFFE ID of a client certificate, and check its validity.

    The validity is checked for each request: a connection can outlive a certificate.
    `trusted_path` checks the rest.

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


def trusted_path(
    credential: CertificateCredential,
    anchors: Sequence[x509.Certificate],
    *,
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Return the path from a client certificate to a trust anchor in service.

    Args:
        credential: The certificate, and those that the client sent with it.
        anchors: The trust anchors in service.
        now: The time of the request.

    Returns:
        The client certificate, the CA certificates from its issuer upwards, and the
        trust anchor.

    Raises:
        AuthenticationError: The key is one that the bridge issues for nobody, or no
            path leads to a trust anchor that the bridge would issue under, or the
            constraints of the path forbid a name of the certificate.
    """
    try:
        leaf = _load(credential.leaf)
        others = _sent(credential.chain, leaf)
        key = leaf.public_key()
    except UNREADABLE:
        raise _refused("the certificate cannot be read", "certificate.parse") from None
    try:
        require_good_key(key, what="client certificate")
    except CSRError as error:
        raise _refused(
            "the key of the client certificate is one that the bridge issues for "
            "nobody",
            "certificate.key",
            str(error),
        ) from error
    chain = _chain(leaf, others, anchors, now)
    _require_permitted(leaf, chain)
    return leaf, chain.issuing, *chain.intermediates, chain.anchor


def _sent(chain: bytes, leaf: x509.Certificate) -> list[x509.Certificate]:
    if not chain:
        return []
    if len(chain) > _LONGEST_CHAIN:
        raise _refused("the certificate's chain is too large", "certificate.parse")
    found = x509.load_pem_x509_certificates(chain)
    return [one for one in found if one != leaf][:_MOST_CAS]


def _chain(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> ValidatedChain:
    reason = "none of the certificates that the client sent has issued it"
    for issuing in others:
        if subject_of(issuing) != issuer_of(leaf):
            continue
        if not verify_leaf_signature(leaf, issuing):
            reason = "its signature is not one of the key of its issuer"
            continue
        try:
            found = find_chain(issuing, others, anchors, now=now, source="its chain")
        except ConfigError as error:
            reason = str(error)
        else:
            return found.chain
    raise _refused(
        "the certificate leads to no trust anchor in service",
        "certificate.chain",
        " ".join(reason.split()),
    )


def _require_permitted(leaf: x509.Certificate, chain: ValidatedChain) -> None:
    try:
        found = readable(leaf)
        names = found.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
        chain.constraints.require_permitted([*names], found.subject)
    except DeniedError as error:
        raise _refused(
            "the constraints of its chain forbid a name of the certificate",
            "certificate.constraints",
            f"{error}: {error.detail}",
        ) from error
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise _refused("the certificate cannot be read", "certificate.parse") from None


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
    names = value_in(certificate.extensions, x509.SubjectAlternativeName)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def _is_ca(certificate: x509.Certificate) -> bool:
    basic = value_in(certificate.extensions, x509.BasicConstraints)
    return basic is not None and basic.ca


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
