"""Sections that contradict each other are refused, each with its key."""

import re
from collections.abc import Sequence
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, reject
from hypothesis import strategies as st

from bridge.config import SECTIONS, BridgeConfig, parse
from bridge.config.consistency import (
    _CHECKS,
    _unknown_linkerd_cluster,
    consistency_problems,
)
from bridge.config.load import _sections
from bridge.errors import ConfigError, DeniedError
from bridge.identity.caller import Caller
from bridge.policy.issuance_policy import IssuancePolicy
from bridge.policy.rules import Rules
from bridge.spiffe import SpiffeID

FILE = Path("bridge.yaml")
TOKENS = {"verify": "jwks", "file": "jwks.json", "issuer": "https://a"}
TREE: dict[str, Any] = {
    "trust_domain": "corp.example",
    "fronts": {"istio": {"listen": "127.0.0.1:0", "tls": {"dns_names": ["a"]}}},
    "clusters": [
        {"name": "east", "aliases": ["Kubernetes"], "tokens": TOKENS},
        {"name": "west", "tokens": TOKENS},
    ],
    "issuing_cas": {"a": {"plugin": "file"}, "b": {"plugin": "file"}},
    "trust_anchors": "roots.pem",
    "issuance": {"issuing_cas": ["a"], "min_ttl": "5m", "max_ttl": "24h"},
    "ledger": {"journal": "j", "archive": "sqlite:///a", "heads": {"sink": "h"}},
}


BOTH = {
    **TREE,
    "fronts": {
        **TREE["fronts"],
        "linkerd": {"listen": "127.0.0.1:0", "cluster": "Kubernetes"},
    },
}


def load(*rules: dict[str, Any], tree: dict[str, Any] = TREE) -> BridgeConfig:
    issuance = {**TREE["issuance"], "rules": [*rules]}
    return parse(yaml.safe_dump({**tree, "issuance": issuance}), FILE)


def problems(*rules: dict[str, Any], tree: dict[str, Any] = TREE) -> list[str]:
    with pytest.raises(ConfigError, match=re.escape(f"{FILE}: issuance.rules")) as told:
        load(*rules, tree=tree)
    return str(told.value).splitlines()


def test_a_rule_with_everything_loads() -> None:
    config = load(
        {
            "fronts": ["istio"],
            "clusters": ["west"],
            "namespaces": ["shop", "a" * 63],
            "service_accounts": ["web", "with.dots", "a" * 253],
            "default_ttl": "1h",
            "min_ttl": "10m",
            "max_ttl": "2h",
            "on_excess_ttl": "clamp",
            "issuing_cas": ["b"],
        },
        {"namespaces": ["bank"], "refuse": True},
        {"namespaces": ["shop"], "refuse": False},
    )
    assert config.issuance.rules[0].max_ttl == timedelta(hours=2)
    assert config.issuance.routes()["issuance.rules[0].issuing_cas"] == ("b",)


# A rule, the key of the one line, and what it says after the key.
BAD = [
    ({}, "", "expected what applies to these callers: refuse, a TTL"),
    ({"namespaces": ["shop"]}, "", "expected what applies to these callers"),
    ({"refuse": True, "max_ttl": "1h"}, "", "a rule with refuse: true has no TTL and"),
    ({"refuse": True, "issuing_cas": ["a"]}, "", "a rule with refuse: true has no TTL"),
    ({"fronts": [], "refuse": True}, ".fronts", "expected one or more (found [])"),
    ({"fronts": ["envoy"], "refuse": True}, ".fronts[0]", "Input should be 'istio' or"),
    (
        {"fronts": ["linkerd"], "refuse": True},
        ".fronts[0]",
        "a front that is configured: istio (found 'linkerd')",
    ),
    ({"clusters": [], "refuse": True}, ".clusters", "expected one or more (found [])"),
    (
        {"clusters": ["west", "north"], "refuse": True},
        ".clusters[1]",
        "a name under clusters: east, west (found 'north')",
    ),
    (
        {"clusters": ["Kubernetes"], "refuse": True},
        ".clusters[0]",
        "expected the name of a cluster; this is an alias of east (found 'Kubernetes')",
    ),
    ({"namespaces": [], "refuse": True}, ".namespaces", "expected one or more"),
    # Lists that lost their last entry: they would match all, and allow all.
    ({"namespaces": None, "max_ttl": "1h"}, ".namespaces", "expected a value; leave"),
    ({"namespaces": ["a"], "issuing_cas": None}, ".issuing_cas", "expected a value"),
    ({"namespaces": ["a"], "max_ttl": None}, ".max_ttl", "expected a value"),
    (
        {"namespaces": ["a", "a"], "refuse": True},
        ".namespaces",
        "expected each entry once",
    ),
    (
        {"namespaces": ["*"], "refuse": True},
        ".namespaces[0]",
        "expected the name of a namespace; leave the key out where all are meant",
    ),
    (
        {"namespaces": ["a" * 64], "refuse": True},
        ".namespaces[0]",
        "expected the name of a namespace",
    ),
    (
        {"namespaces": ["shop\n"], "refuse": True},
        ".namespaces[0]",
        "expected the name of a namespace",
    ),
    (
        {"service_accounts": ["shop/web"], "refuse": True},
        ".service_accounts[0]",
        "expected the name of a service account, without its namespace",
    ),
    (
        {"service_accounts": ["a" * 254], "refuse": True},
        ".service_accounts[0]",
        "expected the name of a service account",
    ),
    ({"max_ttl": "1.5s"}, ".max_ttl", "expected a duration in whole seconds"),
    (
        {"max_ttl": "25h"},
        ".max_ttl",
        "expected no more than issuance.max_ttl, 24h (found 25h)",
    ),
    (
        {"min_ttl": "4m"},
        ".min_ttl",
        "expected no less than issuance.min_ttl, 5m (found 4m)",
    ),
    (
        {"min_ttl": "2h", "max_ttl": "1h"},
        ".max_ttl",
        "level's value (found min_ttl 2h, max_ttl 1h)",
    ),
    ({"max_ttl": "4m"}, ".max_ttl", "expected min_ttl <= max_ttl"),
    ({"min_ttl": "25h"}, ".min_ttl", "expected min_ttl <= max_ttl"),
    (
        {"max_ttl": "1h", "default_ttl": "2h"},
        ".default_ttl",
        "expected 5m to 1h, the limits of this rule (found 2h)",
    ),
    ({"default_ttl": "4m"}, ".default_ttl", "expected 5m to 24h, the limits of this"),
    ({"on_excess_ttl": "ask"}, ".on_excess_ttl", "Input should be 'refuse' or 'clamp'"),
    ({"issuing_cas": []}, ".issuing_cas", "expected one or more (found [])"),
    (
        {"issuing_cas": ["a", "c"]},
        ".issuing_cas[1]",
        "a name under issuing_cas: a, b (found 'c')",
    ),
    ({"isuing_cas": ["a"]}, ".isuing_cas", "unknown key; did you mean issuing_cas?"),
]


@pytest.mark.parametrize(
    ("rule", "key", "text"), BAD, ids=lambda value: str(value)[:40]
)
def test_a_rule_that_cannot_be_meant(rule: dict[str, Any], key: str, text: str) -> None:
    (line,) = problems(rule)
    assert line.startswith(f"{FILE}: issuance.rules[0]{key}: ")
    assert text in line


def test_a_list_of_rules_is_a_list() -> None:
    with pytest.raises(ConfigError, match=r"issuance\.rules: .*list"):
        parse(
            yaml.safe_dump({**TREE, "issuance": {**TREE["issuance"], "rules": 1}}), FILE
        )


REFUSE = {"refuse": True}
# Rules of which the last is without effect, and which ones leave it nothing.
IDLE = [
    ([REFUSE, {"namespaces": ["shop"], **REFUSE}], "are matched by issuance.rules[0]:"),
    (
        [{"namespaces": ["a", "b"], **REFUSE}, {"namespaces": ["a"], "max_ttl": "1h"}],
        "are matched by issuance.rules[0]:",
    ),
    (
        [
            {"namespaces": ["a"], **REFUSE},
            {"namespaces": ["b"], **REFUSE},
            {"namespaces": ["a", "b"], "service_accounts": ["x"], **REFUSE},
        ],
        "are matched by issuance.rules[0] and issuance.rules[1]:",
    ),
    # All clusters that there are.
    (
        [{"clusters": ["east", "west"], **REFUSE}, {"max_ttl": "1h"}],
        "are matched by issuance.rules[0]:",
    ),
    # And all fronts.
    (
        [{"fronts": ["istio"], **REFUSE}, {"max_ttl": "1h"}],
        "are matched by issuance.rules[0]:",
    ),
]


@pytest.mark.parametrize(("rules", "text"), IDLE)
def test_a_rule_to_whom_earlier_ones_leave_nobody(
    rules: list[dict[str, Any]], text: str
) -> None:
    (line,) = problems(*rules)
    assert line.startswith(
        f"{FILE}: issuance.rules[{len(rules) - 1}]: expected callers"
    )
    assert text in line
    assert "put the narrower rule first" in line


@pytest.mark.parametrize(
    "rules",
    [
        [{"namespaces": ["a"], **REFUSE}, {"namespaces": ["a", "b"], "max_ttl": "1h"}],
        [{"clusters": ["east"], **REFUSE}, {"max_ttl": "1h"}],
        [{"service_accounts": ["x"], **REFUSE}, {"namespaces": ["a"], **REFUSE}],
    ],
)
def test_a_rule_that_is_left_somebody_is_fine(rules: list[dict[str, Any]]) -> None:
    load(*rules)


# With both meshes; Linkerd's callers are of the cluster `east`.


@pytest.mark.parametrize(
    "rules",
    [
        [{"fronts": ["linkerd"], **REFUSE}],
        [{"fronts": ["linkerd"], "clusters": ["east"], **REFUSE}],
        [{"fronts": ["linkerd", "istio"], "clusters": ["west"], **REFUSE}],
        [{"clusters": ["west"], **REFUSE}],
        [{"fronts": ["istio"], **REFUSE}, {"max_ttl": "1h"}],
    ],
)
def test_rules_for_both_meshes(rules: list[dict[str, Any]]) -> None:
    load(*rules, tree=BOTH)


def test_a_cluster_whose_callers_never_come_by_the_front_of_a_rule() -> None:
    rule = {"fronts": ["linkerd"], "clusters": ["west"], **REFUSE}
    (line,) = problems(rule, tree=BOTH)
    assert line == (
        f"{FILE}: issuance.rules[0].clusters: expected a cluster whose callers use "
        "linkerd: east (found ('west',))"
    )


def test_rules_for_each_mesh_leave_nothing_to_one_for_both() -> None:
    (line,) = problems(
        {"fronts": ["istio"], **REFUSE},
        {"fronts": ["linkerd"], **REFUSE},
        {"max_ttl": "1h"},
        tree=BOTH,
    )
    assert "are matched by issuance.rules[0] and issuance.rules[1]:" in line


# Clusters that a client certificate does not tell apart.


REFUSED = {"clusters": ["dev"], "refuse": True}


def load_clusters(
    clusters: dict[str, dict[str, Any]],
    *rules: dict[str, Any],
    mtls: str | None = "127.0.0.1:0",
    **limits: Any,
) -> BridgeConfig:
    istio: dict[str, Any] = {"listen": "127.0.0.1:0", "tls": {"dns_names": ["a"]}}
    linkerd = {"listen": "127.0.0.1:0", "trust_domain": "linkerd.example"}
    istio |= {} if mtls is None else {"mtls_listen": mtls}
    tree = {
        **TREE,
        "fronts": {"istio": istio, "linkerd": linkerd | {"cluster": [*clusters][-1]}},
        "clusters": [
            {"name": name, "tokens": TOKENS} | more for name, more in clusters.items()
        ],
        "issuance": {"issuing_cas": ["a"], "rules": [*rules]},
        "limits": limits,
    }
    return parse(yaml.safe_dump(tree), FILE)


def alike(**dev: Any) -> dict[str, dict[str, Any]]:
    """Return two clusters of which a certificate of `shop` may be."""
    return {"Kubernetes": {}, "dev": {"namespaces": ["shop"]} | dev}


@pytest.mark.parametrize(
    "terms",
    [
        {"refuse": True},
        {"refuse": False},
        {"max_ttl": "1h", "on_excess_ttl": "clamp"},
        {"issuing_cas": ["b"]},
        {"refuse": True, "namespaces": ["lab", "shop"]},
        {"refuse": True, "service_accounts": ["web"]},
        {"refuse": True, "fronts": ["istio"]},
    ],
)
@pytest.mark.parametrize("name", ["Kubernetes", "dev"])
def test_a_rule_for_one_of_two_that_certificates_do_not_tell_apart(
    terms: dict[str, Any], name: str
) -> None:
    with pytest.raises(
        ConfigError,
        match=re.escape(
            f"{FILE}: issuance.rules[1].clusters: expected both or neither of "
            "Kubernetes and dev: a client certificate does not identify its cluster. "
            "With fronts.istio.mtls_listen, clusters that share a trust domain and a "
            "namespace (here namespace shop) must share their rules. Let "
            "clusters[0].trust_domain and clusters[1].trust_domain differ, let "
            "clusters[0].namespaces and clusters[1].namespaces have none in common, or "
            f"remove mtls_listen (found ('{name}',))"
        ),
    ):
        load_clusters(
            alike(),
            {"namespaces": ["bank"], "refuse": True},
            {"clusters": [name], **terms},
        )


def test_where_both_have_all_namespaces_any_may_be_of_either() -> None:
    with pytest.raises(ConfigError, match="here any namespace"):
        load_clusters(alike(namespaces=["*"]), REFUSED)


def test_any_two_of_several_clusters_count() -> None:
    clusters = {
        "Kubernetes": {"namespaces": ["a"]},
        "dev": {"namespaces": ["b", "c"]},
        "lab": {"namespaces": ["c", "d"]},
    }
    rule = {"clusters": ["Kubernetes", "dev"], "refuse": True}
    with pytest.raises(ConfigError, match=r"dev and lab: .*here namespace c"):
        load_clusters(clusters, rule)


def test_a_rate_limit_for_each_cluster_counts_no_caller_of_another() -> None:
    ceiling = {"rate": 1, "burst": 1}
    with pytest.raises(
        ConfigError, match=r"limits\.per_cluster: expected no rate limit for each of "
    ):
        load_clusters(alike(), per_cluster=ceiling)
    load_clusters(alike(), per_identity=ceiling)
    load_clusters(alike(namespaces=[]), per_cluster=ceiling)


@pytest.mark.parametrize(
    ("clusters", "rule"),
    [
        # Both, or neither.
        (alike(), {"clusters": ["dev", "Kubernetes"], "refuse": True}),
        (alike(), {"namespaces": ["shop"], "refuse": True}),
        # What both may have is no concern of the rule.
        (alike(), REFUSED | {"namespaces": ["lab"]}),
        (alike(), REFUSED | {"fronts": ["linkerd"]}),
        # A name can be of one only.
        (alike(trust_domain="dev.example"), REFUSED),
        (alike(namespaces=[]), REFUSED),
        ({"Kubernetes": {}, "dev": {}}, REFUSED),
        (alike() | {"Kubernetes": {"namespaces": ["lab"]}}, REFUSED),
        ({"dev": {}}, REFUSED),
    ],
)
def test_what_certificates_tell_apart_may_differ(
    clusters: dict[str, dict[str, Any]], rule: dict[str, Any]
) -> None:
    load_clusters(clusters, rule)


def test_tokens_tell_every_cluster_apart() -> None:
    load_clusters(alike(), REFUSED, mtls=None, per_cluster={"rate": 1, "burst": 1})


def test_a_key_that_is_wrong_does_not_make_clusters_alike() -> None:
    with pytest.raises(ConfigError, match="namespaces: expected a list") as told:
        load_clusters(alike() | {"Kubernetes": {"namespaces": "lab"}}, REFUSED)
    assert "rules" not in str(told.value)


def some(names: Sequence[str]) -> Any:
    return st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)


CLUSTERS = st.fixed_dictionaries(
    {},
    optional={
        "namespaces": some("xyz*"),
        "trust_domain": st.sampled_from(["corp.example", "other.example"]),
    },
)
RULES = st.fixed_dictionaries(
    {"max_ttl": st.sampled_from(["1h", "2h"]), "on_excess_ttl": st.just("clamp")},
    optional={
        "clusters": some("abc"),
        "namespaces": some("xyz"),
        "fronts": some(["istio", "linkerd"]),
    },
)


@given(
    clusters=st.lists(CLUSTERS, min_size=2, max_size=3),
    rules=st.lists(RULES, min_size=1, max_size=3),
)
def test_of_whichever_cluster_a_certificate_is_its_terms_are_the_same(
    clusters: list[dict[str, Any]], rules: list[dict[str, Any]]
) -> None:
    try:
        config = load_clusters(dict(zip("abc", clusters, strict=False)), *rules)
    except ConfigError:
        reject()
    for one, other in permutations(range(len(clusters)), 2):
        first, second = config.clusters[one], config.clusters[other]
        if config.trust_domain_of(first) != config.trust_domain_of(second):
            continue
        for namespace in "xyzn":
            allowed = [
                found is None or namespace in found
                for found in (
                    first.allowed_namespaces(is_first=one == 0),
                    second.allowed_namespaces(is_first=other == 0),
                )
            ]
            if all(allowed):
                assert terms(config, first.name, namespace) == terms(
                    config, second.name, namespace
                )


def terms(config: BridgeConfig, cluster: str, namespace: str) -> IssuancePolicy | None:
    caller = Caller(
        spiffe_id=SpiffeID.parse(f"spiffe://corp.example/ns/{namespace}/sa/web"),
        cluster=cluster,
        credential="certificate",
        verified_by="certificate",
        namespace=namespace,
        service_account="web",
    )
    try:
        return Rules.of(config.issuance, config.callers_by_front()).policy_for(
            "istio", caller
        )
    except DeniedError:
        return None


@pytest.mark.parametrize(("threads", "least"), [(1, 4), (3, 4), (4, None), (24, None)])
def test_each_cluster_whose_api_server_is_asked_has_a_thread(
    threads: int, least: int | None
) -> None:
    asked = {"tokens": {"verify": "token_review"}}
    bound = {"tokens": {"verify": "bound", "issuer": "https://a"}}
    clusters = {"east": {}, "west": asked, "north": bound}
    if least is None:
        load_clusters(clusters, mtls=None, threads=threads)
        return
    with pytest.raises(
        ConfigError, match=r"limits\.threads: expected at least 4: each"
    ):
        load_clusters(clusters, mtls=None, threads=threads)


@pytest.mark.parametrize("check", _CHECKS, ids=lambda check: str(check.__name__))
def test_a_check_needs_no_other_sections_than_it_says(check: Any) -> None:
    # Everything that a check can look at is there, and wrong.
    linkerd = {"listen": "127.0.0.1:1", "spiffe_uri": True, "events": True}
    istio = {
        "listen": "127.0.0.1:1",
        "mtls_listen": "127.0.0.1:1",
        "tls": {"dns_names": ["a"], "ttl": "1s"},
    }
    tree = {
        **TREE,
        "fronts": {"istio": istio, "linkerd": linkerd},
        "clusters": [
            {"name": "east", "namespaces": ["*"], "tokens": TOKENS},
            {"name": "east", "namespaces": ["*"], "tokens": TOKENS},
            {"name": "west", "namespaces": ["*"], "tokens": TOKENS},
            {
                "name": "far",
                "tokens": {"verify": "token_review", "remote_secret": True},
            },
            {"name": "near", "tokens": {"verify": "token_review"}},
        ],
        "issuance": {
            "issuing_cas": ["x"],
            "rules": [
                {"clusters": ["north"], "max_ttl": "48h"},
                {"fronts": ["linkerd"], "clusters": ["west"], **REFUSE},
                {"clusters": ["west"], **REFUSE},
                REFUSE,
                REFUSE,
            ],
        },
        "limits": {"per_cluster": {"rate": 1, "burst": 1}, "threads": 2},
    }
    config = _sections(tree, FILE).config
    needed = {name: getattr(config, name) for name in _CHECKS[check]}
    partial = BridgeConfig.model_construct(**needed)
    for name in SECTIONS - _CHECKS[check]:
        # Those that have a default, too.
        partial.__dict__.pop(name, None)
    if check is _unknown_linkerd_cluster:
        assert list(check(partial)) == []
    else:
        assert list(check(partial))


def test_without_its_sections_a_check_does_not_run() -> None:
    nothing: dict[str, Any] = {}
    partial = BridgeConfig.model_construct(**nothing)
    assert list(consistency_problems(partial, ())) == []
