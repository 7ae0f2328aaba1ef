"""The immutable snapshot that one request uses from its start to its end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Self

from cryptography import x509

from bridge.identity.clusters import ClusterRegistry
from bridge.metrics.expiry import OTHER_ANCHOR, CertificateExpiry
from bridge.policy.issued import PinnedIssuer
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rate_limit import RateLimits
from bridge.policy.rules import Rules
from bridge.resilience.boundary import close_plugin
from bridge.snapshot.revocation import RevocationLists
from bridge.snapshot.trust_bundle import TrustBundle
from bridge.spi import Description, IssuingCA
from bridge.spiffe import TrustDomain
from bridge.x509.certificate import readable
from bridge.x509.path import ValidatedChain

_TIERS = {
    "issuing CA": "issuing",
    "intermediate": "intermediate",
    "trust anchor": "anchor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """An issuing CA whose chain is validated, with the values computed at load."""

    name: str
    ca: IssuingCA
    description: Description
    chain: ValidatedChain
    pinned: PinnedIssuer
    certificate_sha256: str
    """Fingerprint of the issuing CA's certificate in DER, 64 hex digits."""
    served: tuple[bytes, ...]
    """The chain that follows every leaf, in DER: issuing CA first, no trust anchor."""
    served_pem: tuple[str, ...]
    """The same in PEM; each ends in a newline."""
    timeout_seconds: float
    ended: str = ""
    """What had ended of the chain when it was loaded, a line each; else empty."""
    revoked: str = ""
    """Which certificates of the chain are revoked; empty if none is."""

    @property
    def chooses_serial(self) -> bool:
        """Whether the backend builds the TBSCertificate."""
        return self.description.chooses_serial

    @property
    def path(self) -> list[x509.Certificate]:
        """The chain, the issuing CA first and the trust anchor last."""
        return [certificate for _, certificate in self.chain.tiers()]

    def under(self, crls: RevocationLists) -> Self:
        """Return this issuing CA as the revocation lists have it."""
        revoked = crls.revoked(self.path)
        return self if revoked == self.revoked else replace(self, revoked=revoked)

    def expiries(self, longest: timedelta) -> Iterator[CertificateExpiry]:
        """Yield the expiry of each certificate of the chain and of its trust anchor.

        Args:
            longest: The longest lifetime that may be issued.
        """
        for tier, certificate in self.chain.tiers():
            one = readable(certificate)
            yield CertificateExpiry.of(one, _TIERS[tier], self.name, longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The rules, keys and issuing CAs by which a request is decided."""

    generation: int
    issuers: Mapping[str, Issuer]
    bundle: TrustBundle
    """The trust anchors, which workloads get as their roots."""
    trust_domains: tuple[TrustDomain, ...]
    """The trust domains of all clusters; the bridge's own first."""
    rules: Rules
    clusters: ClusterRegistry
    rate_limits: RateLimits
    probe_names: Mapping[str, tuple[x509.GeneralName, ...]]
    """The names of each issuing CA's probe certificate. No caller can have them."""
    crls: RevocationLists = field(default_factory=RevocationLists)
    """The revocation lists in force."""
    linkerd: LinkerdNames | None = None
    """The names of Linkerd's mesh; None without a front for Linkerd."""

    def expiries(self, issuer: Issuer) -> tuple[CertificateExpiry, ...]:
        """Return the expiry of each certificate of an issuing CA's chain."""
        longest = self.rules.longest_ttls.get(issuer.name, timedelta())
        return tuple(issuer.expiries(longest))

    def other_anchors(self) -> tuple[CertificateExpiry, ...]:
        """Return the expiry of each trust anchor that no chain here leads to.

        Workloads trust it, for peers elsewhere or for a change of the root.
        """
        used = {issuer.chain.anchor for issuer in self.issuers.values()}
        return tuple(
            CertificateExpiry.of(readable(anchor), OTHER_ANCHOR)
            for anchor in self.bundle.anchors
            if anchor not in used
        )

    def cas(self) -> list[x509.Certificate]:
        """Return the CA certificates of all chains."""
        return [one for issuer in self.issuers.values() for one in issuer.path]

    def under(self, crls: RevocationLists) -> Self:
        """Return this snapshot with other revocation lists in force.

        Raises:
            ConfigError: See `RevocationLists.require_signed` and `require_newer`.
        """
        crls.require_signed(self.cas())
        crls.require_newer(self.crls)
        issuers = {name: one.under(crls) for name, one in self.issuers.items()}
        return replace(self, generation=self.generation + 1, issuers=issuers, crls=crls)

    def crl_warnings(self, now: datetime) -> list[str]:
        """Return what is odd about the revocation lists, and each revoked chain."""
        revoked = [
            f"{one.name}: {one.revoked}" for one in self.issuers.values() if one.revoked
        ]
        return [*revoked, *self.crls.warnings(self.cas(), now)]

    def close(self) -> None:
        """Close the issuing CAs and end the background refresh of keys."""
        for issuer in self.issuers.values():
            close_plugin(issuer.ca.close)
        self.clusters.close()
