"""The immutable snapshot that one request uses from its start to its end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509

from bridge.identity.clusters import ClusterRegistry
from bridge.metrics.expiry import CertificateExpiry
from bridge.policy.issued import PinnedIssuer
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rate_limit import RateLimits
from bridge.policy.rules import Rules
from bridge.resilience.boundary import close_plugin
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

    @property
    def chooses_serial(self) -> bool:
        """Whether the backend builds the TBSCertificate."""
        return self.description.chooses_serial

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
    linkerd: LinkerdNames | None = None
    """The names of Linkerd's mesh; None without a front for Linkerd."""

    def expiries(self, issuer: Issuer) -> tuple[CertificateExpiry, ...]:
        """Return the expiry of each certificate of an issuing CA's chain."""
        longest = self.rules.longest_ttls.get(issuer.name, timedelta())
        return tuple(issuer.expiries(longest))

    def close(self) -> None:
        """Close the issuing CAs and end the background refresh of keys."""
        for issuer in self.issuers.values():
            close_plugin(issuer.ca.close)
        self.clusters.close()
