"""The configuration file, as one frozen value.

The face of the package: other packages import from here.
"""

from bridge.config.load import (
    BridgeConfig,
    CeilingConfig,
    ClusterConfig,
    ConfigText,
    IssuanceConfig,
    IssuingCAConfig,
    IstioConfig,
    LagConfig,
    LedgerConfig,
    LimitsConfig,
    LinkerdConfig,
    RuleConfig,
    ServingConfig,
    TokensConfig,
    complain,
    parse,
    read,
    rest,
)

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
