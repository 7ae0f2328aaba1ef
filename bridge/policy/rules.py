"""The ordered rules of `issuance`: which policy applies to a caller.

The first rule that matches a caller applies, alone. If none matches, the top level of
`issuance` applies. The policy of each rule is built at load, so a request costs one
look-up, and none where there are no rules.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from bridge.config import IssuanceConfig, RuleConfig
from bridge.config.first_match import FirstMatch
from bridge.errors import DeniedError
from bridge.identity.caller import Caller
from bridge.policy.issuance_policy import IssuancePolicy

ISTIO, LINKERD = "istio", "linkerd"
CallersByFront = Mapping[str, Collection[str]]
"""The fronts that are configured, each with the names of its callers' clusters."""


@dataclass(frozen=True, slots=True)
class RoutedCaller:
    """Callers that a rule routes to an issuing CA; `None` stands for any."""

    namespace: str | None = None
    service_account: str | None = None


Routes = Mapping[str, Mapping[str, tuple[RoutedCaller, ...]]]
"""By front, the issuing CAs that its calls can reach, in order of preference. Each has
one caller of every rule that routes to it."""


def routes_of(config: IssuanceConfig, callers: CallersByFront) -> Routes:
    """Return the issuing CAs that the calls of each front can reach.

    Args:
        config: The section, with its rules.
        callers: The fronts that are configured, with the clusters of their callers.
    """
    found: dict[str, dict[str, tuple[RoutedCaller, ...]]] = {one: {} for one in callers}
    for front, name, caller, _ in _led(config, callers):
        found[front][name] = (*found[front].get(name, ()), caller)
    return found


def _longest_ttls(
    config: IssuanceConfig, callers: CallersByFront
) -> dict[str, timedelta]:
    found: dict[str, timedelta] = {}
    for _, name, _, longest in _led(config, callers):
        found[name] = max(longest, found.get(name, timedelta()))
    return found


def _led(
    config: IssuanceConfig, callers: CallersByFront
) -> Iterator[tuple[str, str, RoutedCaller, timedelta]]:
    # Front, issuing CA, a caller that is led to it, and the caller's longest lifetime.
    for front, clusters in callers.items():
        for policy, caller in _policies(config, front, clusters):
            signers = policy.cert_signers.values() if front == ISTIO else ()
            for name in dict.fromkeys(chain(policy.issuing_cas, *signers)):
                yield front, name, caller, policy.max_ttl


def _policies(
    config: IssuanceConfig, front: str, clusters: Collection[str]
) -> Iterator[tuple[IssuancePolicy, RoutedCaller]]:
    top = IssuancePolicy.of(config)
    for rule in config.rules:
        if not rule.refuse and _is_for(rule, front, clusters):
            caller = RoutedCaller(
                _first(rule.namespaces), _first(rule.service_accounts)
            )
            yield top.under(rule), caller
    match = FirstMatch([rule.conditions for rule in config.rules])
    others = ((front, cluster, None, None) for cluster in clusters)
    if not config.rules or None in map(match.index, others):
        yield top, RoutedCaller()


def _is_for(rule: RuleConfig, front: str, clusters: Collection[str]) -> bool:
    of_front = rule.fronts is None or front in rule.fronts
    return of_front and (
        rule.clusters is None or not set(rule.clusters).isdisjoint(clusters)
    )


def _first(names: tuple[str, ...] | None) -> str | None:
    return names[0] if names else None


_ANYBODY = (None, None, None)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one configuration. Made by `of`; for all threads."""

    top: IssuancePolicy
    """The policy of a caller that no rule matches."""
    _policies: Sequence[IssuancePolicy | None]
    """The policy of each rule; None where the rule refuses."""
    _match: FirstMatch | None
    routes: Routes
    longest_ttls: Mapping[str, timedelta]
    """The longest lifetime that callers can get of an issuing CA, by its name. An
    issuing CA that no call can reach is absent."""

    @classmethod
    def of(cls, config: IssuanceConfig, callers: CallersByFront) -> "Rules":
        """Build the rules of a configuration.

        Args:
            config: The section.
            callers: The fronts that are configured, with the clusters of their callers.
        """
        top = IssuancePolicy.of(config)
        policies = [None if rule.refuse else top.under(rule) for rule in config.rules]
        match = FirstMatch([rule.conditions for rule in config.rules])
        return cls(
            top,
            policies,
            match if config.rules else None,
            routes_of(config, callers),
            _longest_ttls(config, callers),
        )

    def policy_for(self, front: str, caller: Caller) -> IssuancePolicy:
        """Return the policy of a caller.

        Args:
            front: The front of the call.
            caller: The authenticated caller. Without a service account it has no
                namespace, and matches no rule that lists namespaces.

        Raises:
            DeniedError: A rule refuses this caller.
        """
        index = self.index_for(front, caller)
        if index is None:
            return self.top
        policy = self._policies[index]
        if policy is None:
            raise DeniedError(
                "the configuration refuses certificates to this caller",
                rule="rule.refuse",
                detail=f"issuance.rules[{index}]",
            )
        return policy

    def index_for(self, front: str, caller: Caller) -> int | None:
        """Return the index of the rule that applies to a caller; None: the top level.

        Args:
            front: The front of the call.
            caller: As for `policy_for`.
        """
        if self._match is None:
            return None
        return self._match.index(
            (front, caller.cluster, caller.namespace, caller.service_account)
        )

    def of_others(self, front: str) -> IssuancePolicy | None:
        """Return the policy of callers that no rule lists; None if they are refused."""
        if self._match is None:
            return self.top
        index = self._match.index((front, *_ANYBODY))
        return self.top if index is None else self._policies[index]

    def policy_of(self, front: str) -> IssuancePolicy:
        """Return the policy of the front's own certificates.

        It is the policy of a caller that no rule lists. If a rule refuses those, it is
        the top level's: the front needs its own certificate all the same.
        """
        return self.of_others(front) or self.top
