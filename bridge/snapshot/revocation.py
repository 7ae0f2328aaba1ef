"""Certificate revocation lists: which CA certificates of a chain are revoked.

A revocation holds for ever: a list whose next update is overdue still revokes what it
has. A list that cannot be read, is not signed by the CA that it names, or is only a
part of a list, revokes nothing and is an error.

Source:
    RFC 5280, 5 and 6.3.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from bridge.errors import ConfigError
from bridge.system.files import read_public
from bridge.x509.algorithm import CAPublicKey
from bridge.x509.certificate import UNREADABLE, name_text

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


class RevocationLists:
    """All lists of a bridge.

    Args:
        lists: In the order of the configuration.
    """

    def __init__(self, lists: Sequence[RevocationList] = ()) -> None:
        self.lists = tuple(lists)

    def revoked(self, path: Sequence[x509.Certificate]) -> str:
        """Return which certificates of a path are revoked, in sentences; else empty.

        Args:
            path: The issuing CA first, the trust anchor last. Nobody revokes an anchor
                but by taking it out of the trust anchors.
        """
        return "; ".join(self._revoked(path))

    def _revoked(self, path: Sequence[x509.Certificate]) -> Iterator[str]:
        for certificate, issuer in pairwise(path):
            for one in self._of(issuer):
                since = one.revokes(certificate)
                if since is not None:
                    yield (
                        f"the certificate ({name_text(certificate, 'subject')}, serial "
                        f"{certificate.serial_number:x}) is revoked since "
                        f"{since:%Y-%m-%dT%H:%M:%SZ} by {one.title}: have a CA "
                        "certificate issued in its place, or use another issuing CA"
                    )

    def _of(self, issuer: x509.Certificate) -> Iterator[RevocationList]:
        for one in self.lists:
            if one.is_of(issuer) and one.is_signed_by(issuer):
                yield one

    def require_signed(self, certificates: Sequence[x509.Certificate]) -> None:
        """Refuse lists that name a CA among these and are not signed by its key.

        Args:
            certificates: All CA certificates of all chains, with the trust anchors.

        Raises:
            ConfigError: One is; the message names each.
        """
        problems = [
            f"{one.title}: expected a list that this CA has signed, with SHA-256, "
            "SHA-384, SHA-512 or Ed25519 (found another signature): it is forged, or "
            "of an earlier key; get the list again from whoever runs this CA"
            for one in self.lists
            if (named := [ca for ca in certificates if one.is_of(ca)])
            and not any(one.is_signed_by(ca) for ca in named)
        ]
        if problems:
            raise _bad("\n".join(problems))

    def require_newer(self, before: "RevocationLists") -> None:
        """Refuse lists that are older than those before: an old list un-revokes.

        Raises:
            ConfigError: A CA's list has a lower number, or one is not there any more.
        """
        problems: list[str] = []
        for one in before.lists:
            later = [
                other.number
                for other in self.lists
                if other.number is not None and other.crl.issuer == one.crl.issuer
            ]
            if one.number is not None and max(later, default=-1) < one.number:
                numbers = ", ".join(map(str, later)) or "none"
                problems.append(
                    f"{one.source}: expected a list of "
                    f"{one.crl.issuer.rfc4514_string()} with the number "
                    f"{one.number} or above (found {numbers}): put the "
                    "newest list back, or restart to do without"
                )
        if problems:
            raise _bad("\n".join(problems))

    def warnings(
        self, certificates: Sequence[x509.Certificate], now: datetime
    ) -> Iterator[str]:
        """Yield what is odd about the lists, and changes nothing.

        Args:
            certificates: As for `require_signed`.
            now: Aware UTC.
        """
        for one in self.lists:
            if not any(one.is_of(ca) for ca in certificates):
                yield f"{one.title}: no chain has this CA; take the list out"
            due = one.next_update
            if due is None or due <= now:
                when = "it has none" if due is None else f"due {due:%Y-%m-%dT%H:%M:%SZ}"
                yield (
                    f"{one.title}: its next update is overdue ({when}): later "
                    "revocations are not known; get the newest list"
                )


def read_lists(paths: Sequence[Path]) -> RevocationLists:
    """Read the files of the configuration.

    Raises:
        ConfigError: One cannot be read, or has a list that cannot be used.
    """
    found: list[RevocationList] = []
    for path in paths:
        try:
            content = read_public(path)
        except ConfigError as error:
            raise _bad(f"crls: {error}", error.detail) from error
        found += parse_lists(content, f"crls: {path}")
    return RevocationLists(found)


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
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _bad(message: str, detail: str = "") -> ConfigError:
    return ConfigError(message, rule="config.crls", detail=detail)
