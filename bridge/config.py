"""The configuration file, as one frozen value.

Every error of a file is reported at once, each with the file, the path of the key, the
value that was found and what was expected.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bridge.errors import ConfigError
from bridge.problems import Problem, listed, problem_of, shown
from bridge.values import (
    Address,
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
)
from bridge.yamltree import parse_yaml


class _Section(BaseModel):
    # A misspelt key must stop the process: an ignored limit is no limit.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServingConfig(_Section):
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


class IstioConfig(_Section):
    """`fronts.istio`."""

    listen: Address
    mtls_listen: Address | None = None
    """A second port where a client certificate is required and is the credential."""
    audiences: Annotated[Names, Some] = ("istio-ca",)
    tls: ServingConfig


class FrontsConfig(_Section):
    """`fronts`."""

    istio: IstioConfig


class TokensConfig(_Section):
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

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.file is None, self.url is None, not self.discovery].count(False) != 1:
            raise ValueError("expected one of file, url and discovery: true")
        for url in (self.url, self.issuer if self.discovery else None):
            if url is not None and not url.startswith("https://"):
                raise ValueError("keys are fetched from https:// only")
        return self


class ClusterConfig(_Section):
    """`clusters[]`: one cluster and the names that its callers may get."""

    name: ClusterName
    aliases: Names = ()
    trust_domain: TrustDomainName | None = None
    """The top-level one by default."""
    namespaces: Names | None = None
    """`["*"]` is all. By default all for the first cluster and none for the others."""
    tokens: TokensConfig


class IssuingCAConfig(_Section):
    """`issuing_cas.<name>`: one issuing CA and how to reach it."""

    plugin: Name
    chain: FilePath | None = None
    """Issuing CA first, then the intermediates; no root. Not for a plugin that finds
    the chain itself."""
    timeout: PositiveDuration = timedelta(seconds=5)
    options: dict[str, object] = {}
    """Handed to the plugin untouched. Secrets are given as file paths."""


class IssuanceConfig(_Section):
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
            raise ValueError("expected min_ttl <= default_ttl <= max_ttl")
        if self.backdate >= self.min_ttl:
            raise ValueError(
                "expected backdate below min_ttl: a leaf that is born past its "
                "half-life is asked for again without a pause"
            )
        for name, chosen in self.cert_signers.items():
            if not chosen:
                raise ValueError(f"cert_signers.{name} names no issuing CA")
        return self


class CeilingConfig(_Section):
    """`limits.per_identity` and `limits.per_cluster`: how often one may ask."""

    rate: PositiveNumber
    """Calls a second, on average."""
    burst: Annotated[int, Field(ge=1)]
    """Calls that may come at once: the pods of one restart share an identity."""


class LimitsConfig(_Section):
    """`limits`."""

    in_flight: Annotated[int, Field(ge=1, le=100_000)] = 512
    queue_seconds: Annotated[PositiveNumber, Field(le=60)] = 1.5
    deadline: PositiveDuration = timedelta(seconds=10)
    drain: Duration = timedelta(seconds=15)
    """How long requests under way may take to finish after SIGTERM."""
    threads: Annotated[int, Field(ge=1, le=256)] = 16
    per_identity: CeilingConfig | None = None
    """No ceiling by default: the right one depends on how many pods share a name."""
    per_cluster: CeilingConfig | None = None


class LagConfig(_Section):
    """`ledger.max_lag`: when the archive is further behind, issuing stops."""

    entries: Annotated[int, Field(ge=1)] = 10_000
    seconds: PositiveNumber = 60


class HeadsConfig(_Section):
    """`ledger.heads`: where the signed tips of the journals go."""

    sink: FilePath
    key: FilePath | None = None
    """Ed25519 key (PKCS#8 PEM); by default one is made beside the journal."""
    interval: PositiveDuration = timedelta(seconds=30)


class LedgerConfig(_Section):
    """`ledger`."""

    journal: FilePath
    archive: str
    """A SQLAlchemy URL: `sqlite:///archive.db` is beside the configuration file."""
    max_lag: LagConfig = LagConfig()
    heads: HeadsConfig
    refusals_per_second: Annotated[int, Field(ge=1)] = 50
    """Unauthenticated calls above this rate share one summary row a second."""


class AdminConfig(_Section):
    """`admin`: health and metrics, on an address of their own."""

    listen: Address = "127.0.0.1:9990"


class BridgeConfig(_Section):
    """The whole file."""

    trust_domain: TrustDomainName
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that serve, under a parent that supervises them; 0 is one process."""
    fronts: FrontsConfig
    clusters: Annotated[tuple[ClusterConfig, ...], Field(strict=False), Some]
    issuing_cas: Annotated[dict[Name, IssuingCAConfig], Field(min_length=1)]
    trust_anchors: FilePath
    issuance: IssuanceConfig
    limits: LimitsConfig = LimitsConfig()
    ledger: LedgerConfig
    admin: AdminConfig = AdminConfig()

    _base: Path = Path()

    @property
    def base(self) -> Path:
        """The folder of the file: relative paths are relative to it."""
        return self._base

    def resolve(self, path: Path) -> Path:
        """Return `path`, relative to the folder of the configuration file."""
        return self._base / path

    def problems(self) -> Sequence[Problem]:
        """Return what only shows when sections are held together.

        Returns:
            Path of the key, value, expectation, for each problem.
        """
        return [*self._unknown_issuing_cas(), *self._ambiguous_clusters()]

    def _unknown_issuing_cas(self) -> list[Problem]:
        known = ", ".join(self.issuing_cas)
        lists = {"issuance.issuing_cas": self.issuance.issuing_cas} | {
            f"issuance.cert_signers.{name}": chosen
            for name, chosen in self.issuance.cert_signers.items()
        }
        return [
            (f"{path}[{index}]", name, f"a name under issuing_cas: {known}")
            for path, names in lists.items()
            for index, name in enumerate(names)
            if name not in self.issuing_cas
        ]

    def _ambiguous_clusters(self) -> list[Problem]:
        seen: set[str] = set()
        found: list[Problem] = []
        for index, cluster in enumerate(self.clusters):
            for name in (cluster.name, *cluster.aliases):
                if name in seen:
                    expected = "each name and alias belongs to one cluster"
                    found.append((f"clusters[{index}]", name, expected))
                seen.add(name)
        return found


def read(path: Path) -> BridgeConfig:
    """Read and check the file at `path`.

    Raises:
        ConfigError: The file is unreadable, is not YAML, writes a key twice, or breaks
            a rule above. The message lists every problem, one a line.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {_reason(error)}") from error
    return parse(text, path)


def parse(text: str, path: Path) -> BridgeConfig:
    """Check `text`, the content of the file at `path`. Raises as `read` does."""
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: expected a mapping, found {shown(tree)}")
    try:
        config = BridgeConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            listed(path, [problem_of(item) for item in error.errors()])
        ) from None
    if problems := config.problems():
        raise ConfigError(listed(path, problems))
    # Not resolved: where the file is a symbolic link that is swapped, as Kubernetes
    # does, the folder that it stands in stays, and the folder behind it goes.
    config._base = path.absolute().parent  # noqa: SLF001 - not a key of the file
    return config


def complain(path: Path, key: str, value: object, expected: str) -> ConfigError:
    """Build the error of one key: file, key path, value and expectation."""
    return ConfigError(listed(path, [(key, value, expected)]))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
