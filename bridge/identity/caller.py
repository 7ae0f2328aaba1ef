"""The credential of a request, and the caller that it identifies."""

from dataclasses import dataclass
from typing import Literal

from bridge.spiffe import SpiffeID


@dataclass(frozen=True, slots=True)
class TokenCredential:
    """A bearer token with its metadata, as a front received it. Nothing is verified."""

    authorization: tuple[str, ...]
    """Every value of the `authorization` header."""
    cluster_ids: tuple[str, ...]
    """Every value of the `clusterid` header."""


@dataclass(frozen=True, slots=True)
class CertificateCredential:
    """A client certificate that the TLS layer verified to the trust anchors."""

    leaf: bytes
    """In PEM or DER."""
    chain: bytes = b""
    """In PEM, what the client sent: CA certificates, and maybe its own."""


Credential = TokenCredential | CertificateCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated caller."""

    spiffe_id: SpiffeID
    cluster: str
    """The name of the registry's entry, never an alias."""
    credential: Literal["token", "certificate", "self"]
    namespace: str = ""
    service_account: str = ""
    pod: str = ""
    """`namespace/name/UID` of the pod that the token is bound to; empty if none."""
    proven_at: int = 0
    """Of a certificate: when a token last proved the caller, in seconds since
    1970-01-01 UTC."""
