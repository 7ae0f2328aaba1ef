"""Makes the certificate of a CA: for a plan, for a rehearsal, and the real one.

A certificate is built without a key (`bridge.x509.tbs`), so what is linted with a
throwaway key has the very bytes that the real key signs afterwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from secrets import randbits

from cryptography import x509
from cryptography.x509.oid import (
    AuthorityInformationAccessOID,
    ExtendedKeyUsageOID,
    ObjectIdentifier,
)

from bridge.errors import ConfigError
from bridge.hierarchy.schema import CAEntry, HierarchyFile
from bridge.x509.algorithm import (
    CAPrivateKey,
    CAPublicKey,
    algorithm_of,
    issuer_key,
    signature_of,
)
from bridge.x509.certificate import key_usage, subject_of
from bridge.x509.der import splice
from bridge.x509.tbs import recorder_of

SERIAL_BITS = 127
"""Random bits of a serial number: 20 octets are the most, 64 bits the least."""
_EXTENDED_USAGE: dict[str, ObjectIdentifier] = {
    "server_auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client_auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}


@dataclass(frozen=True, slots=True)
class IssuerName:
    """What a certificate says of its issuer."""

    subject: x509.Name
    public_key: CAPublicKey
    key_identifier: x509.SubjectKeyIdentifier


def issuer_of_certificate(certificate: x509.Certificate) -> IssuerName:
    """Return what the certificates below a CA say of it.

    Raises:
        ConfigError: Its subject cannot be copied byte for byte, or it has no subject
            key identifier, or no key of a CA.
    """
    if certificate.subject.public_bytes() != subject_of(certificate):
        raise _bad(
            "the subject of the issuer cannot be copied byte for byte: its string "
            "types or its order are not those of DER; reissue it"
        )
    try:
        found = certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
    except x509.ExtensionNotFound:
        raise _bad("the issuer has no subject key identifier: reissue it") from None
    return IssuerName(certificate.subject, issuer_key(certificate), found.value)


def build(
    file: HierarchyFile,
    name: str,
    public_key: CAPublicKey,
    issuer: IssuerName | None,
    *,
    now: datetime,
    serial: int | None = None,
) -> bytes:
    """Build the TBSCertificate of a CA, in DER.

    Args:
        file: The hierarchy.
        name: The CA.
        public_key: Its key.
        issuer: The CA above it; None for the root, which signs itself.
        now: When it is signed, aware, in UTC.
        serial: By default 127 random bits.
    """
    entry = file.cas[name]
    subject = file.subject(name)
    own_identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    above = issuer or IssuerName(subject, public_key, own_identifier)
    not_before, not_after = entry.validity.window(now)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.subject)
        .public_key(public_key)
        .serial_number(serial or randbits(SERIAL_BITS) | 1)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    for extension in _extensions(entry, own_identifier, above):
        builder = builder.add_extension(extension.value, extension.critical)
    return sign_with_stand_in(builder, above.public_key)


def sign_with_stand_in(
    builder: x509.CertificateBuilder, issuer_public_key: CAPublicKey
) -> bytes:
    """Return the TBSCertificate of a builder, in DER, as this issuer signs it."""
    algorithm = algorithm_of(issuer_public_key)
    unsigned = builder.sign(recorder_of(issuer_public_key), algorithm.hash)
    return unsigned.tbs_certificate_bytes


def signed(tbs: bytes, key: CAPrivateKey) -> x509.Certificate:
    """Sign with a key that is held here, such as a throwaway one.

    Args:
        tbs: A TBSCertificate that names the signature algorithm of keys of this kind.
        key: The private key.
    """
    algorithm = algorithm_of(key.public_key())
    return joined(tbs, key.public_key(), signature_of(key, algorithm, tbs))


def joined(tbs: bytes, issuer: CAPublicKey, signature: bytes) -> x509.Certificate:
    """Join a TBSCertificate and a signature of the issuer's key."""
    return x509.load_der_x509_certificate(
        splice(tbs, algorithm_of(issuer).der, signature)
    )


def _extensions(
    entry: CAEntry,
    own_identifier: x509.SubjectKeyIdentifier,
    issuer: IssuerName,
) -> Iterator[x509.Extension[x509.ExtensionType]]:
    basic = x509.BasicConstraints(ca=True, path_length=entry.path_len)
    yield _extension(basic, critical=True)
    usage = key_usage(
        digital_signature="digital_signature" in entry.key_usage,
        key_cert_sign="cert_sign" in entry.key_usage,
        crl_sign="crl_sign" in entry.key_usage,
    )
    yield _extension(usage, critical=True)
    yield _extension(own_identifier)
    # A root's too: it may be left out there, and linters tell a root by it.
    by_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    yield _extension(by_key(issuer.key_identifier))
    if entry.ext_key_usage:
        extended = [_EXTENDED_USAGE[one] for one in entry.ext_key_usage]
        yield _extension(x509.ExtendedKeyUsage(extended))
    if entry.policies:
        policies = [
            x509.PolicyInformation(ObjectIdentifier(one), None)
            for one in entry.policies
        ]
        # Not critical: rustls rejects a path with critical policies.
        yield _extension(x509.CertificatePolicies(policies))
    if entry.crl_url is not None:
        yield _extension(x509.CRLDistributionPoints([_point(entry.crl_url)]))
    if entry.aia_url is not None:
        where = x509.UniformResourceIdentifier(entry.aia_url)
        access = AuthorityInformationAccessOID.CA_ISSUERS
        description = x509.AccessDescription(access, where)
        yield _extension(x509.AuthorityInformationAccess([description]))
    if entry.name_constraints is not None:
        constraints = entry.name_constraints
        yield _extension(constraints.value(), critical=constraints.critical)


def _point(url: str) -> x509.DistributionPoint:
    where = x509.UniformResourceIdentifier(url)
    return x509.DistributionPoint([where], None, None, None)


def _extension(
    value: x509.ExtensionType, *, critical: bool = False
) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(value.oid, critical, value)


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.issuer")
