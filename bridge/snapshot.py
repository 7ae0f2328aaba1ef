"""What one request decides by: taken once, immutable; no rotation can mix two."""

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509

from bridge.clusters import ClusterRegistry
from bridge.policy.ceilings import Ceilings
from bridge.policy.issued import PinnedIssuer
from bridge.policy.request import IssuancePolicy
from bridge.spi import Description, IssuingCA
from bridge.spiffe import TrustDomain
from bridge.x509.path import ValidatedChain


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
    policy: IssuancePolicy
    clusters: ClusterRegistry
    ceilings: Ceilings
