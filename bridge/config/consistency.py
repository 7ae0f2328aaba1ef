"""Checks of the configuration that need more than one section.

A check names the sections that it needs. Of a file that has errors, only those checks
run whose sections could be read.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from bridge.config.clusters import JWKSConfig
from bridge.config.diagnostics import Plain, Problem
from bridge.config.first_match import FirstMatch
from bridge.config.schema import BridgeConfig, RuleConfig
from bridge.config.types import written
from bridge.dns_names import LONGEST, is_host
from bridge.resilience.bulkhead import shared_places_of

SECTIONS = frozenset(BridgeConfig.model_fields)
"""The top-level keys of the file."""
_RULES = "issuance.rules"
_EVERY_HOST = frozenset({"0.0.0.0", "[::]", "::", "*"})  # noqa: S104 - compared only
_Check = Callable[[BridgeConfig], Iterator[Problem]]


def consistency_problems(
    config: BridgeConfig, sections: Collection[str] = SECTIONS
) -> Iterator[Problem]:
    """Yield what only shows when sections are compared with each other.

    Args:
        config: Has at least `sections`.
        sections: The top-level keys that could be read.
    """
    for check, needed in _CHECKS.items():
        if needed.issubset(sections):
            yield from check(config)


# References between sections.


def _unknown_issuing_cas(config: BridgeConfig) -> Iterator[Problem]:
    known = ", ".join(config.issuing_cas)
    for path, names in config.issuance.routes().items():
        for index, name in enumerate(names):
            if name not in config.issuing_cas:
                expected = f"expected a name under issuing_cas: {known}"
                yield f"{path}[{index}]", name, expected


def _ambiguous_clusters(config: BridgeConfig) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, cluster in enumerate(config.clusters):
        for name in (cluster.name, *cluster.aliases):
            if name in seen:
                expected = "expected each name and alias in one cluster only"
                yield f"clusters[{index}]", name, expected
            seen.add(name)


def _no_remote_secrets(config: BridgeConfig) -> Iterator[Problem]:
    for index, cluster in enumerate(config.clusters):
        tokens = cluster.tokens
        is_wanted = not isinstance(tokens, JWKSConfig) and tokens.remote_secret
        if is_wanted and config.remote_secrets is None:
            expected = "expected remote_secrets, which says where the secrets are"
            yield f"clusters[{index}].tokens.remote_secret", True, expected


def _too_few_threads(config: BridgeConfig) -> Iterator[Problem]:
    asked = sum(one.tokens.verify != "jwks" for one in config.clusters)
    threads = config.limits.threads
    if asked > shared_places_of(threads):
        expected = (
            f"expected at least {2 * asked}: each of the {asked} clusters whose API "
            "server is asked needs a thread of its own, and half of the threads are "
            "for calls that need no API server"
        )
        yield "limits.threads", threads, expected


def _unknown_linkerd_cluster(config: BridgeConfig) -> Iterator[Problem]:
    front = config.fronts.linkerd
    if front is not None and config.linkerd_cluster() is None:
        known = ", ".join(cluster.name for cluster in config.clusters)
        expected = f"expected a name under clusters: {known}"
        yield "fronts.linkerd.cluster", front.cluster, expected


def _events_without_a_server(config: BridgeConfig) -> Iterator[Problem]:
    front, cluster = config.fronts.linkerd, config.linkerd_cluster()
    if front is None or cluster is None or not front.events:
        return
    if "events" in front.model_fields_set and cluster.tokens.verify == "jwks":
        expected = (
            f"expected tokens.verify: token_review or bound of cluster {cluster.name}: "
            "with keys alone, no API server is named that would take events"
        )
        yield "fronts.linkerd.events", front.events, expected


def _wrong_linkerd_names(config: BridgeConfig) -> Iterator[Problem]:
    front = config.fronts.linkerd
    if front is None:
        return
    domain = config.linkerd_trust_domain()
    if not is_host(domain):
        expected = (
            "expected a trust domain that is a DNS name: Linkerd's identities are"
        )
        yield "fronts.linkerd.trust_domain", domain, expected
    shortest = f"a.b.serviceaccount.identity.{front.control_plane_namespace}.{domain}"
    if is_host(domain) and len(shortest) > LONGEST:
        expected = (
            "expected a shorter trust domain: every identity would be longer than "
            f"{LONGEST} characters, the most that a DNS name has"
        )
        yield "fronts.linkerd.trust_domain", domain, expected
    of_istio = {config.trust_domain_of(cluster) for cluster in config.clusters}
    if front.spiffe_uri and config.fronts.istio and domain in of_istio:
        expected = (
            "expected false, or another fronts.linkerd.trust_domain: the Istio "
            f"front issues SPIFFE IDs of {domain} under the same trust anchors, "
            "and a peer of either mesh could not tell the two apart"
        )
        yield "fronts.linkerd.spiffe_uri", front.spiffe_uri, expected


def _short_serving_certificate(config: BridgeConfig) -> Iterator[Problem]:
    ttl = config.fronts.istio.tls.ttl if config.fronts.istio else None
    backdate = config.issuance.backdate
    if ttl is not None and ttl <= backdate:
        expected = (
            f"expected more than issuance.backdate ({written(backdate)}): half of "
            "its life would be over when it is issued"
        )
        yield "fronts.istio.tls.ttl", ttl, expected


def _shared_addresses(config: BridgeConfig) -> Iterator[Problem]:
    addresses = {**config.fronts.addresses(), **config.admin.addresses()}
    # Port 0 is another one each time, and some hosts are every host.
    before: list[tuple[str, str, str]] = []
    for key, address in addresses.items():
        host, _, port = address.rpartition(":")
        port = str(int(port))
        if port == "0":
            continue
        for other, other_host, other_port in before:
            same = host == other_host or not _EVERY_HOST.isdisjoint({host, other_host})
            if port == other_port and same:
                yield key, address, f"expected another port than that of {other}"
        before.append((key, host, port))


# Rules of `issuance`.


def _unknown_names_of_rules(config: BridgeConfig) -> Iterator[Problem]:
    fronts = config.callers_by_front()
    clusters = [cluster.name for cluster in config.clusters]
    names = {
        alias: cluster.name for cluster in config.clusters for alias in cluster.aliases
    }
    for place, rule in _rules(config):
        for index, front in enumerate(rule.fronts or ()):
            if front not in fronts:
                expected = f"expected a front that is configured: {_all(fronts)}"
                yield f"{place}.fronts[{index}]", front, expected
        for index, name in enumerate(rule.clusters or ()):
            if name in clusters:
                continue
            expected = f"expected a name under clusters: {_all(clusters)}"
            if name in names:
                expected = (
                    f"expected the name of a cluster; this is an alias of {names[name]}"
                )
            yield f"{place}.clusters[{index}]", name, expected


def _clusters_without_the_front(config: BridgeConfig) -> Iterator[Problem]:
    callers = config.callers_by_front()
    clusters = {cluster.name for cluster in config.clusters}
    for place, rule in _rules(config):
        fronts = callers.keys() & (rule.fronts or callers.keys())
        possible = {cluster for front in fronts for cluster in callers[front]}
        named = clusters & set(rule.clusters or ())
        if named and possible and named.isdisjoint(possible):
            expected = (
                f"expected a cluster whose callers use {_all(fronts)}: {_all(possible)}"
            )
            yield f"{place}.clusters", rule.clusters, expected


def _impossible_limits_of_rules(config: BridgeConfig) -> Iterator[Problem]:
    top = config.issuance
    for place, rule in _rules(config):
        low = top.min_ttl if rule.min_ttl is None else rule.min_ttl
        high = top.max_ttl if rule.max_ttl is None else rule.max_ttl
        if low < top.min_ttl:
            expected = f"expected no less than issuance.min_ttl, {written(top.min_ttl)}"
            yield f"{place}.min_ttl", Plain(written(low)), expected
        if high > top.max_ttl:
            expected = f"expected no more than issuance.max_ttl, {written(top.max_ttl)}"
            yield f"{place}.max_ttl", Plain(written(high)), expected
        if low > high:
            key = "min_ttl" if rule.max_ttl is None else "max_ttl"
            expected = (
                "expected min_ttl <= max_ttl; a key that is left out has the top "
                "level's value"
            )
            found = f"min_ttl {written(low)}, max_ttl {written(high)}"
            yield f"{place}.{key}", Plain(found), expected
        elif rule.default_ttl is not None and not low <= rule.default_ttl <= high:
            expected = (
                f"expected {written(low)} to {written(high)}, the limits of this rule"
            )
            yield f"{place}.default_ttl", Plain(written(rule.default_ttl)), expected


def _rules_that_never_match(config: BridgeConfig) -> Iterator[Problem]:
    match = FirstMatch([rule.conditions for rule in config.issuance.rules])
    clusters = frozenset(cluster.name for cluster in config.clusters)
    every = (frozenset(config.callers_by_front()), clusters, None, None)
    for index, (place, _) in enumerate(_rules(config)):
        if covering := sorted(match.covering(index, every)):
            names = " and ".join(f"{_RULES}[{earlier}]" for earlier in covering)
            expected = (
                "expected callers that no earlier rule matches; all of these are "
                f"matched by {names}: put the narrower rule first, or remove it"
            )
            yield place, Plain("a rule that can never match"), expected


def _rules(config: BridgeConfig) -> Iterator[tuple[str, RuleConfig]]:
    for index, rule in enumerate(config.issuance.rules):
        yield f"{_RULES}[{index}]", rule


def _all(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


# Clusters whose callers a client certificate does not tell apart. A certificate has
# trust domain, namespace and service account, and not the cluster of its workload.
# Where two clusters may have the same name, a rule for one of them would end with the
# first certificate.


@dataclass(frozen=True, slots=True)
class _Pair:
    # Two clusters of one trust domain, and the namespaces that both may have; `None` is
    # all.
    names: tuple[str, str]
    keys: tuple[str, str]
    both: frozenset[str] | None

    def is_split_by(self, rule: RuleConfig) -> bool:
        # Whether a certificate that both may have would escape the rule.
        if rule.clusters is None or "istio" not in (rule.fronts or ("istio",)):
            return False
        listed = [name in rule.clusters for name in self.names]
        return any(listed) and not all(listed) and self.shared_by(rule) != frozenset()

    def shared_by(self, rule: RuleConfig) -> frozenset[str] | None:
        listed = None if rule.namespaces is None else frozenset(rule.namespaces)
        return _common(self.both, listed)

    def explain(self, shared: frozenset[str] | None, what: str) -> str:
        one, other = self.keys
        namespace = "any namespace" if shared is None else f"namespace {min(shared)}"
        return (
            f"{' and '.join(self.names)}: a client certificate does not identify its "
            "cluster. With fronts.istio.mtls_listen, clusters that share a trust "
            f"domain and a namespace (here {namespace}) must share {what}. Let "
            f"{one}.trust_domain and {other}.trust_domain differ, let {one}.namespaces "
            f"and {other}.namespaces have none in common, or remove mtls_listen"
        )


def _rules_that_certificates_escape(config: BridgeConfig) -> Iterator[Problem]:
    pairs = list(_indistinguishable_clusters(config))
    for place, rule in _rules(config):
        split = next((pair for pair in pairs if pair.is_split_by(rule)), None)
        if split is not None:
            told = split.explain(split.shared_by(rule), "their rules")
            expected = f"expected both or neither of {told}"
            yield f"{place}.clusters", rule.clusters, expected


def _limits_that_certificates_escape(config: BridgeConfig) -> Iterator[Problem]:
    pair = next(_indistinguishable_clusters(config), None)
    if config.limits.per_cluster is not None and pair is not None:
        told = pair.explain(pair.both, "a rate limit")
        expected = f"expected no rate limit for each of {told}"
        yield "limits.per_cluster", Plain("a rate limit for each cluster"), expected


def _indistinguishable_clusters(config: BridgeConfig) -> Iterator[_Pair]:
    istio = config.fronts.istio
    if istio is None or istio.mtls_listen is None:
        return
    entries = [
        (cluster, f"clusters[{index}]", cluster.allowed_namespaces(is_first=not index))
        for index, cluster in enumerate(config.clusters)
    ]
    for (one, key, allowed), (other, other_key, other_allowed) in combinations(
        entries, 2
    ):
        both = _common(allowed, other_allowed)
        same = config.trust_domain_of(one) == config.trust_domain_of(other)
        if same and both != frozenset():
            yield _Pair((one.name, other.name), (key, other_key), both)


def _common(
    one: frozenset[str] | None, other: frozenset[str] | None
) -> frozenset[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


_CHECKS: Mapping[_Check, frozenset[str]] = {
    _unknown_issuing_cas: frozenset({"issuance", "issuing_cas"}),
    _ambiguous_clusters: frozenset({"clusters"}),
    _no_remote_secrets: frozenset({"clusters", "remote_secrets"}),
    _too_few_threads: frozenset({"clusters", "limits"}),
    _unknown_linkerd_cluster: frozenset({"fronts", "clusters"}),
    _events_without_a_server: frozenset({"fronts", "clusters"}),
    _wrong_linkerd_names: frozenset({"fronts", "clusters", "trust_domain"}),
    _unknown_names_of_rules: frozenset({"issuance", "fronts", "clusters"}),
    _clusters_without_the_front: frozenset({"issuance", "fronts", "clusters"}),
    _impossible_limits_of_rules: frozenset({"issuance"}),
    _rules_that_never_match: frozenset({"issuance", "fronts", "clusters"}),
    _rules_that_certificates_escape: frozenset(
        {"issuance", "fronts", "clusters", "trust_domain"}
    ),
    _limits_that_certificates_escape: frozenset(
        {"limits", "fronts", "clusters", "trust_domain"}
    ),
    _short_serving_certificate: frozenset({"fronts", "issuance"}),
    _shared_addresses: frozenset({"fronts", "admin"}),
}
"""Each check, with the sections that it needs."""
