"""Which terms hold for whom: the ordered rules of `issuance`, ready to be asked.

The first rule that matches a caller holds, alone; whom none matches gets what the top
level of `issuance` says. Each rule's terms are made at load, so a request pays for one
look-up, and for nothing where there are no rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.config import IssuanceConfig
from bridge.config.consistency import listed
from bridge.config.first_match import FirstMatch
from bridge.errors import DeniedError
from bridge.identity.caller import Caller
from bridge.policy.issuance_policy import IssuancePolicy
from bridge.policy.routes import Asking, Routes, routes_of

_ANYBODY = (None, None, None)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one configuration. Made by `of`; for all threads."""

    top: IssuancePolicy
    """For whom no rule matches."""
    _policies: Sequence[IssuancePolicy | None]
    """By rule; None where it refuses."""
    _match: FirstMatch | None
    routes: Routes
    reachable: Mapping[str, tuple[str, ...]]
    """By front, the names of all issuing CAs in its routes."""

    @classmethod
    def of(cls, config: IssuanceConfig, asking: Asking) -> "Rules":
        """Take the rules out of the configuration.

        Args:
            config: The section.
            asking: The fronts that are configured, with the clusters of their callers.
        """
        top = IssuancePolicy.of(config)
        policies = [None if rule.refuse else top.under(rule) for rule in config.rules]
        match = FirstMatch([listed(rule) for rule in config.rules])
        routes = routes_of(config, asking)
        return cls(
            top,
            policies,
            match if config.rules else None,
            routes,
            {front: tuple(led) for front, led in routes.items()},
        )

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

    def of_others(self, front: str) -> IssuancePolicy | None:
        """Return the terms of whom no rule lists; None where such are refused."""
        if self._match is None:
            return self.top
        index = self._match.index((front, *_ANYBODY))
        return self.top if index is None else self._policies[index]

    def policy_of(self, front: str) -> IssuancePolicy:
        """Return the terms of a front itself: of what it needs for itself.

        They are those of a caller whom no rule lists. Where such are refused, the top
        level's: a front that serves a few needs its own certificate all the same.
        """
        return self.of_others(front) or self.top
