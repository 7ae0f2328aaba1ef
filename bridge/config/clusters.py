"""The sections of clusters: their names, and how their tokens are verified."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import model_validator

from bridge.config.types import (
    ClusterName,
    Duration,
    FilePath,
    HttpsURL,
    Names,
    PositiveDuration,
    Section,
    Some,
    Text,
    TrustDomainName,
    WrongError,
    require_https,
)


class TokensConfig(Section):
    """`clusters[].tokens`: how this cluster's service-account tokens are verified."""

    verify: Literal["jwks"]
    """Signature, issuer, audience and time are verified offline, with the cluster's
    public keys."""
    issuer: Text | None = None
    """The value of `iss`, character for character. Either `issuer` or `issuers` is
    given."""
    issuers: Annotated[Names, Some] | None = None
    """While the cluster's issuer is being changed: each value of `iss` that is
    accepted, the current one first. Discovery asks at the first."""
    file: FilePath | None = None
    """The public keys, as a JWK Set. Exactly one of `file`, `url` and `discovery` is
    given."""
    url: HttpsURL | None = None
    """Where the public keys are fetched, by `https://` only."""
    discovery: bool = False
    """Fetch the address of the keys from
    `<issuer>/.well-known/openid-configuration`."""
    ca_file: FilePath | None = None
    """Trust anchors for `url` and `discovery`, read again when the file changes. By
    default those of the system."""
    token_file: FilePath | None = None
    """A bearer token for `url` and `discovery`, read again for each fetch. An API
    server asks for one by default. Needs `ca_file`: the token is sent only to servers
    with a certificate under it."""
    max_key_age: PositiveDuration = timedelta(hours=24)
    """Keys are trusted for this long after they were last confirmed."""
    refresh_floor: Duration = timedelta(seconds=10)
    """The shortest time between two refreshes that an unknown key ID causes."""

    @property
    def source_key(self) -> str:
        """The one key of this section that says where the keys are."""
        if self.file is not None:
            return "file"
        return "discovery" if self.url is None else "url"

    @property
    def accepted_issuers(self) -> tuple[str, ...]:
        """The values of `iss` that are accepted; the current one first."""
        return self.issuers or (self.issuer or "",)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.issuer is None) == (self.issuers is None):
            raise WrongError(
                "expected issuer, or issuers while it is being changed",
                "neither" if self.issuer is None else "both",
            )
        if [self.file is None, self.url is None, not self.discovery].count(False) != 1:
            raise ValueError("expected one of file, url and discovery: true")
        if self.discovery:
            require_https(self.accepted_issuers[0])
        for key in ("ca_file", "token_file") if self.file is not None else ():
            if getattr(self, key) is not None:
                raise WrongError(
                    f"expected {key} beside url or discovery only: a file is not "
                    "fetched",
                    f"{key} beside file",
                )
        if self.token_file is not None and self.ca_file is None:
            raise ValueError(
                "expected ca_file beside token_file: the token is sent only to servers "
                "with a certificate under these trust anchors"
            )
        return self


class ClusterConfig(Section):
    """`clusters[]`: one cluster and the names that its callers may get."""

    name: ClusterName
    """As in the header `clusterid`."""
    aliases: Names = ()
    """Other values of `clusterid` that mean this cluster."""
    trust_domain: TrustDomainName | None = None
    """By default the top-level `trust_domain`."""
    namespaces: Names | None = None
    """The namespaces whose callers get certificates; `["*"]` is all. By default all for
    the first cluster and none for the others."""
    tokens: TokensConfig

    def allowed_namespaces(self, *, is_first: bool) -> frozenset[str] | None:
        """Return the namespaces whose callers get certificates; `None` is all.

        Args:
            is_first: Whether it is the first of `clusters`. The namespaces of another
                cluster are other people's: by default, none of them is allowed.
        """
        if self.namespaces is None:
            return None if is_first else frozenset()
        return None if "*" in self.namespaces else frozenset(self.namespaces)
