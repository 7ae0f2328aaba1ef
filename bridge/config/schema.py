"""The sections of the configuration file: which keys there are, and what they may be.

`docs/configuration.md` tells operators the same; a test holds the two together.
"""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bridge.config.section import Section
from bridge.config.types import (
    Address,
    ArchiveURL,
    ClusterName,
    Duration,
    FilePath,
    Hosts,
    HttpsURL,
    Label,
    Name,
    Names,
    PositiveDuration,
    PositiveNumber,
    Some,
    Text,
    TrustDomainName,
    UpToAMinute,
    WholeSeconds,
    WrongError,
    require_https,
    written,
)


class ServingConfig(Section):
    """`fronts.istio.tls`: the listener's certificate.

    The bridge issues it to itself for `dns_names`, unless `certificate` and `key` are
    given.
    """

    dns_names: Hosts = ()
    ttl: WholeSeconds | None = None
    certificate: FilePath | None = None
    key: FilePath | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are given together or not at all")
        if self.certificate is None and not self.dns_names:
            raise ValueError("expected dns_names (the host of caAddress) or a key pair")
        return self


class IstioConfig(Section):
    """`fronts.istio`."""

    listen: Address
    mtls_listen: Address | None = None
    """A second port where a client certificate is required and is the credential."""
    audiences: Annotated[Names, Some] = ("istio-ca",)
    tls: ServingConfig


class LinkerdConfig(Section):
    """`fronts.linkerd`."""

    listen: Address
    """Clear HTTP/2: the sidecar of the bridge's own pod has the TLS."""
    audiences: Annotated[Names, Some] = ("identity.l5d.io",)
    control_plane_namespace: Label = "linkerd"
    cluster: ClusterName | None = None
    """Whose tokens callers show; by default the first cluster."""
    trust_domain: TrustDomainName | None = None
    """By default that of the cluster."""
    spiffe_uri: bool = False
    """Put the SPIFFE ID into the leaf, too, behind the DNS name."""
    in_flight: Annotated[int, Field(ge=1, le=100_000)] = 4096
    queue_seconds: Annotated[PositiveNumber, Field(le=100)] = 30
    """Proxies wait without a deadline, and come back only 10 s after a refusal."""
    deadline: PositiveDuration = timedelta(seconds=40)

    @model_validator(mode="after")
    def _has_time_left(self) -> Self:
        if self.queue_seconds >= self.deadline.total_seconds():
            raise WrongError(
                "expected queue_seconds below deadline: what has waited for so long "
                "could not be worked on",
                f"queue_seconds {self.queue_seconds:g}, deadline "
                f"{written(self.deadline)}",
            )
        return self


class FrontsConfig(Section):
    """`fronts`: one or more."""

    istio: IstioConfig | None = None
    linkerd: LinkerdConfig | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if self.istio is None and self.linkerd is None:
            raise WrongError("expected a front: istio, linkerd, or both", "none")
        return self

    def addresses(self) -> dict[str, str]:
        """Return what is listened on, by key."""
        found = {
            "fronts.istio.listen": self.istio.listen if self.istio else None,
            "fronts.istio.mtls_listen": self.istio.mtls_listen if self.istio else None,
            "fronts.linkerd.listen": self.linkerd.listen if self.linkerd else None,
        }
        return {key: address for key, address in found.items() if address is not None}


class TokensConfig(Section):
    """`clusters[].tokens`: how this cluster's service-account tokens are verified."""

    verify: Literal["jwks"]
    issuer: Text
    file: FilePath | None = None
    url: HttpsURL | None = None
    discovery: bool = False
    """Ask `<issuer>/.well-known/openid-configuration` where the keys are."""
    ca_file: FilePath | None = None
    """Trust anchors for `url` and `discovery`; the system's by default."""
    max_key_age: PositiveDuration = timedelta(hours=24)
    """Keys that could not be confirmed for longer are no longer believed."""
    refresh_floor: Duration = timedelta(seconds=10)
    """The shortest time between two refreshes because of an unknown key ID."""

    @property
    def source_key(self) -> str:
        """The one key of this section that says where the keys are."""
        if self.file is not None:
            return "file"
        return "discovery" if self.url is None else "url"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.file is None, self.url is None, not self.discovery].count(False) != 1:
            raise ValueError("expected one of file, url and discovery: true")
        if self.discovery:
            require_https(self.issuer)
        if self.file is not None and self.ca_file is not None:
            raise WrongError(
                "expected ca_file beside url or discovery only: a file is not fetched",
                "ca_file beside file",
            )
        return self


class ClusterConfig(Section):
    """`clusters[]`: one cluster and the names that its callers may get."""

    name: ClusterName
    aliases: Names = ()
    trust_domain: TrustDomainName | None = None
    """The top-level one by default."""
    namespaces: Names | None = None
    """`["*"]` is all. By default all for the first cluster and none for the others."""
    tokens: TokensConfig


class IssuingCAConfig(Section):
    """`issuing_cas.<name>`: one issuing CA and how to reach it."""

    plugin: Name
    chain: FilePath | None = None
    """Issuing CA first, then the intermediates; no root. Not for a plugin that finds
    the chain itself."""
    timeout: PositiveDuration = timedelta(seconds=5)
    options: dict[str, object] = {}  # noqa: RUF012 - pydantic copies it
    """Handed to the plugin untouched. Secrets are given as file paths."""


class CeilingConfig(Section):
    """`limits.per_identity` and `limits.per_cluster`: how often one may ask."""

    rate: PositiveNumber
    """Calls a second, on average."""
    burst: Annotated[int, Field(ge=1)]
    """Calls that may come at once: the pods of one restart share an identity."""


class LimitsConfig(Section):
    """`limits`."""

    in_flight: Annotated[int, Field(ge=1, le=100_000)] = 4096
    queue_seconds: Annotated[PositiveNumber, Field(le=60)] = 1.25
    deadline: PositiveDuration = timedelta(seconds=10)
    drain: Duration = timedelta(seconds=15)
    """How long requests under way may take to finish after SIGTERM."""
    threads: Annotated[int, Field(ge=1, le=256)] = 24
    per_identity: CeilingConfig | None = None
    """No ceiling by default: the right one depends on how many pods share a name."""
    per_cluster: CeilingConfig | None = None


class LagConfig(Section):
    """`ledger.max_lag`: when the archive is further behind, issuing stops."""

    entries: Annotated[int, Field(ge=1)] = 10_000
    seconds: PositiveNumber = 60


class HeadsConfig(Section):
    """`ledger.heads`: where the signed tips of the journals go."""

    sink: FilePath
    key: FilePath | None = None
    """Ed25519 key (PKCS#8 PEM); by default one is made beside the journal."""
    interval: UpToAMinute = timedelta(seconds=30)


class LedgerConfig(Section):
    """`ledger`."""

    journal: FilePath
    archive: ArchiveURL
    """A SQLAlchemy URL: `sqlite:///archive.db` is beside the configuration file."""
    max_lag: LagConfig = LagConfig()
    heads: HeadsConfig
    refusals_per_second: Annotated[int, Field(ge=1)] = 50
    """Unauthenticated calls above this rate share one summary row a second."""


class AdminConfig(Section):
    """`admin`: health and metrics, on an address of their own."""

    listen: Address = "127.0.0.1:9990"
