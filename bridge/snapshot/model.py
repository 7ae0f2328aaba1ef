"""What one request decides by: taken once, immutable; no rotation can mix two."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography import x509

from bridge.identity.clusters import ClusterRegistry
from bridge.metrics.expiry import CertificateExpiry
from bridge.policy.issued import PinnedIssuer
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rate_limit import RateLimits
from bridge.policy.rules import Rules
from bridge.spi import Description, IssuingCA
from bridge.spiffe import TrustDomain
from bridge.x509.path import ValidatedChain

_TIERS = {
    "issuing CA": "issuing",
    "intermediate": "intermediate",
    "trust anchor": "anchor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One issuing CA that has been proven, with what can be made ready at load."""

    name: str
    ca: IssuingCA
    description: Description
    chain: ValidatedChain
    pinned: PinnedIssuer
    certificate_sha256: str
    """Of the issuing CA's certificate in DER, 64 hex digits."""
    intermediates_pem: tuple[str, ...]
    """Issuing CA first; each ends in a newline."""
    timeout_seconds: float

    def expiries(self) -> Iterator[CertificateExpiry]:
        """Yield when each certificate of the chain ends, the trust anchor's too."""
        for tier, certificate in self.chain.tiers():
            yield CertificateExpiry(
                issuing_ca=self.name,
                tier=_TIERS[tier],
                subject=certificate.subject.rfc4514_string(),
                serial=f"{certificate.serial_number:x}",
                not_after=certificate.not_valid_after_utc,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a request decides by."""

    generation: int
    issuers: Mapping[str, Issuer]
    anchors: tuple[x509.Certificate, ...]
    anchors_pem: str
    """All trust anchors in one text, each certificate ending in a newline."""
    trust_domains: tuple[TrustDomain, ...]
    """Those that some cluster's callers have; the bridge's own first."""
    rules: Rules
    clusters: ClusterRegistry
    rate_limits: RateLimits
    probe_names: Mapping[str, tuple[x509.GeneralName, ...]]
    """What a probe certificate of an issuing CA is for: no caller can have these."""
    linkerd: LinkerdNames | None = None
    """The names of Linkerd's mesh, where there is a front for it."""

    def close(self) -> None:
        """Release the issuing CAs and what the clusters read in the background."""
        for issuer in self.issuers.values():
            issuer.ca.close()
        self.clusters.close()
