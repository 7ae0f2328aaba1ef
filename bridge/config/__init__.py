"""The configuration file, as one frozen value.

The face of the package: other packages import from here.
"""

from bridge.config.clusters import (
    APIServerConfig,
    BoundConfig,
    ClusterConfig,
    JWKSConfig,
    RemoteSecretsConfig,
    TokenReviewConfig,
)
from bridge.config.consistency import SECTIONS
from bridge.config.load import (
    ConfigText,
    PartialConfig,
    parse,
    read,
    read_sections,
)
from bridge.config.schema import (
    BridgeConfig,
    CeilingConfig,
    IssuanceConfig,
    IssuingCAConfig,
    IstioConfig,
    LagConfig,
    LedgerConfig,
    LimitsConfig,
    LinkerdConfig,
    RenewalConfig,
    RuleConfig,
    ServingConfig,
)

__all__ = [
    "SECTIONS",
    "APIServerConfig",
    "BoundConfig",
    "BridgeConfig",
    "CeilingConfig",
    "ClusterConfig",
    "ConfigText",
    "IssuanceConfig",
    "IssuingCAConfig",
    "IstioConfig",
    "JWKSConfig",
    "LagConfig",
    "LedgerConfig",
    "LimitsConfig",
    "LinkerdConfig",
    "PartialConfig",
    "RemoteSecretsConfig",
    "RenewalConfig",
    "RuleConfig",
    "ServingConfig",
    "TokenReviewConfig",
    "parse",
    "read",
    "read_sections",
]
