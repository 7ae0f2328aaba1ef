"""The credential of a request, and the caller that it identifies."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Protocol, Self

from bridge.resilience.budget import Budget
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


Verification = Literal["jwks", "token_review", "bound", "certificate"]
"""How a credential was verified: offline by the cluster's keys, by the cluster's API
server, offline and by a watch of what it is bound to, or as a client certificate."""


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


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The service account of a verified token."""

    namespace: str
    name: str
    pod: Pod = NO_POD
    """The pod that the token is bound to."""
    uid: str = ""
    """Of the account; empty where the token does not have it."""
    verified_by: Verification | None = None
    """How, where the verifier has several ways."""


class TokenVerifier(Protocol):
    """Verifies the service-account tokens of one cluster. For all threads."""

    @property
    def verified_by(self) -> Verification:
        """How a caller is verified by it, as the ledger has it."""

    def verify(
        self, token: str, *, audiences: frozenset[str], now: datetime, budget: Budget
    ) -> ServiceAccount:
        """Verify a token and return its service account.

        Args:
            token: In JWS compact serialization, without a scheme.
            audiences: Of the front: the token must be for one of them.
            now: The time of the request.
            budget: What is left of the call's time.

        Raises:
            AuthenticationError: The token is refused.
            ReviewError: Whether it is good cannot be told now.
        """

    def problems(self, now: datetime) -> list[str]:
        """Return what is wrong with it now, for operators."""

    def can_verify(self, now: datetime) -> bool:
        """Return whether it can verify a token now, as far as it knows."""

    def start(self) -> None:
        """Start what is kept up to date in the background."""

    def close(self) -> None:
        """Stop that, and let connections go."""


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
    """When a token of the identity last proved it, in seconds since 1970-01-01 UTC: for
    a token, the time of the call. 0 for a workload that another acts for."""
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
            # No token of its own has proved it, so it does not renew by certificate.
            proven_at=0,
            requester=self.spiffe_id,
        )
