"""The sections of the configuration file: which keys there are, and what they may be.

`docs/configuration.md` tells operators the same; a test holds the two together.
"""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bridge.values import (
    Address,
    ArchiveURL,
    ClusterName,
    Duration,
    FilePath,
    IssuerNames,
    Name,
    Names,
    PositiveDuration,
    PositiveNumber,
    Some,
    Text,
    TrustDomainName,
    WholeSeconds,
    WrongError,
    written,
)


class Section(BaseModel):
    """A mapping whose keys are all known, and which nobody changes."""

    # A misspelt key must stop the process: an ignored limit is no limit.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServingConfig(Section):
    """`fronts.istio.tls`: the listener's certificate.

    The bridge issues it to itself for `dns_names`, unless `certificate` and `key` are
    given.
    """

    dns_names: Names = ()
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


class FrontsConfig(Section):
    """`fronts`."""

    istio: IstioConfig


class TokensConfig(Section):
    """`clusters[].tokens`: how this cluster's service-account tokens are verified."""

    verify: Literal["jwks"]
    issuer: Text
    file: FilePath | None = None
    url: str | None = None
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
        for url in (self.url, self.issuer if self.discovery else None):
            if url is not None and not url.startswith("https://"):
                raise ValueError("keys are fetched from https:// only")
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
    options: dict[str, object] = {}
    """Handed to the plugin untouched. Secrets are given as file paths."""


class IssuanceConfig(Section):
    """`issuance`: limits that no caller and no backend can widen."""

    default_ttl: WholeSeconds = timedelta(hours=24)
    min_ttl: WholeSeconds = timedelta(minutes=5)
    max_ttl: WholeSeconds = timedelta(hours=24)
    on_excess_ttl: Literal["refuse", "clamp"] = "refuse"
    backdate: WholeSeconds = timedelta(minutes=2)
    """How far notBefore lies in the past, for peers whose clock runs slow."""
    issuing_cas: Annotated[IssuerNames, Some]
    """In order of preference; a later one stands in when an earlier one is down."""
    cert_signers: dict[Text, IssuerNames] = {}
    """Istio's `CertSigner` value to issuing CAs; a value not listed is refused."""
    csr_names: Literal["ignore", "strict"] = "ignore"
    """`strict` refuses a CSR that asks for any name but the caller's."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min_ttl <= self.default_ttl <= self.max_ttl:
            raise WrongError(
                "expected min_ttl <= default_ttl <= max_ttl",
                f"min_ttl {written(self.min_ttl)}, default_ttl "
                f"{written(self.default_ttl)}, max_ttl {written(self.max_ttl)}",
            )
        if self.backdate >= self.min_ttl:
            raise WrongError(
                "expected backdate below min_ttl: a leaf that is born past its "
                "half-life is asked for again without a pause",
                f"backdate {written(self.backdate)}, min_ttl {written(self.min_ttl)}",
            )
        for name, chosen in self.cert_signers.items():
            if not chosen:
                raise ValueError(f"cert_signers.{name} names no issuing CA")
        return self


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
    threads: Annotated[int, Field(ge=1, le=256)] = 16
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
    interval: PositiveDuration = timedelta(seconds=30)


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
