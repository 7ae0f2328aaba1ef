"""Finds out which cluster would take a token, as which workload, and by which rule.

Opens no backend: only the configuration and the token keys are read.
"""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bridge.checks.findings import Finding
from bridge.checks.rule_summary import describe_policy
from bridge.config import BridgeConfig, read
from bridge.errors import AuthenticationError, BridgeError, ConfigError
from bridge.identity.caller import Caller, TokenCredential
from bridge.identity.clusters import ClusterRegistry
from bridge.identity.service_account_token import LONGEST_TOKEN, shown, unverified
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rules import ISTIO, LINKERD, Rules
from bridge.resilience.budget import Budget
from bridge.system.clock import Clock, system_clock
from bridge.system.files import failure_text

_PART = "token"
_CLAIMS = ("iss", "sub", "aud", "kid", "alg")
_SECONDS = 10.0
_MARGIN = 1024
"""Bytes of white space around a token."""


def check_token(
    path: Path, token_file: Path, clock: Clock = system_clock
) -> list[Finding]:
    """Return what each front and cluster would do with a token.

    Args:
        path: The configuration file.
        token_file: Has the token; white space around it does not count.
        clock: The time that the token is judged at.

    Returns:
        What the token says, then a finding for each front and each cluster of its
        callers. If none takes the token, all of these are `FAILED`.

    Raises:
        ConfigError: The configuration, a key file or the token file cannot be read.
    """
    config, token = read(path), _read(token_file)
    try:
        clusters = ClusterRegistry(config, clock=clock)
    except ConfigError as error:
        lines = (f"{path}: {line}" for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from error
    with closing(clusters):
        judge = _Judge(
            config,
            clusters,
            Rules.of(config.issuance, config.callers_by_front()),
            LinkerdNames.of(config),
        )
        verdicts = [*judge.verdicts(token, clock())]
    if any(verdict.result == "ok" for verdict in verdicts):
        # A token is for one cluster, and for the audience of one front.
        verdicts = [
            replace(verdict, result="note") if verdict.result == "FAILED" else verdict
            for verdict in verdicts
        ]
    return [*_claims(token), *verdicts]


def _read(path: Path) -> str:
    try:
        # Not by `read_public`: a shell may hand the token over in a pipe.
        with path.open("rb") as file:
            content = file.read(LONGEST_TOKEN + _MARGIN)
    except OSError as error:
        reason = failure_text(path, error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    token = content.decode("utf-8", "replace").strip()
    if not token:
        raise ConfigError(f"{path}: expected a token, found nothing")
    return token


def _claims(token: str) -> Iterator[Finding]:
    try:
        found = unverified(token)
    except AuthenticationError:
        return  # each verdict says so
    told = [f"{name} {shown(found[name])}" for name in _CLAIMS if name in found]
    if isinstance(expires := found.get("exp"), int):
        with suppress(ValueError, OverflowError, OSError):
            told.append(
                f"exp {datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ}"
            )
    yield Finding(_PART, "it says", "note", f"{', '.join(told)} (not verified)")


@dataclass(frozen=True, slots=True)
class _Judge:
    config: BridgeConfig
    clusters: ClusterRegistry
    rules: Rules
    linkerd: LinkerdNames | None

    def verdicts(self, token: str, now: datetime) -> Iterator[Finding]:
        fronts = {
            "istio": self.config.fronts.istio,
            "linkerd": self.config.fronts.linkerd,
        }
        for front, names in self.config.callers_by_front().items():
            section = fronts[front]
            audiences = frozenset(section.audiences) if section else frozenset()
            for name in names:
                what = f"{front}, cluster {name}"
                credential = TokenCredential((f"Bearer {token}",), (name,))
                try:
                    caller = self.clusters.identify(
                        credential,
                        audiences=audiences,
                        now=now,
                        budget=Budget.of_seconds(_SECONDS),
                    )
                    yield Finding(_PART, what, "ok", self._granted(front, caller))
                except BridgeError as error:
                    why = f" ({error.detail})" if error.detail else ""
                    yield Finding(_PART, what, "FAILED", f"{error.rule}: {error}{why}")

    def _granted(self, front: str, caller: Caller) -> str:
        identity = str(caller.spiffe_id)
        if front == LINKERD and self.linkerd is not None:
            identity = self.linkerd.identity(caller.namespace, caller.service_account)
            self.linkerd.leaf_names(identity, caller.spiffe_id)
        self.clusters.require_allowed(caller)
        policy = self.rules.policy_for(front, caller)
        index = self.rules.index_for(front, caller)
        rule = "issuance, no rule" if index is None else f"issuance.rules[{index}]"
        pod = f", pod {caller.pod}" if caller.pod.name else ""
        others = self._others(caller) if front == ISTIO else ""
        return f"{identity}{pod}, by {rule}: {describe_policy(policy)}{others}"

    def _others(self, caller: Caller) -> str:
        try:
            budget = Budget.of_seconds(_SECONDS)
            node = self.clusters.node_of(caller, budget=budget)
        except BridgeError as error:
            why = f" ({error.detail})" if error.detail else ""
            return f"; for other workloads: {error.rule}: {error}{why}"
        return f"; for other workloads: those with a pod on {node}" if node else ""
