"""What is wrong with the rules of `issuance`, held against the rest of the file."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bridge.config.diagnostics import Plain, Problem
from bridge.config.first_match import FirstMatch, Listed
from bridge.config.terms import IssuanceConfig, RuleConfig
from bridge.config.types import written

_PLACE = "issuance.rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the other sections have."""

    asking: Mapping[str, Collection[str]]
    """The fronts that are configured, each with the clusters of its callers."""
    clusters: frozenset[str]
    aliases: Mapping[str, str]
    """Other names of clusters, with the name that counts."""


def listed(rule: RuleConfig) -> Listed:
    """Return what a rule lists: fronts, clusters, namespaces, service accounts."""
    return tuple(
        None if names is None else frozenset(names)
        for names in (
            rule.fronts,
            rule.clusters,
            rule.namespaces,
            rule.service_accounts,
        )
    )


def rule_problems(issuance: IssuanceConfig, known: Known) -> Iterator[Problem]:
    """Yield each rule's key that cannot be meant, and each rule that cannot match."""
    for index, rule in enumerate(issuance.rules):
        place = f"{_PLACE}[{index}]"
        yield from _unknown_names(place, rule, known)
        yield from _impossible_bounds(place, rule, issuance)
    yield from _idle(issuance.rules, known)


def _unknown_names(place: str, rule: RuleConfig, known: Known) -> Iterator[Problem]:
    for index, front in enumerate(rule.fronts or ()):
        if front not in known.asking:
            expected = f"expected a front that is configured: {_all(known.asking)}"
            yield f"{place}.fronts[{index}]", front, expected
    for index, name in enumerate(rule.clusters or ()):
        if name not in known.clusters:
            meant = known.aliases.get(name)
            expected = f"expected a name under clusters: {_all(known.clusters)}"
            if meant is not None:
                expected = (
                    f"expected the name of a cluster; this is an alias of {meant}"
                )
            yield f"{place}.clusters[{index}]", name, expected
    yield from _foreign_clusters(place, rule, known)


def _foreign_clusters(place: str, rule: RuleConfig, known: Known) -> Iterator[Problem]:
    fronts = known.asking.keys() & (rule.fronts or known.asking.keys())
    callers = {cluster for front in fronts for cluster in known.asking[front]}
    named = known.clusters & set(rule.clusters or ())
    if named and callers and not named & callers:
        expected = (
            f"expected a cluster whose callers ask by {_all(fronts)}: {_all(callers)}"
        )
        yield f"{place}.clusters", rule.clusters, expected


def _impossible_bounds(
    place: str, rule: RuleConfig, issuance: IssuanceConfig
) -> Iterator[Problem]:
    low = issuance.min_ttl if rule.min_ttl is None else rule.min_ttl
    high = issuance.max_ttl if rule.max_ttl is None else rule.max_ttl
    if low < issuance.min_ttl:
        expected = (
            f"expected no less than issuance.min_ttl, {written(issuance.min_ttl)}"
        )
        yield f"{place}.min_ttl", Plain(written(low)), expected
    if high > issuance.max_ttl:
        expected = (
            f"expected no more than issuance.max_ttl, {written(issuance.max_ttl)}"
        )
        yield f"{place}.max_ttl", Plain(written(high)), expected
    if low > high:
        key = "min_ttl" if rule.max_ttl is None else "max_ttl"
        expected = (
            "expected min_ttl <= max_ttl, with the top level's where one is left out"
        )
        found = f"min_ttl {written(low)}, max_ttl {written(high)}"
        yield f"{place}.{key}", Plain(found), expected
    elif rule.default_ttl is not None and not low <= rule.default_ttl <= high:
        expected = (
            f"expected {written(low)} to {written(high)}, the bounds of this rule"
        )
        yield f"{place}.default_ttl", Plain(written(rule.default_ttl)), expected


def _idle(rules: Sequence[RuleConfig], known: Known) -> Iterator[Problem]:
    """Yield rules that earlier ones leave nobody to."""
    match = FirstMatch([listed(rule) for rule in rules])
    every = (frozenset(known.asking), known.clusters, None, None)
    for index in range(len(rules)):
        covering = sorted(match.covering(index, every))
        if covering:
            names = " and ".join(f"{_PLACE}[{earlier}]" for earlier in covering)
            expected = (
                "expected callers whom no earlier rule matches; all of these are "
                f"matched by {names}: put the narrower rule first, or take it out"
            )
            yield f"{_PLACE}[{index}]", Plain("a rule without effect"), expected


def _all(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
