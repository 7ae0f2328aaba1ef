"""Who is asking: the credential as it came, and the caller that it proved."""

from dataclasses import dataclass
from typing import Literal

from bridge.spiffe import SpiffeID


@dataclass(frozen=True, slots=True)
class TokenCredential:
    """What a front read from the request's metadata; nothing is decided yet."""

    authorization: tuple[str, ...]
    """Every value of the `authorization` header."""
    cluster_ids: tuple[str, ...]
    """Every value of the `clusterid` header."""


@dataclass(frozen=True, slots=True)
class CertificateCredential:
    """A client certificate that the TLS layer verified to the trust anchors."""

    leaf: bytes
    """In PEM or DER."""


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
    """`namespace/name/UID` of the pod that the token is bound to, where it says."""
