"""Which terms hold for whom; that a file with impossible rules is refused is in
`tests/unit/config/test_consistency.py`."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.config import IssuanceConfig
from bridge.errors import (
    BackendUnavailableError,
    DeniedError,
    RequestError,
)
from bridge.identity.caller import Caller, TokenCredential
from bridge.issuance.call import Call, Issued
from bridge.policy.issuance_policy import IssuancePolicy
from bridge.policy.rules import Rules
from bridge.resilience.budget import Budget
from bridge.spiffe import SpiffeID
from bridge.x509.pem import parse_certificates
from tests.support.harness.core import CALLER, TOKENS, World, csr, two_authorities
from tests.support.parts.pki import NOW

TOP: dict[str, Any] = {
    "min_ttl": "5m",
    "default_ttl": "12h",
    "max_ttl": "24h",
    "issuing_cas": ["a", "b"],
    "cert_signers": {"istio.io/both": ["b", "a"], "istio.io/c": ["c"]},
}


def rules(*given: dict[str, Any]) -> Rules:
    config = IssuanceConfig.model_validate({**TOP, "rules": [*given]})
    return Rules.of(config, {"istio": ("east", "west"), "linkerd": ("east",)})


def caller(
    namespace: str = "shop", account: str = "web", cluster: str = "east"
) -> Caller:
    return Caller(
        spiffe_id=SpiffeID.parse("spiffe://corp.example/x"),
        cluster=cluster,
        credential="token",
        verified_by="jwks",
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
def test_a_rule_matches_callers_that_are_on_all_its_lists(
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


LONGEST = [
    pytest.param((), {"a": 24, "b": 24, "c": 24}, id="the top, with its signers"),
    pytest.param(
        ({"max_ttl": "1h", "default_ttl": "1h", "issuing_cas": ["d"]},),
        {"d": 1},
        id="a rule for everybody hides the top",
    ),
    pytest.param(
        ({"namespaces": ["shop"], "max_ttl": "48h", "issuing_cas": ["a"]},),
        {"a": 48, "b": 24, "c": 24},
        id="the longest of a rule and the top",
    ),
    pytest.param(
        ({"clusters": ["south"], "max_ttl": "48h"},),
        {"a": 24, "b": 24, "c": 24},
        id="a rule that matches no caller",
    ),
    pytest.param(({"refuse": True},), {}, id="nobody gets a certificate"),
]


@pytest.mark.parametrize(("given", "hours"), LONGEST)
def test_the_longest_lifetime_of_an_issuing_ca(
    given: tuple[dict[str, Any], ...], hours: dict[str, int]
) -> None:
    found = rules(*given).longest_ttls
    assert found == {name: timedelta(hours=each) for name, each in hours.items()}


@pytest.mark.parametrize("given", [(), ({"namespaces": ["bank"], "refuse": True},)])
def test_a_caller_that_no_rule_matches_gets_the_top_level(
    given: tuple[Any, ...],
) -> None:
    found = rules(*given)
    assert found.policy_for("istio", caller()) is found.top


def test_a_refused_caller_is_denied_and_the_operator_is_told_by_which_rule() -> None:
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
def test_the_rule_or_the_top_level_handles_an_excessive_lifetime(
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
def test_the_own_certificate_of_a_front_has_the_policy_of_unlisted_callers(
    given: list[dict[str, Any]], issuing_cas: tuple[str, ...]
) -> None:
    assert rules(*given).policy_of("istio").issuing_cas == issuing_cas


ROUTES = [
    ([], "a b c", "a b"),
    ([{"fronts": ["linkerd"], "issuing_cas": ["d"]}], "a b c", "d"),
    ([{"fronts": ["istio"], "issuing_cas": ["d"]}], "d", "a b"),
    ([{"namespaces": ["shop"], "issuing_cas": ["d"]}], "d a b c", "d a b"),
    # Linkerd's callers are of one cluster.
    ([{"clusters": ["west"], "issuing_cas": ["d"]}], "d a b c", "a b"),
    ([{"clusters": ["east"], "issuing_cas": ["d"]}], "d a b c", "d"),
    ([{"fronts": ["linkerd"], "refuse": True}], "a b c", ""),
    ([{"namespaces": ["shop"], "refuse": True}], "a b c", "a b"),
    ([{"namespaces": ["shop"], "max_ttl": "1h"}, {"refuse": True}], "a b c", "a b"),
]


@pytest.mark.parametrize(("given", "istio", "linkerd"), ROUTES)
def test_a_front_knows_each_issuing_ca_that_a_call_can_be_led_to(
    given: list[dict[str, Any]], istio: str, linkerd: str
) -> None:
    found = {front: " ".join(names) for front, names in rules(*given).routes.items()}
    # CertSigner is Istio's.
    assert found == {"istio": istio, "linkerd": linkerd}


# On the whole way of a request.


REFUSED = {"namespaces": ["shop"], "refuse": True}


def world(folder: Path, *rules: Mapping[str, Any], **issuance: Any) -> World:
    return World(folder, overrides={"issuance": {**issuance, "rules": [*rules]}})


def ends(issued: Issued) -> datetime:
    (leaf,) = parse_certificates(issued.leaf_pem.encode(), "the answer")
    return leaf.not_valid_after_utc


def test_a_refusal_by_rule_is_on_record_and_signs_nothing(tmp_path: Path) -> None:
    with world(tmp_path, {"namespaces": ["pay"], "max_ttl": "1h"}, REFUSED) as made:
        with pytest.raises(DeniedError, match="refuses certificates to this caller"):
            made.issue()
        made.issue(token=made.token("bank"))
        rows = made.ended()
    assert len(made.cas["a"].called) == 1
    (row,) = [row for row in rows if row["kind"] == "refused"]
    assert (row["rule"], row["status"]) == ("rule.refuse", "PERMISSION_DENIED")
    assert row["caller"] == CALLER
    assert "issuance.rules[1]" in row["detail"]


def test_failover_stays_inside_the_list_of_the_rule(tmp_path: Path) -> None:
    with world(tmp_path, {"namespaces": ["shop"], "issuing_cas": ["b"]}) as made:
        made.cas["b"].error = BackendUnavailableError("down")
        with pytest.raises(BackendUnavailableError, match="down"):
            made.issue(budget=Budget.of_seconds(2))
        assert not made.cas["a"].called
    # The list is what decides that, not the place: the top level's has both.
    (tmp_path / "other").mkdir()
    with world(tmp_path / "other", issuing_cas=["b", "a"]) as made:
        made.cas["b"].error = BackendUnavailableError("down")
        made.issue()
        assert len(made.cas["a"].called) == 1


def test_the_listener_is_certified_where_its_mesh_is(tmp_path: Path) -> None:
    # The other issuing CA may not sign for the listener's name.
    elsewhere = x509.NameConstraints([x509.DNSName("linkerd.example")], None)
    narrow = two_authorities(elsewhere)["a"]
    wide = narrow.above[0].issue_ca("wide", path_length=0)
    rules = [{"fronts": ["istio"], "issuing_cas": ["b"]}]
    overrides = {"issuance": {"issuing_cas": ["a"], "rules": rules}}
    with World(
        tmp_path, authorities={"a": narrow, "b": wide}, overrides=overrides
    ) as made:
        made.own.issue_serving(["meshca.example"], timedelta(hours=1))
        assert [row["issuing_ca"] for row in made.ended()] == ["b", "b"]


def linkerd_call(made: World, namespace: str) -> Call:
    """Make a call as one of Linkerd's proxies would."""
    assert made.snapshot.linkerd is not None
    identity = made.snapshot.linkerd.identity(namespace, "web")
    token = TOKENS.token(
        namespace, "web", now=made.clock(), audiences=["identity.l5d.io"]
    )
    pem = csr(x509.DNSName(identity)).encode()
    return made.call(
        front="linkerd",
        identity=identity,
        credential=TokenCredential((f"Bearer {token}",), ("",)),
        audiences=frozenset({"identity.l5d.io"}),
        csr=x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER),
        ttl_seconds=0,
    )


def test_what_ends_elsewhere_does_not_keep_a_namespace_from_its_issuing_ca(
    tmp_path: Path,
) -> None:
    # Linkerd's front looks for an issuing CA before it knows who asks.
    both = two_authorities()
    soon = both["a"].above[0].issue_ca("soon", not_after=NOW + timedelta(minutes=1))
    rules = [{"namespaces": ["shop"], "issuing_cas": ["b"], "default_ttl": "30m"}]
    overrides = {
        "fronts": {"linkerd": {"listen": "127.0.0.1:0"}},
        "issuance": {"issuing_cas": ["a"], "rules": rules},
    }
    authorities = {"a": soon, "b": both["b"]}
    with World(tmp_path, authorities=authorities, overrides=overrides) as made:
        issued = made.issuance.issue(linkerd_call(made, "shop"))
        assert ends(issued) == NOW + timedelta(minutes=30)
        with pytest.raises(BackendUnavailableError, match="expires too soon"):
            made.issuance.issue(linkerd_call(made, "bank"))
