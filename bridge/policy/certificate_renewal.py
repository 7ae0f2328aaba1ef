"""Which callers get a new certificate by showing the one that they have.

The key of a certificate that was stolen once would otherwise be renewed for ever. So
the configuration lists who may renew by certificate, and a token has to prove the
caller anew from time to time. The ledger knows when one did: see
`bridge.ledger.lineage`.
"""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.config import BridgeConfig, RenewalConfig
from bridge.config.first_match import FirstMatch
from bridge.errors import AuthenticationError, DeniedError, ReviewError
from bridge.identity.caller import Caller
from bridge.ledger.lineage import ShownCertificate

_TIME = "%Y-%m-%dT%H:%M:%SZ"


class LineageSource(Protocol):
    """The part of `bridge.ledger.archive.lineages.Lineages` that the policy needs."""

    def proven_at(self, shown: ShownCertificate, seconds: float) -> int | None:
        """See `Lineages.proven_at`."""


class CertificateRenewal:
    """The policy of `fronts.istio.mtls_identities` and `mtls_max_age`.

    Args:
        identities: Who may renew by certificate; empty is nobody.
        max_age: The longest time since a token last proved the caller.
        lineages: Knows when that was; None where `identities` is empty.
        settling: So long after it began a certificate may not be in the archive yet.
    """

    def __init__(
        self,
        identities: tuple[RenewalConfig, ...] = (),
        *,
        max_age: timedelta = timedelta(),
        lineages: LineageSource | None = None,
        settling: timedelta = timedelta(),
    ) -> None:
        self._match = FirstMatch([one.conditions for one in identities])
        self._is_empty = not identities
        self._max_age = max_age
        self._lineages = lineages
        self._settling = settling

    @classmethod
    def of(cls, config: BridgeConfig, lineages: LineageSource | None) -> Self:
        """Build the policy of a configuration."""
        front = config.fronts.istio
        if front is None:
            return cls()
        lag = timedelta(seconds=config.ledger.max_lag.seconds)
        return cls(
            front.mtls_identities,
            max_age=front.mtls_max_age,
            lineages=lineages,
            settling=config.issuance.backdate + lag,
        )

    def require_listed(self, caller: Caller) -> None:
        """Refuse a caller that may not renew by certificate.

        Raises:
            DeniedError: `fronts.istio.mtls_identities` does not list it.
        """
        values = (caller.namespace, caller.service_account)
        if self._is_empty or self._match.index(values) is None:
            raise DeniedError(
                "this identity may not renew by certificate",
                rule="renewal.identity",
                detail=f"{caller.spiffe_id}: to allow it, list it under "
                "fronts.istio.mtls_identities",
            )

    def proven(
        self, caller: Caller, leaf: x509.Certificate, *, now: datetime, seconds: float
    ) -> Caller:
        """Return the caller with the time at which a token last proved it.

        Args:
            caller: A caller that is listed.
            leaf: Its client certificate, with a path to a trust anchor.
            now: The time of the request.
            seconds: What is left of the time of the call.

        Raises:
            AuthenticationError: The ledger has no such certificate.
            DeniedError: A token last proved the caller too long ago.
            ReviewError: The archive cannot be asked now, or may not have the
                certificate yet.
        """
        found = self._look_up(_shown(leaf, caller), seconds)
        if found is None:
            raise self._unknown(leaf, now)
        proven = datetime.fromtimestamp(found, UTC)
        if now - proven > self._max_age:
            since = f"{proven:{_TIME}}" if found else "a time that is not on record"
            raise DeniedError(
                "no token has proved this identity for too long; show one",
                rule="renewal.age",
                detail=f"{caller.spiffe_id}: by the ledger, a token last proved it at "
                f"{since}, and fronts.istio.mtls_max_age is "
                f"{self._max_age.total_seconds():.0f} s",
            )
        return replace(caller, proven_at=found)

    def _look_up(self, shown: ShownCertificate, seconds: float) -> int | None:
        if self._lineages is None:
            return None
        return self._lineages.proven_at(shown, seconds)

    def _unknown(
        self, leaf: x509.Certificate, now: datetime
    ) -> AuthenticationError | ReviewError:
        detail = f"serial {leaf.serial_number:x}"
        if now - leaf.not_valid_before_utc <= self._settling:
            return ReviewError(
                "the ledger does not have this certificate yet; try again",
                rule="renewal.settling",
                detail=detail,
            )
        return AuthenticationError(
            "the ledger has no such certificate of this identity",
            rule="renewal.unknown",
            detail=detail,
        )


def _shown(leaf: x509.Certificate, caller: Caller) -> ShownCertificate:
    return ShownCertificate(
        serial=leaf.serial_number,
        certificate_sha256=leaf.fingerprint(SHA256()).hex(),
        key_sha256=key_sha256(leaf),
        caller=str(caller.spiffe_id),
    )


def key_sha256(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the SubjectPublicKeyInfo in DER, in hex."""
    key = certificate.public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
