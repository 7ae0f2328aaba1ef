"""The credential of a request, and the caller that it identifies."""

from dataclasses import dataclass, replace
from typing import Literal, Self

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


Verification = Literal["jwks", "token_review", "certificate"]
"""How a credential was verified: offline by the cluster's keys, by the cluster's API
server, or as a client certificate."""


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod that a credential is bound to, as the credential says; empty if none."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    node: str = ""
    """The name of the node. A token that is bound to a node alone has only this."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}/{self.uid}" if self.name else ""


NO_POD = Pod()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated caller, or the workload that one acts for.

    Names, rules, rate limits and the ledger go by the fields that follow. What proves
    them is the credential of the one who asks.
    """

    spiffe_id: SpiffeID
    """The identity that a certificate is for."""
    cluster: str
    """The name of the registry's entry, never an alias."""
    credential: Literal["token", "certificate"]
    verified_by: Verification
    namespace: str = ""
    service_account: str = ""
    pod: Pod = NO_POD
    """Of the one who asks."""
    proven_at: int = 0
    """When a token last proved the identity, in seconds since 1970-01-01 UTC: for a
    token, the time of the call."""
    requester: SpiffeID | None = None
    """The one who asks, where that is another."""

    def acting_for(self, spiffe_id: SpiffeID) -> Self:
        """Return the workload that this caller asks for, with it as the requester.

        Args:
            spiffe_id: Of a service account. Whether this caller may act for it has to
                be known before.
        """
        namespace, name = spiffe_id.service_account or ("", "")
        return replace(
            self,
            spiffe_id=spiffe_id,
            namespace=namespace,
            service_account=name,
            requester=self.spiffe_id,
        )
