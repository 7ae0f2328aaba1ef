"""A certificate revocation list of one CA: built without its key, and held to a plan.

Source:
    RFC 5280, 5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from bridge.x509.algorithm import algorithm_of, issuer_key
from bridge.x509.certificate import UNREADABLE, subject_of, value_in
from bridge.x509.der import splice
from bridge.x509.tbs import recorder_of

_CAS_ONLY = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=True,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """One entry."""

    serial: int
    since: datetime
    """Aware UTC, in seconds."""
    reason: x509.ReasonFlags | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCRL:
    """What a list is to have."""

    issuer: x509.Certificate
    """It has a subject key identifier."""
    number: int
    this_update: datetime
    """Aware UTC, in seconds, as is `next_update`."""
    next_update: datetime
    revoked: Sequence[RevokedCertificate]
    """One for each serial number."""
    is_of_cas_only: bool
    """Whether it is about CA certificates alone. Verifiers that ask for a list for each
    certificate then have none for a leaf of this CA."""

    def extensions(self) -> Iterator[x509.Extension[x509.ExtensionType]]:
        """Yield the extensions of the list."""
        identifier = self.issuer.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value
        by_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
        for value in (by_key(identifier), x509.CRLNumber(self.number)):
            yield x509.Extension(value.oid, False, value)  # noqa: FBT003
        if self.is_of_cas_only:
            yield x509.Extension(_CAS_ONLY.oid, True, _CAS_ONLY)  # noqa: FBT003

    def tbs(self) -> bytes:
        """Return its TBSCertList in DER."""
        key = issuer_key(self.issuer)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.issuer.subject)
            .last_update(self.this_update)
            .next_update(self.next_update)
        )
        for extension in self.extensions():
            builder = builder.add_extension(extension.value, extension.critical)
        for one in sorted(self.revoked, key=lambda each: each.serial):
            builder = builder.add_revoked_certificate(_entry(one))
        unsigned = builder.sign(recorder_of(key), algorithm_of(key).hash)
        return unsigned.tbs_certlist_bytes

    def joined(self, tbs: bytes, signature: bytes) -> x509.CertificateRevocationList:
        """Join a TBSCertList and a signature of the issuer's key, or of one like it."""
        identifier = algorithm_of(issuer_key(self.issuer)).der
        return x509.load_der_x509_crl(splice(tbs, identifier, signature))

    def problems(self, crl: x509.CertificateRevocationList) -> Iterator[str]:
        """Yield where a list is not the planned one, whoever has signed it."""
        try:
            yield from self._differences(crl)
        except UNREADABLE as error:
            yield f"cannot be read: {error}"

    def _differences(self, crl: x509.CertificateRevocationList) -> Iterator[str]:
        algorithm = algorithm_of(issuer_key(self.issuer))
        for what, found, planned in (
            ("issuer", crl.issuer.public_bytes(), subject_of(self.issuer)),
            ("thisUpdate", crl.last_update_utc, self.this_update),
            ("nextUpdate", crl.next_update_utc, self.next_update),
            ("extensions", [*crl.extensions], [*self.extensions()]),
            (
                "entries",
                {*entries_of(crl)},
                {*self.revoked},
            ),
            (
                "hash of its signature",
                getattr(crl.signature_hash_algorithm, "name", None),
                algorithm.hash and algorithm.hash.name,
            ),
        ):
            if found != planned:
                yield f"has the {what} {found!r}: expected {planned!r}"


def entries_of(crl: x509.CertificateRevocationList) -> Iterator[RevokedCertificate]:
    """Yield what a list revokes."""
    for entry in crl:
        found = value_in(entry.extensions, x509.CRLReason)
        reason = None if found is None else found.reason
        yield RevokedCertificate(entry.serial_number, entry.revocation_date_utc, reason)


def merged(
    lists: Sequence[x509.CertificateRevocationList],
) -> dict[int, RevokedCertificate]:
    """Return what any of the lists revokes, by serial number, with the earliest date.

    Args:
        lists: Of one CA, the newest one first; its reasons count.
    """
    found: dict[int, RevokedCertificate] = {}
    for one in lists:
        for entry in entries_of(one):
            known = found.setdefault(entry.serial, entry)
            since = min(known.since, entry.since)
            found[entry.serial] = RevokedCertificate(entry.serial, since, known.reason)
    return found


def _entry(one: RevokedCertificate) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(one.serial)
        .revocation_date(one.since)
    )
    if one.reason is not None:
        builder = builder.add_extension(x509.CRLReason(one.reason), critical=False)
    return builder.build()
