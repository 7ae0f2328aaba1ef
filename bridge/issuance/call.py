"""The request that a front passes to `Issuance.issue`, and the result."""

from dataclasses import dataclass
from datetime import datetime

from bridge.identity.caller import Credential
from bridge.resilience.budget import Budget
from bridge.x509.pem import encode_certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request as a front received it. Nothing is decided yet (step 1)."""

    front: str
    """`istio` or `linkerd`."""
    csr: str | bytes
    """PEM as text or DER as bytes, as the mesh's API has it."""
    credential: Credential
    audiences: frozenset[str]
    """The front's audiences: a token of one mesh is no credential for the other."""
    identity: str = ""
    """The requested name, where the mesh's API has one (Linkerd)."""
    ttl_seconds: int = 0
    cert_signer: str = ""
    impersonated: str | None = None
    """ztunnel's `ImpersonatedIdentity`; None where the key is absent."""
    budget: Budget
    """The deadline, and whether the caller still waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """An issued certificate with its chain; each text ends in a newline."""

    leaf: bytes
    """DER."""
    chain: tuple[bytes, ...]
    """DER, issuing CA first; no trust anchor."""
    chain_pem: tuple[str, ...]
    """The same in PEM, one certificate per element."""
    anchors_pem: str
    """All trust anchors in one text."""
    valid_until: datetime
    """The expiry that the caller is given: before any certificate of the path expires,
    and drawn at random to spread renewals."""

    @property
    def leaf_pem(self) -> str:
        """The leaf in PEM."""
        return encode_certificate(self.leaf)
