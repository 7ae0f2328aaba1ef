"""Which issuing CAs the calls of each mesh can be led to, and on whose behalf.

For what is proven at load: that proxies of a mesh can verify a chain, and that a chain
permits the names of those who will be given certificates under it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from bridge.config import IssuanceConfig, RuleConfig
from bridge.config.consistency import listed
from bridge.config.first_match import FirstMatch
from bridge.policy.issuance_policy import IssuancePolicy

ISTIO, LINKERD = "istio", "linkerd"
Asking = Mapping[str, Collection[str]]
"""The fronts that are configured, each with the names of its callers' clusters."""


@dataclass(frozen=True, slots=True)
class Whom:
    """One of those who are led to an issuing CA; `None` is anybody."""

    namespace: str | None = None
    service_account: str | None = None


Routes = Mapping[str, Mapping[str, tuple[Whom, ...]]]
"""By front, the issuing CAs that some call by it can be led to, in order of preference;
for each of them one caller of each rule that leads there."""


def routes_of(config: IssuanceConfig, asking: Asking) -> Routes:
    """Find out where calls can be led.

    Args:
        config: The section, with its rules.
        asking: See there.
    """
    found: dict[str, dict[str, tuple[Whom, ...]]] = {}
    for front, clusters in asking.items():
        led = found[front] = {}
        for policy, whom in _policies(config, front, clusters):
            for name in _issuing_cas(policy, with_signers=front == ISTIO):
                led[name] = (*led.get(name, ()), whom)
    return found


def _policies(
    config: IssuanceConfig, front: str, clusters: Collection[str]
) -> Iterator[tuple[IssuancePolicy, Whom]]:
    top = IssuancePolicy.of(config)
    for rule in config.rules:
        if not rule.refuse and _is_for(rule, front, clusters):
            whom = Whom(_first(rule.namespaces), _first(rule.service_accounts))
            yield top.under(rule), whom
    match = FirstMatch([listed(rule) for rule in config.rules])
    others = ((front, cluster, None, None) for cluster in clusters)
    if not config.rules or None in map(match.index, others):
        yield top, Whom()


def _is_for(rule: RuleConfig, front: str, clusters: Collection[str]) -> bool:
    of_front = rule.fronts is None or front in rule.fronts
    return of_front and (
        rule.clusters is None or not set(rule.clusters).isdisjoint(clusters)
    )


def _issuing_cas(policy: IssuancePolicy, *, with_signers: bool) -> dict[str, None]:
    signers = policy.cert_signers.values() if with_signers else ()
    return dict.fromkeys(chain(policy.issuing_cas, *signers))


def _first(names: tuple[str, ...] | None) -> str | None:
    return names[0] if names else None
