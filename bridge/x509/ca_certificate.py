"""Check that one certificate can be a CA of a mesh chain, whatever the others are.

Source:
    RFC 5280, 4.1, 4.2 and 6.1.4; X509-SVID, 3 and 4; rustls-webpki's rules for paths
    (EKU on intermediates, unknown critical extensions).
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, ObjectIdentifier

from bridge.errors import ConfigError, CSRError
from bridge.x509.algorithm import key_encoding_problem
from bridge.x509.certificate import (
    UNREADABLE,
    extensions_of,
    issuer_of,
    name_of,
    name_text,
    subject_of,
    value_in,
)
from bridge.x509.der import content
from bridge.x509.key_quality import require_good_ca_key, require_good_upper_ca_key
from bridge.x509.name_constraints import NameConstraints

# What is evaluated here, and nothing more: an extension that is critical must be
# processed or the path refused (RFC 5280, 4.2).
_EVALUATED = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        # rustls refuses it: see `bridge.dataplanes.acceptance`. Of the others only the
        # meaning counts that it has where no policy is asked for, which is none.
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
RENEWAL_SHARE = 6
"""A CA is replaced in the last sixth of its life at the latest."""
_CLOCK_SKEW = timedelta(minutes=5)
BOTH_WAYS = frozenset(
    {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
)
"""What the leaves of a mesh are used for."""
_USAGE_NAMES = (
    (ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"),
    (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"),
)
Usages = frozenset[ObjectIdentifier]
"""Extended key usages, by their OIDs."""


def ca_problems(
    certificate: x509.Certificate,
    *,
    cas_below: int,
    now: datetime,
    usages: Usages = BOTH_WAYS,
) -> Iterator[str]:
    """Yield what is wrong with a certificate as a CA, in sentences without a subject.

    Signatures are checked by `bridge.x509.path`. An intermediate may have an empty
    subject, and an RSA key as an anchor may. The issuing CA may have neither: each leaf
    names it, and is verified with its key. Both may lack keyUsage, as for all
    verifiers: `bridge.dataplanes.acceptance` warns of it.

    Args:
        certificate: A CA certificate of the chain, below its trust anchor.
        cas_below: How many CA certificates stand between it and the leaf.
        now: Aware, in UTC.
        usages: What the leaves below it are used for.
    """
    if certificate.version is not x509.Version.v3:
        yield "is no X.509 version 3 certificate"
    if content(subject_of(certificate)) == b"":
        if not cas_below:
            yield (
                "has an empty subject, and OpenSSL takes no leaf that names no issuer: "
                "reissue it with a subject"
            )
    elif name_text(certificate, "subject") is None:
        yield "has a subject that cannot be read: reissue it with a UTF8String"
    yield from validity_problems(certificate, now)
    require_good = require_good_upper_ca_key if cas_below else require_good_ca_key
    yield from _key(certificate, require_good)
    yield from _extensions(certificate, cas_below, usages)


def anchor_problems(
    certificate: x509.Certificate, *, cas_below: int, usages: Usages = BOTH_WAYS
) -> Iterator[str]:
    """Yield what verifiers find wrong with a trust anchor, besides its validity.

    Verifiers ask less of an anchor than of the CAs below it: it may be of version 1.

    Args:
        certificate: The trust anchor.
        cas_below: How many CA certificates stand between it and the leaf.
        usages: See `ca_problems`.

    Source:
        `check_ca` and `check_chain` of OpenSSL and BoringSSL; `isValid` and
        `CheckSignatureFrom` of Go's crypto/x509; `anchor_from_trusted_cert` of rustls.
    """
    yield from _key(certificate, require_good_upper_ca_key)
    if certificate.version is not x509.Version.v1:
        yield from _extensions(certificate, cas_below, usages)
    elif subject_of(certificate) != issuer_of(certificate):
        yield (
            "is of X.509 version 1 and not self-signed: OpenSSL and Envoy take version "
            "1 for a CA only if it is; reissue it as version 3"
        )


def validity_problems(certificate: x509.Certificate, now: datetime) -> Iterator[str]:
    """Yield that a certificate is not valid yet, or has expired.

    Args:
        certificate: Any.
        now: Aware, in UTC.
    """
    if now < certificate.not_valid_before_utc:
        yield f"is not valid before {_time(certificate.not_valid_before_utc)}"
    # The last second is valid by RFC 5280 and for Go, and expired for OpenSSL.
    if now >= certificate.not_valid_after_utc:
        yield f"expired on {_time(certificate.not_valid_after_utc)}"


def least_life(longest: timedelta) -> timedelta:
    """Return how long an issuing CA has to live at least, to cover its leaves.

    The last sixth of its life, in which it is replaced, is longer than any leaf that it
    issues: so the alarm at 80 % comes before leaves get shorter lifetimes.

    Args:
        longest: The longest lifetime of its leaves.

    Source:
        SPIRE, `pkg/server/ca/manager` (activation at 5/6 of a CA's life). Its bound of
        seven days does not count here: see decision 38.
    """
    return RENEWAL_SHARE * (longest + _CLOCK_SKEW)


def _extensions(
    certificate: x509.Certificate, cas_below: int, usages: Usages
) -> Iterator[str]:
    try:
        extensions = extensions_of(certificate)
    except UNREADABLE as error:
        yield f"has extensions that cannot be read: {error}"
        return
    yield from _is_ca(extensions, cas_below)
    yield from _usage(extensions, usages)
    for extension in extensions:
        if extension.critical and extension.oid not in _EVALUATED:
            yield (
                f"has the critical extension {name_of(extension.oid)}, which is not "
                "evaluated: reissue it without, or not critical"
            )
    try:
        NameConstraints.of(certificate)
    except ConfigError as error:
        yield f"has name constraints that cannot be used: {error}"


def _key(
    certificate: x509.Certificate, require_good: Callable[[PublicKeyTypes], None]
) -> Iterator[str]:
    problem = key_encoding_problem(certificate)
    if problem is not None:
        yield problem
    try:
        require_good(certificate.public_key())
    except CSRError as error:
        yield f"has an unfit key: {error}"
    except UNREADABLE as error:
        yield f"has a key that cannot be read: {error}"


def _is_ca(extensions: x509.Extensions, cas_below: int) -> Iterator[str]:
    found = value_in(extensions, x509.BasicConstraints)
    if found is None or not found.ca:
        yield "is not a CA certificate: basicConstraints does not say so"
    elif found.path_length is not None and found.path_length < cas_below:
        yield (
            f"has the pathLen {found.path_length} and {cas_below} CA certificates "
            "below it"
        )


def _usage(extensions: x509.Extensions, usages: Usages) -> Iterator[str]:
    usage = value_in(extensions, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        yield "must not sign certificates: keyUsage has no keyCertSign"
    extended = value_in(extensions, x509.ExtendedKeyUsage)
    if extended is not None and not usages <= {*extended}:
        needed = " and ".join(name for oid, name in _USAGE_NAMES if oid in usages)
        both = "both " if usages >= BOTH_WAYS else ""
        yield (
            f"has an extended key usage without {both}{needed}: verifiers apply it to "
            f"the leaf; reissue it with {both.strip() or needed} or without the "
            "extension"
        )


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
