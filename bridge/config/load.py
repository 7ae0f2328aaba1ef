"""The configuration file, as one frozen value.

Every error of a file is reported at once, each with the file, the path of the key, the
value that was found and what was expected.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from bridge.config.alike import alike_problems
from bridge.config.consistency import Known, rule_problems
from bridge.config.diagnostics import (
    Problem,
    doubled,
    known_keys,
    listed,
    problem_of,
    shown,
)
from bridge.config.error_recovery import Mended
from bridge.config.schema import (
    AdminConfig,
    CeilingConfig,
    ClusterConfig,
    FrontsConfig,
    IssuingCAConfig,
    IstioConfig,
    LagConfig,
    LedgerConfig,
    LimitsConfig,
    LinkerdConfig,
    ServingConfig,
    TokensConfig,
)
from bridge.config.section import Section
from bridge.config.strict_yaml import parse_yaml
from bridge.config.terms import IssuanceConfig, RuleConfig
from bridge.config.types import FilePath, Name, Some, TrustDomainName, written
from bridge.dns_names import is_host
from bridge.errors import ConfigError

__all__ = [
    "BridgeConfig",
    "CeilingConfig",
    "ClusterConfig",
    "ConfigText",
    "IssuanceConfig",
    "IssuingCAConfig",
    "IstioConfig",
    "LagConfig",
    "LedgerConfig",
    "LimitsConfig",
    "LinkerdConfig",
    "RuleConfig",
    "ServingConfig",
    "TokensConfig",
    "complain",
    "parse",
    "read",
    "rest",
]


class BridgeConfig(Section):
    """The whole file."""

    trust_domain: TrustDomainName
    """The trust domain of every SPIFFE ID that is issued, such as `corp.example`."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that serve, under a parent that supervises them; 0 is one process."""
    fronts: FrontsConfig
    clusters: Annotated[tuple[ClusterConfig, ...], Field(strict=False), Some]
    issuing_cas: Annotated[dict[Name, IssuingCAConfig], Field(min_length=1)]
    trust_anchors: FilePath
    """PEM file. Workloads get these certificates as their roots, and every chain must
    lead to one of them. Read at the start and at each reload: after a change of this
    file alone, send SIGHUP."""
    issuance: IssuanceConfig
    limits: LimitsConfig = LimitsConfig()
    ledger: LedgerConfig
    admin: AdminConfig = AdminConfig()

    _path: Path = Path()
    _base: Path = Path()

    @property
    def path(self) -> Path:
        """The file, as it was named."""
        return self._path

    @property
    def base(self) -> Path:
        """The folder of the file: relative paths are relative to it."""
        return self._base

    def problems(self) -> Sequence[Problem]:
        """Return what only shows when sections are held together.

        Returns:
            Path of the key, value, expectation, for each problem.
        """
        addresses = {**self.fronts.addresses(), **self.admin.addresses()}
        return [
            *self._unknown_issuing_cas(),
            *self._ambiguous_clusters(),
            *self._wrong_linkerd(),
            *rule_problems(self.issuance, self._known()),
            *self._alike_clusters(),
            *self._short_serving(),
            *doubled(addresses),
        ]

    def trust_domain_of(self, cluster: ClusterConfig) -> str:
        """Return the trust domain of a cluster's callers."""
        return cluster.trust_domain or self.trust_domain

    def linkerd_cluster(self) -> ClusterConfig | None:
        """Return the cluster whose tokens Linkerd's callers show, if there is one."""
        front = self.fronts.linkerd
        wanted = front.cluster if front else None
        if wanted is None:
            return self.clusters[0]
        fitting = (one for one in self.clusters if wanted in (one.name, *one.aliases))
        return next(fitting, None)

    def linkerd_trust_domain(self) -> str:
        """Return the trust domain of Linkerd's names."""
        front, cluster = self.fronts.linkerd, self.linkerd_cluster()
        if front is not None and front.trust_domain is not None:
            return front.trust_domain
        return self.trust_domain_of(cluster) if cluster else self.trust_domain

    def _wrong_linkerd(self) -> Iterator[Problem]:
        front = self.fronts.linkerd
        if front is None:
            return
        if self.linkerd_cluster() is None:
            known = ", ".join(cluster.name for cluster in self.clusters)
            expected = f"expected a name under clusters: {known}"
            yield "fronts.linkerd.cluster", front.cluster, expected
        domain = self.linkerd_trust_domain()
        if not is_host(domain):
            expected = (
                "expected a trust domain that is a DNS name: Linkerd's identities are"
            )
            yield "fronts.linkerd.trust_domain", domain, expected
        of_istio = {self.trust_domain_of(cluster) for cluster in self.clusters}
        if front.spiffe_uri and self.fronts.istio and domain in of_istio:
            expected = (
                "expected false, or another fronts.linkerd.trust_domain: the Istio "
                f"front issues SPIFFE IDs of {domain} under the same trust anchors, "
                "and a peer of either mesh could not tell the two apart"
            )
            yield "fronts.linkerd.spiffe_uri", front.spiffe_uri, expected

    def _alike_clusters(self) -> Iterator[Problem]:
        if self.fronts.istio is not None and self.fronts.istio.mtls_listen is not None:
            domains = [self.trust_domain_of(cluster) for cluster in self.clusters]
            rules = self.issuance.rules
            yield from alike_problems(self.clusters, domains, rules, self.limits)

    def _short_serving(self) -> Iterator[Problem]:
        ttl = self.fronts.istio.tls.ttl if self.fronts.istio else None
        backdate = self.issuance.backdate
        if ttl is not None and ttl <= backdate:
            expected = (
                f"expected more than issuance.backdate ({written(backdate)}): half of "
                "its life would be over when it is issued"
            )
            yield "fronts.istio.tls.ttl", ttl, expected

    def _unknown_issuing_cas(self) -> list[Problem]:
        known = ", ".join(self.issuing_cas)
        return [
            (f"{path}[{index}]", name, f"expected a name under issuing_cas: {known}")
            for path, names in self.issuance.routes().items()
            for index, name in enumerate(names)
            if name not in self.issuing_cas
        ]

    def asking(self) -> dict[str, tuple[str, ...]]:
        """Return each front that is configured, with the clusters of its callers."""
        found: dict[str, tuple[str, ...]] = {}
        if self.fronts.istio is not None:
            found["istio"] = tuple(cluster.name for cluster in self.clusters)
        if self.fronts.linkerd is not None:
            cluster = self.linkerd_cluster()
            found["linkerd"] = (cluster.name,) if cluster else ()
        return found

    def _known(self) -> Known:
        return Known(
            asking=self.asking(),
            clusters=frozenset(cluster.name for cluster in self.clusters),
            aliases={
                alias: cluster.name
                for cluster in self.clusters
                for alias in cluster.aliases
            },
        )

    def _ambiguous_clusters(self) -> list[Problem]:
        seen: set[str] = set()
        found: list[Problem] = []
        for index, cluster in enumerate(self.clusters):
            for name in (cluster.name, *cluster.aliases):
                if name in seen:
                    expected = "expected each name and alias in one cluster only"
                    found.append((f"clusters[{index}]", name, expected))
                seen.add(name)
        return found


@dataclass(frozen=True, slots=True)
class ConfigText:
    """A configuration, and the text that it was parsed from."""

    path: Path
    text: str
    config: BridgeConfig

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check the file at `path` once. Raises as `read` does."""
        try:
            text = path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read: {_reason(error)}") from error
        return cls(path, text, parse(text, path))


def read(path: Path) -> BridgeConfig:
    """Read and check the file at `path`.

    Raises:
        ConfigError: The file is unreadable, is not YAML, writes a key twice, or breaks
            a rule above. The message lists every problem, one a line.
    """
    return ConfigText.read(path).config


def parse(text: str, path: Path) -> BridgeConfig:
    """Check `text`, the content of the file at `path`. Raises as `read` does."""
    tree = _tree(text, path)
    try:
        config = _validated(tree, path)
    except ValidationError as error:
        raise ConfigError(listed(path, _all_of(_mended(tree, error, path)))) from None
    if problems := config.problems():
        raise ConfigError(listed(path, problems))
    return config


def rest(path: Path) -> BridgeConfig | None:
    """Read the file at `path` without what is wrong with it.

    For a look at what else is wrong, and for nothing more: values that are missing or
    wrong are others, with `mending.STAND_IN` in them.

    Returns:
        None if not even that can be read.
    """
    try:
        tree = _tree(path.read_text("utf-8"), path)
    except (OSError, ValueError, ConfigError):
        return None
    try:
        return _validated(tree, path)
    except ValidationError as error:
        return _mended(tree, error, path).config


def _tree(text: str, path: Path) -> Mapping[Any, Any]:
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: expected a mapping, found {shown(tree)}")
    return tree


def _validated(tree: object, path: Path) -> BridgeConfig:
    # Links are not followed: where the file is a link that is swapped, as Kubernetes
    # does, the folder that it stands in stays, and the folder behind it goes.
    base = path.absolute().parent
    config = BridgeConfig.model_validate(tree, context={"base": base})
    config._path, config._base = path, base  # noqa: SLF001 - no keys
    return config


def _mended(tree: object, error: ValidationError, path: Path) -> Mended[BridgeConfig]:
    return Mended(tree, error, lambda mended: _validated(mended, path))


def _all_of(mended: Mended[BridgeConfig]) -> list[Problem]:
    hidden = mended.config.problems() if mended.config else ()
    return [*(_problem(item) for item in mended.found), *mended.own(hidden)]


def complain(path: Path, key: str, value: object, expected: str) -> ConfigError:
    """Build the error of one key: file, key path, value and expectation."""
    return ConfigError(listed(path, [(key, value, expected)]))


def _problem(item: Any) -> Problem:
    return problem_of(item, known_keys(BridgeConfig, item["loc"][:-1]))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
