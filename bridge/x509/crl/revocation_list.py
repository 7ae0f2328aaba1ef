"""A certificate revocation list, as it is read from a file.

Source:
    RFC 5280, 5 and 6.3.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from bridge.errors import ConfigError
from bridge.x509.algorithm import CAPublicKey
from bridge.x509.certificate import UNREADABLE, value_in

_PEM = re.compile(rb"-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----", re.DOTALL)
_BEGIN = b"-----BEGIN "
_DER_START = b"\x30"
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_READ = (
    x509.AuthorityKeyIdentifier,
    x509.CRLNumber,
    x509.IssuingDistributionPoint,
    x509.IssuerAlternativeName,
    x509.AuthorityInformationAccess,
)
"""Extensions that do not change what a list revokes, once `_problem` has seen them."""


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One list, of one CA. Its signature is verified where it is used."""

    crl: x509.CertificateRevocationList
    source: str
    """The file, for people."""
    number: int | None
    """The list's own number; a CA's later list has a greater one."""

    @property
    def title(self) -> str:
        """The list with its CA, for people."""
        number = "" if self.number is None else f", number {self.number}"
        return f"{self.source} ({self.crl.issuer.rfc4514_string()}{number})"

    @property
    def next_update(self) -> datetime | None:
        """When its CA publishes the next one at the latest."""
        return self.crl.next_update_utc

    @property
    def key_identifier(self) -> bytes:
        """Which key of its CA has signed it, as it says; empty if it does not."""
        found = value_in(self.crl.extensions, x509.AuthorityKeyIdentifier)
        return (found and found.key_identifier) or b""

    def is_of(self, ca: x509.Certificate) -> bool:
        """Return whether it names this CA as its issuer, whoever has signed it."""
        return self.crl.issuer == ca.subject

    def is_signed_by(self, ca: x509.Certificate) -> bool:
        """Return whether the key of this CA has signed it, with SHA-2 or Ed25519."""
        key = ca.public_key()
        try:
            digest = self.crl.signature_hash_algorithm
            if digest is not None and not isinstance(digest, _HASHES):
                return False
            return isinstance(key, CAPublicKey) and self.crl.is_signature_valid(key)
        except (*UNREADABLE, UnsupportedAlgorithm):
            return False

    def revokes(self, certificate: x509.Certificate) -> datetime | None:
        """Return since when it revokes a certificate of its CA, or None."""
        number = certificate.serial_number
        found = self.crl.get_revoked_certificate_by_serial_number(number)
        return None if found is None else found.revocation_date_utc


def parse_lists(data: bytes, source: str) -> tuple[RevocationList, ...]:
    """Read a file of revocation lists: one in DER, or one or more in PEM.

    Raises:
        ConfigError: It has none, something else beside them, or one that cannot be
            used: see `RevocationList`.
    """
    if data.startswith(_DER_START):
        return (_parsed(data, source),)
    blocks = _PEM.findall(data)
    if not blocks or data.count(_BEGIN) != len(blocks):
        raise _bad(
            f"{source}: expected revocation lists, one in DER or more in PEM "
            f"(found {len(blocks)} of {data.count(_BEGIN)} blocks to be such lists)"
        )
    return tuple(_parsed(block, source) for block in blocks)


def _parsed(data: bytes, source: str) -> RevocationList:
    load = x509.load_pem_x509_crl
    if data.startswith(_DER_START):
        load = x509.load_der_x509_crl
    try:
        crl = load(data)
        problem, number = _problem(crl), _number(crl)
        # What is read late is read here, where an error has its file.
        _ = crl.issuer.rfc4514_string(), crl.next_update_utc, crl.signature
    except UNREADABLE as error:
        raise _bad(
            f"{source}: expected a revocation list (found a damaged one)", str(error)
        ) from error
    if problem:
        raise _bad(f"{source}: {problem}")
    return RevocationList(crl, source, number)


def _problem(crl: x509.CertificateRevocationList) -> str:
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            if value.indirect_crl or value.only_contains_attribute_certs:
                return (
                    "expected a list of one CA's certificates (found an indirect one)"
                )
            if value.only_contains_user_certs:
                return (
                    "expected a list that has CA certificates (found "
                    "onlyContainsUserCerts): the bridge asks it about its chain"
                )
        elif extension.critical and not isinstance(value, _READ):
            return (
                "expected a complete list without extensions that change what it means "
                f"(found the critical extension {extension.oid.dotted_string})"
            )
    for entry in crl:
        for extension in entry.extensions:
            if extension.critical and not isinstance(extension.value, x509.CRLReason):
                return (
                    f"expected entries of one CA (serial {entry.serial_number:x} has "
                    f"the critical extension {extension.oid.dotted_string})"
                )
    return ""


def _number(crl: x509.CertificateRevocationList) -> int | None:
    found = value_in(crl.extensions, x509.CRLNumber)
    return None if found is None else found.crl_number


def _bad(message: str, detail: str = "") -> ConfigError:
    return ConfigError(message, rule="crl", detail=detail)
