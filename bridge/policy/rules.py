"""Which terms hold for whom: the ordered rules of `issuance`, ready to be asked.

The first rule that matches a caller holds, alone; whom none matches gets what the top
level of `issuance` says. Each rule's terms are made at load, so a request pays for one
look-up, and for nothing where there are no rules.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from bridge.config import IssuanceConfig, RuleConfig
from bridge.errors import DeniedError
from bridge.firstmatch import FirstMatch
from bridge.identity.caller import Caller
from bridge.policy.request import IssuancePolicy
from bridge.rulecheck import listed

ISTIO = "istio"
"""The front whose callers may name a signer."""
_ANYBODY = (None, None, None)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one configuration. Made by `of`; for all threads."""

    top: IssuancePolicy
    """For whom no rule matches."""
    _policies: Sequence[IssuancePolicy | None]
    """By rule; None where it refuses."""
    _match: FirstMatch | None
    routes: Mapping[str, tuple[str, ...]]
    """By front, each issuing CA that some call by it could be led to, in order."""

    @classmethod
    def of(
        cls, config: IssuanceConfig, asking: Mapping[str, Collection[str]]
    ) -> "Rules":
        """Take the rules out of the configuration.

        Args:
            config: The section.
            asking: The fronts that are configured, each with the names of the clusters
                whose callers it serves.
        """
        top = IssuancePolicy.of(config)
        policies = [None if rule.refuse else top.under(rule) for rule in config.rules]
        match = FirstMatch([listed(rule) for rule in config.rules])
        routes: dict[str, tuple[str, ...]] = {}
        for front, clusters in asking.items():
            found = [
                policy
                for rule, policy in zip(config.rules, policies, strict=True)
                if policy is not None and _is_for(rule, front, clusters)
            ]
            others = ((front, cluster, None, None) for cluster in clusters)
            if not config.rules or None in map(match.index, others):
                found.append(top)
            routes[front] = _issuing_cas(found, with_signers=front == ISTIO)
        return cls(top, policies, match if config.rules else None, routes)

    def policy_for(self, front: str, caller: Caller) -> IssuancePolicy:
        """Return the terms of a caller.

        Args:
            front: That the call came by.
            caller: Authenticated. One whose name is of no service account has no
                namespace, and matches no rule that lists some.

        Raises:
            DeniedError: A rule refuses this caller.
        """
        if self._match is None:
            return self.top
        index = self._match.index(
            (front, caller.cluster, caller.namespace, caller.service_account)
        )
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

    def policy_of(self, front: str) -> IssuancePolicy:
        """Return the terms of a front itself: of what it needs for itself.

        They are those of a caller whom no rule lists. Where such are refused, the top
        level's: a front that serves a few needs its own certificate all the same.
        """
        if self._match is None:
            return self.top
        index = self._match.index((front, *_ANYBODY))
        return (None if index is None else self._policies[index]) or self.top


def _is_for(rule: RuleConfig, front: str, clusters: Collection[str]) -> bool:
    of_front = rule.fronts is None or front in rule.fronts
    return of_front and (
        rule.clusters is None or not set(rule.clusters).isdisjoint(clusters)
    )


def _issuing_cas(
    policies: Sequence[IssuancePolicy], *, with_signers: bool
) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for policy in policies:
        names |= dict.fromkeys(policy.issuing_cas)
        if with_signers:
            names |= dict.fromkeys(chain(*policy.cert_signers.values()))
    return tuple(names)
