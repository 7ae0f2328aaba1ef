"""Which terms hold for whom; that a file with impossible rules is refused is in
`tests/unit/test_rulecheck.py`."""

from datetime import timedelta
from typing import Any

import pytest

from bridge.config import IssuanceConfig
from bridge.errors import DeniedError, RequestError
from bridge.identity.caller import Caller
from bridge.policy.request import IssuancePolicy
from bridge.policy.rules import Rules
from bridge.spiffe import SpiffeID

TOP: dict[str, Any] = {
    "min_ttl": "5m",
    "default_ttl": "12h",
    "max_ttl": "24h",
    "issuing_cas": ["a", "b"],
    "cert_signers": {"istio.io/both": ["b", "a"], "istio.io/c": ["c"]},
}


def rules(*given: dict[str, Any]) -> Rules:
    return Rules.of(IssuanceConfig.model_validate({**TOP, "rules": [*given]}))


def caller(
    namespace: str = "shop", account: str = "web", cluster: str = "east"
) -> Caller:
    return Caller(
        spiffe_id=SpiffeID.parse("spiffe://corp.example/x"),
        cluster=cluster,
        credential="token",
        namespace=namespace,
        service_account=account,
    )


def terms(
    rule: dict[str, Any], front: str = "istio", who: Caller | None = None
) -> IssuancePolicy:
    return rules(rule).policy_for(front, who or caller())


WHOM = [
    ({}, True),
    ({"fronts": ["istio"]}, True),
    ({"fronts": ["linkerd", "istio"]}, True),
    ({"fronts": ["linkerd"]}, False),
    ({"clusters": ["west", "east"]}, True),
    ({"clusters": ["west"]}, False),
    ({"namespaces": ["bank", "shop"]}, True),
    ({"namespaces": ["bank"]}, False),
    ({"service_accounts": ["web"]}, True),
    ({"service_accounts": ["db"]}, False),
    ({"namespaces": ["shop"], "service_accounts": ["web"]}, True),
    ({"namespaces": ["shop"], "service_accounts": ["db"]}, False),
    ({"namespaces": ["bank"], "service_accounts": ["web"]}, False),
    ({"fronts": ["linkerd"], "namespaces": ["shop"]}, False),
    ({"clusters": ["west"], "namespaces": ["shop"]}, False),
]


@pytest.mark.parametrize(("whom", "matches"), WHOM, ids=str)
def test_a_rule_is_for_whom_all_of_its_lists_name(
    whom: dict[str, Any], *, matches: bool
) -> None:
    found = terms({**whom, "issuing_cas": ["c"]})
    assert found.issuing_cas == (("c",) if matches else ("a", "b"))


def test_the_first_rule_that_matches_holds_alone() -> None:
    found = rules(
        {"service_accounts": ["web"], "max_ttl": "1h"},
        {"namespaces": ["shop"], "max_ttl": "2h", "issuing_cas": ["c"]},
    )
    first = found.policy_for("istio", caller())
    assert (first.max_ttl, first.issuing_cas) == (timedelta(hours=1), ("a", "b"))
    second = found.policy_for("istio", caller(account="db"))
    assert (second.max_ttl, second.issuing_cas) == (timedelta(hours=2), ("c",))


@pytest.mark.parametrize("given", [(), ({"namespaces": ["bank"], "refuse": True},)])
def test_whom_no_rule_matches_gets_the_top_level(given: tuple[Any, ...]) -> None:
    found = rules(*given)
    assert found.policy_for("istio", caller()) is found.top


def test_whoever_is_refused_is_denied_and_the_operator_is_told_by_which_rule() -> None:
    found = rules(
        {"namespaces": ["bank"], "max_ttl": "1h"},
        {"namespaces": ["shop"], "service_accounts": ["web"], "refuse": True},
    )
    with pytest.raises(DeniedError, match="refuses certificates to this") as refusal:
        found.policy_for("linkerd", caller())
    assert refusal.value.rule == "rule.refuse"
    assert refusal.value.detail == "issuance.rules[1]"
    assert "rules" not in str(refusal.value)
    assert found.policy_for("linkerd", caller(account="db")) is found.top


def test_an_exception_is_a_rule_before_the_refusal() -> None:
    found = rules(
        {"namespaces": ["shop"], "service_accounts": ["web"], "refuse": False},
        {"namespaces": ["shop"], "refuse": True},
    )
    assert found.policy_for("istio", caller()) == found.top
    with pytest.raises(DeniedError, match="refuses certificates"):
        found.policy_for("istio", caller(account="db"))


def test_a_caller_without_a_namespace_is_matched_by_no_list_of_them() -> None:
    found = rules({"namespaces": ["shop"], "refuse": True}, {"max_ttl": "1h"})
    nobody = caller(namespace="", account="")
    assert found.policy_for("istio", nobody).max_ttl == timedelta(hours=1)


# The rule, and its (default, least, most) in minutes; the top level's is 720, 5, 1440.
TTLS = [
    ({"max_ttl": "1h"}, (60, 5, 60)),
    ({"min_ttl": "13h"}, (780, 780, 1440)),
    ({"default_ttl": "1h"}, (60, 5, 1440)),
    ({"default_ttl": "1h", "max_ttl": "2h", "min_ttl": "30m"}, (60, 30, 120)),
    ({"max_ttl": "20h"}, (720, 5, 1200)),
    ({"issuing_cas": ["c"]}, (720, 5, 1440)),
]


@pytest.mark.parametrize(("rule", "minutes"), TTLS, ids=str)
def test_a_default_is_brought_inside_the_bounds_of_its_rule(
    rule: dict[str, Any], minutes: tuple[int, int, int]
) -> None:
    found = terms(rule)
    given = found.default_ttl, found.min_ttl, found.max_ttl
    assert given == tuple(timedelta(minutes=one) for one in minutes)
    # Linkerd's proxies name no lifetime: the default is what they get.
    assert found.lifetime(0).ttl == timedelta(minutes=minutes[0])


@pytest.mark.parametrize(
    ("rule", "mode"),
    [({"on_excess_ttl": "clamp"}, "clamp"), ({"max_ttl": "1h"}, "refuse")],
)
def test_a_wish_beyond_the_bounds_is_met_as_the_rule_says_or_the_top_level(
    rule: dict[str, Any], mode: str
) -> None:
    assert terms(rule).on_excess_ttl == mode


# The value of CertSigner, what the rule allows, and what comes of it.
SIGNERS: list[tuple[str, list[str] | None, tuple[str, ...] | str]] = [
    ("", ["c"], ("c",)),
    ("istio.io/both", None, ("b", "a")),
    ("istio.io/both", ["a", "b"], ("b", "a")),
    ("istio.io/both", ["a", "c"], ("a",)),
    ("istio.io/both", ["c"], "signer.denied"),
    ("istio.io/c", ["c"], ("c",)),
    ("istio.io/c", ["a"], "signer.denied"),
    ("istio.io/d", ["c"], "signer.unknown"),
]


@pytest.mark.parametrize(("signer", "allowed", "route"), SIGNERS)
def test_a_signer_that_is_asked_for_stays_inside_what_the_rule_lists(
    signer: str, allowed: list[str] | None, route: tuple[str, ...] | str
) -> None:
    found = terms({"max_ttl": "24h"} | ({"issuing_cas": allowed} if allowed else {}))
    if isinstance(route, tuple):
        assert found.route(signer) == route
        return
    with pytest.raises((DeniedError, RequestError), match="signer") as refusal:
        found.route(signer)
    assert refusal.value.rule == route


@pytest.mark.parametrize(
    ("given", "issuing_cas"),
    [
        ([], ("a", "b")),
        ([{"fronts": ["istio"], "issuing_cas": ["c"]}], ("c",)),
        ([{"fronts": ["linkerd"], "issuing_cas": ["c"]}], ("a", "b")),
        ([{"namespaces": ["shop"], "issuing_cas": ["c"]}], ("a", "b")),
        # A front that serves a few only has a listener all the same.
        (
            [{"namespaces": ["shop"], "issuing_cas": ["c"]}, {"refuse": True}],
            ("a", "b"),
        ),
    ],
)
def test_what_a_front_needs_for_itself_is_as_of_whom_no_rule_lists(
    given: list[dict[str, Any]], issuing_cas: tuple[str, ...]
) -> None:
    assert rules(*given).policy_of("istio").issuing_cas == issuing_cas
