"""The configuration file, as one frozen value.

Every error of a file is reported at once, each with the file, the path of the key, the
value that was found and what was expected.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from bridge.errors import ConfigError
from bridge.problems import Problem, doubled, known_keys, listed, problem_of, shown
from bridge.rulecheck import Known, rule_problems
from bridge.sections import (
    AdminConfig,
    CeilingConfig,
    ClusterConfig,
    FrontsConfig,
    IssuanceConfig,
    IssuingCAConfig,
    LedgerConfig,
    LimitsConfig,
    RuleConfig,
    Section,
    ServingConfig,
    TokensConfig,
)
from bridge.values import FilePath, Name, Some, TrustDomainName
from bridge.yamltree import parse_yaml

__all__ = [
    "BridgeConfig",
    "CeilingConfig",
    "ClusterConfig",
    "IssuanceConfig",
    "IssuingCAConfig",
    "LedgerConfig",
    "LimitsConfig",
    "RuleConfig",
    "ServingConfig",
    "TokensConfig",
    "complain",
    "parse",
    "read",
]


class BridgeConfig(Section):
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

    def resolve(self, path: Path) -> Path:
        """Return `path`, relative to the folder of the configuration file."""
        return self._base / path

    def problems(self) -> Sequence[Problem]:
        """Return what only shows when sections are held together.

        Returns:
            Path of the key, value, expectation, for each problem.
        """
        istio = self.fronts.istio
        addresses = {
            "fronts.istio.listen": istio.listen,
            "fronts.istio.mtls_listen": istio.mtls_listen or "",
            "admin.listen": self.admin.listen,
        }
        return [
            *self._unknown_issuing_cas(),
            *self._ambiguous_clusters(),
            *rule_problems(self.issuance, self._known()),
            *doubled(addresses),
        ]

    def _unknown_issuing_cas(self) -> list[Problem]:
        known = ", ".join(self.issuing_cas)
        return [
            (f"{path}[{index}]", name, f"a name under issuing_cas: {known}")
            for path, names in self.issuance.routes().items()
            for index, name in enumerate(names)
            if name not in self.issuing_cas
        ]

    def _known(self) -> Known:
        fronts = (name for name, front in self.fronts if front is not None)
        return Known(
            fronts=frozenset(fronts),
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
            listed(path, [_problem(item) for item in error.errors()])
        ) from None
    if problems := config.problems():
        raise ConfigError(listed(path, problems))
    # Not resolved: where the file is a symbolic link that is swapped, as Kubernetes
    # does, the folder that it stands in stays, and the folder behind it goes.
    config._path, config._base = path, path.absolute().parent  # noqa: SLF001 - no keys
    return config


def complain(path: Path, key: str, value: object, expected: str) -> ConfigError:
    """Build the error of one key: file, key path, value and expectation."""
    return ConfigError(listed(path, [(key, value, expected)]))


def _problem(item: Any) -> Problem:
    return problem_of(item, known_keys(BridgeConfig, item["loc"][:-1]))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
