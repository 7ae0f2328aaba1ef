"""Clusters whose callers a client certificate cannot tell apart.

A certificate says trust domain, namespace and service account, and not which cluster
its workload is of. Where two clusters may have the same name, what the configuration
says of one of them cannot be held to: it would end with the first certificate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from bridge.config.diagnostics import Plain, Problem
from bridge.config.schema import ClusterConfig, LimitsConfig
from bridge.config.terms import RuleConfig

Namespaces = frozenset[str] | None
"""`None` is all."""


@dataclass(frozen=True, slots=True)
class _Pair:
    # Two clusters of one trust domain, and the namespaces that both may have.
    names: tuple[str, str]
    keys: tuple[str, str]
    both: Namespaces


def namespaces_of(cluster: ClusterConfig, index: int) -> Namespaces:
    """Return the namespaces that a cluster's callers may have names of.

    Args:
        cluster: One of the configuration.
        index: Where it stands in the list.
    """
    # Deny by default: the namespaces of another cluster are other people's.
    allowed = cluster.namespaces
    if allowed is None:
        allowed = ("*",) if index == 0 else ()
    return None if "*" in allowed else frozenset(allowed)


def alike_problems(
    clusters: Sequence[ClusterConfig],
    trust_domains: Sequence[str],
    rules: Sequence[RuleConfig],
    limits: LimitsConfig,
) -> Iterator[Problem]:
    """Yield what tells clusters apart that certificates do not.

    Only for a configuration that takes client certificates as credentials.

    Args:
        clusters: All of them.
        trust_domains: Of each.
        rules: All of them.
        limits: The section.
    """
    pairs = list(_pairs(clusters, trust_domains))
    for index, rule in enumerate(rules):
        split = next((pair for pair in pairs if _splits(rule, pair)), None)
        if split is not None:
            shared = _common(split.both, _set(rule.namespaces))
            expected = f"expected both or neither of {_told(split, shared)}"
            yield f"issuance.rules[{index}].clusters", rule.clusters, expected
    if limits.per_cluster is not None and pairs:
        told = _told(pairs[0], pairs[0].both)
        expected = f"expected no ceiling that tells apart {told}"
        yield "limits.per_cluster", Plain("a ceiling for each cluster"), expected


def _pairs(
    clusters: Sequence[ClusterConfig], trust_domains: Sequence[str]
) -> Iterator[_Pair]:
    allowed = [namespaces_of(one, index) for index, one in enumerate(clusters)]
    for one, other in combinations(range(len(clusters)), 2):
        both = _common(allowed[one], allowed[other])
        if trust_domains[one] == trust_domains[other] and both != frozenset():
            yield _Pair(
                (clusters[one].name, clusters[other].name),
                (f"clusters[{one}]", f"clusters[{other}]"),
                both,
            )


def _splits(rule: RuleConfig, pair: _Pair) -> bool:
    is_asked = rule.fronts is None or "istio" in rule.fronts
    if rule.clusters is None or not is_asked:
        return False
    listed = [name in rule.clusters for name in pair.names]
    is_met = _common(pair.both, _set(rule.namespaces)) != frozenset()
    return is_met and any(listed) and not all(listed)


def _common(one: Namespaces, other: Namespaces) -> Namespaces:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _set(names: Sequence[str] | None) -> Namespaces:
    return None if names is None else frozenset(names)


def _told(pair: _Pair, both: Namespaces) -> str:
    what = "any namespace" if both is None else f"the namespace {min(both)}"
    one, other = pair.names
    either = " and ".join(f"{key}.trust_domain" for key in pair.keys)
    names = " and ".join(f"{key}.namespaces" for key in pair.keys)
    return (
        f"{one} and {other}: a client certificate at fronts.istio.mtls_listen with "
        f"{what} may be of either; otherwise let {either} differ, or let {names} have "
        "none in common, or take mtls_listen out"
    )
