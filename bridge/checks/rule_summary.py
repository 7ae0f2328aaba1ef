"""Describes the rules of `issuance` in words, and the default of each front."""

from collections.abc import Iterator

from bridge.config import BridgeConfig, RuleConfig
from bridge.config.types import written
from bridge.policy.issuance_policy import IssuancePolicy
from bridge.policy.rules import Rules

_MOST_NAMES = 4


def rule_summary(config: BridgeConfig, rules: Rules) -> Iterator[tuple[str, str]]:
    """Yield each rule, then the default of each front for callers that no rule lists.

    Args:
        config: The whole configuration.
        rules: The rules of that configuration, prepared for look-ups.

    Returns:
        The callers, and what they get; both for people.
    """
    for index, rule in enumerate(config.issuance.rules):
        what = (
            "no certificate" if rule.refuse else describe_policy(rules.top.under(rule))
        )
        yield f"rules[{index}]: {_callers(rule)}", what
    for front in config.callers_by_front():
        policy = rules.of_others(front)
        others = "everybody else" if config.issuance.rules else "everybody"
        yield (
            f"{front}: {others}",
            describe_policy(policy) if policy else "no certificate",
        )


def describe_policy(policy: IssuancePolicy) -> str:
    """Return what a caller of this policy gets, in words."""
    excess = "refused" if policy.on_excess_ttl == "refuse" else "clamped"
    bounds = f"{written(policy.min_ttl)} to {written(policy.max_ttl)}"
    parts = [
        f"issuing CA {', then '.join(policy.issuing_cas)}",
        f"{written(policy.default_ttl)} by default, {bounds}, beyond that {excess}",
    ]
    parts += [
        f"CertSigner {signer}: {', then '.join(names) or 'refused'}"
        for signer, names in policy.cert_signers.items()
    ]
    return "; ".join(parts)


def _callers(rule: RuleConfig) -> str:
    lists = {
        "": rule.fronts,
        "cluster": rule.clusters,
        "namespace": rule.namespaces,
        "service account": rule.service_accounts,
    }
    parts = [
        f"{what} {_some(names)}".strip()
        for what, names in lists.items()
        if names is not None
    ]
    return ", ".join(parts) or "everybody"


def _some(names: tuple[str, ...]) -> str:
    shown = "|".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
