"""Certificate revocation lists: which CA certificates of a chain are revoked.

A revocation holds for ever: a list whose next update is overdue still revokes what it
has. A list that cannot be read, is not signed by the CA that it names, or is only a
part of a list, revokes nothing and is an error.

Source:
    RFC 5280, 5 and 6.3.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509

from bridge.errors import ConfigError
from bridge.metrics.expiry import CRLUpdate
from bridge.system.files import read_public
from bridge.x509.certificate import name_text
from bridge.x509.crl.revocation_list import RevocationList, parse_lists

_WARNING = timedelta(days=30)
"""A list is told of so long before its next update; one of a shorter life in the last
quarter of it."""


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
                if other.number is not None
                and other.crl.issuer == one.crl.issuer
                # Two CAs may have one name, such as a CA that has a new key.
                and other.key_identifier == one.key_identifier
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

    def updates(self) -> Iterator[CRLUpdate]:
        """Yield when the next list of each CA is due, for the metrics."""
        for one in self.lists:
            if (due := one.next_update) is not None:
                number = "" if one.number is None else str(one.number)
                yield CRLUpdate(one.crl.issuer.rfc4514_string(), number, due)

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
            if due is not None and timedelta() < due - now < _ahead(one, due):
                yield (
                    f"{one.title}: its next update is due {due:%Y-%m-%dT%H:%M:%SZ}, in "
                    f"{(due - now).days} days: get the next list before"
                )
            if due is None or due <= now:
                when = "it has none" if due is None else f"due {due:%Y-%m-%dT%H:%M:%SZ}"
                yield (
                    f"{one.title}: its next update is overdue ({when}): later "
                    "revocations are not known; get the newest list"
                )


def _ahead(one: RevocationList, due: datetime) -> timedelta:
    return min(_WARNING, (due - one.crl.last_update_utc) / 4)


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


def _bad(message: str, detail: str = "") -> ConfigError:
    return ConfigError(message, rule="config.crls", detail=detail)
