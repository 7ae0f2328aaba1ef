"""Makes the certificate of a CA: for a plan, for a rehearsal, and the real one.

A certificate is built without a key (`bridge.x509.tbs`), so what is linted with a
throwaway key has the very bytes that the real key signs afterwards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from secrets import randbits
from typing import Self

from cryptography import x509
from cryptography.x509.oid import (
    AuthorityInformationAccessOID,
    ExtendedKeyUsageOID,
    ObjectIdentifier,
)

from bridge.errors import ConfigError
from bridge.hierarchy.schema import CAEntry, HierarchyFile
from bridge.hierarchy.schema.file import BACKDATE, Usage
from bridge.x509.algorithm import (
    CAPrivateKey,
    CAPublicKey,
    algorithm_of,
    issuer_key,
    signature_of,
)
from bridge.x509.ca_certificate import BOTH_WAYS, Usages
from bridge.x509.certificate import key_usage, name_of, subject_of, value_in
from bridge.x509.der import splice
from bridge.x509.tbs import recorder_of

SERIAL_BITS = 127
"""Random bits of a serial number: 20 octets are the most, 64 bits the least."""
EXTENDED_USAGES: Mapping[Usage, ObjectIdentifier] = {
    "server_auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client_auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}
"""By their names in the hierarchy file."""

_OF_THE_ISSUER = {
    x509.AuthorityKeyIdentifier.oid,
    x509.CRLDistributionPoints.oid,
    x509.AuthorityInformationAccess.oid,
}
_COPIED = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.SubjectKeyIdentifier.oid,
    x509.ExtendedKeyUsage.oid,
    x509.NameConstraints.oid,
    x509.CertificatePolicies.oid,
}
"""What a cross-certificate has of the root that is cross-signed."""


@dataclass(frozen=True, slots=True)
class IssuerName:
    """What a certificate says of its issuer."""

    subject: x509.Name
    public_key: CAPublicKey
    key_identifier: x509.SubjectKeyIdentifier
    not_before: datetime | None = None
    """No certificate below it begins sooner; None where it signs itself."""


@dataclass(frozen=True, slots=True)
class URLs:
    """Where the CRL and the certificate of the CA that signs are."""

    crl: str | None = None
    aia: str | None = None

    @classmethod
    def below(cls, file: HierarchyFile, issuer: str) -> Self:
        """Return what the certificates below a CA say: all say the same."""
        below = [one for one in file.cas.values() if one.parent == issuer]
        return cls(
            next((one.crl_url for one in below if one.crl_url), None),
            next((one.aia_url for one in below if one.aia_url), None),
        )

    def extensions(self) -> Iterator[x509.Extension[x509.ExtensionType]]:
        """Yield the extensions of a certificate that have them."""
        if self.crl is not None:
            where = x509.UniformResourceIdentifier(self.crl)
            point = x509.DistributionPoint([where], None, None, None)
            yield _extension(x509.CRLDistributionPoints([point]))
        if self.aia is not None:
            where = x509.UniformResourceIdentifier(self.aia)
            access = AuthorityInformationAccessOID.CA_ISSUERS
            description = x509.AccessDescription(access, where)
            yield _extension(x509.AuthorityInformationAccess([description]))


def usages_below(file: HierarchyFile, name: str) -> Usages:
    """Return what the leaves below a CA, or below a cross-certificate, are used for."""
    if name not in file.cas:
        return BOTH_WAYS
    return frozenset(EXTENDED_USAGES[one] for one in file.usages_of(name))


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
    identifier = value_in(certificate.extensions, x509.SubjectKeyIdentifier)
    if identifier is None:
        raise _bad("the issuer has no subject key identifier: reissue it")
    return IssuerName(
        *(certificate.subject, issuer_key(certificate), identifier),
        not_before=certificate.not_valid_before_utc,
    )


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
    not_before, not_after = entry.validity.window(now, above.not_before)
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


def build_cross(
    target: x509.Certificate, issuer: x509.Certificate, urls: URLs, *, now: datetime
) -> bytes:
    """Build the TBSCertificate of a cross-certificate, in DER.

    Subject, key, key identifier, path length, usages, constraints and policies are
    those of the root that is cross-signed. It lasts as long as both CAs.

    Args:
        target: The root that is cross-signed.
        issuer: The CA that signs.
        urls: Where the CRL and the certificate of `issuer` are.
        now: When it is signed, aware, in UTC.

    Raises:
        ConfigError: See `issuer_of_certificate`; or the root has an extension that a CA
            has no use for.
    """
    above, own = issuer_of_certificate(issuer), issuer_of_certificate(target)
    start = now.replace(microsecond=0) - BACKDATE
    begins = (start, target.not_valid_before_utc, issuer.not_valid_before_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(above.subject)
        .public_key(own.public_key)
        .serial_number(randbits(SERIAL_BITS) | 1)
        .not_valid_before(max(begins))
        .not_valid_after(min(target.not_valid_after_utc, issuer.not_valid_after_utc))
    )
    copied = [one for one in target.extensions if one.oid in _COPIED]
    others = {one.oid for one in target.extensions} - _COPIED - _OF_THE_ISSUER
    if others:
        names = ", ".join(sorted(map(name_of, others)))
        raise _bad(
            f"the root has the extension {names}, which is not copied into a "
            "cross-certificate: have a root without it"
        )
    by_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    of_issuer = [_extension(by_key(above.key_identifier)), *urls.extensions()]
    for extension in (*copied, *of_issuer):
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
        extended = [EXTENDED_USAGES[one] for one in entry.ext_key_usage]
        yield _extension(x509.ExtendedKeyUsage(extended))
    if entry.policies:
        policies = [
            x509.PolicyInformation(ObjectIdentifier(one), None)
            for one in entry.policies
        ]
        # Not critical: rustls rejects a path with critical policies.
        yield _extension(x509.CertificatePolicies(policies))
    yield from URLs(entry.crl_url, entry.aia_url).extensions()
    if entry.name_constraints is not None:
        constraints = entry.name_constraints
        yield _extension(constraints.value(), critical=constraints.critical)


def _extension(
    value: x509.ExtensionType, *, critical: bool = False
) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(value.oid, critical, value)


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.issuer")
