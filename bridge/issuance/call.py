"""What a front hands over, and what it gets back: values, nothing decided in them."""

from dataclasses import dataclass
from datetime import datetime

from bridge.identity.caller import Credential
from bridge.resilience.budget import Budget
from bridge.x509.pem import encode_certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a front hands over: values as they came, nothing decided."""

    front: str
    """`istio` or `linkerd`."""
    csr: str | bytes
    """PEM as text, or DER as bytes: whichever the mesh's API wants."""
    credential: Credential
    audiences: frozenset[str]
    """Of the front: a token of one mesh is no credential for the other."""
    identity: str = ""
    """The name that is asked for, where the mesh's API says one (Linkerd)."""
    ttl_seconds: int = 0
    cert_signer: str = ""
    impersonated: str | None = None
    """ztunnel's `ImpersonatedIdentity`; None where the key is absent."""
    budget: Budget
    """How long the answer may take, and whether the caller is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """The answer; each text ends in a newline."""

    leaf: bytes
    """DER."""
    chain: tuple[bytes, ...]
    """DER, issuing CA first; no trust anchor."""
    chain_pem: tuple[str, ...]
    """The same in PEM, one certificate per element."""
    anchors_pem: str
    """All trust anchors in one text."""
    valid_until: datetime
    """When the caller is to have another one: before any certificate of the path ends,
    and not at the same moment for all that ask together."""

    @property
    def leaf_pem(self) -> str:
        """The leaf in PEM."""
        return encode_certificate(self.leaf)
