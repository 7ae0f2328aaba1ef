"""A file with rules that cannot be meant is refused, each line by key."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import BridgeConfig, parse
from bridge.errors import ConfigError

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
    ({}, "", "expected what holds for these callers: refuse, a TTL"),
    ({"namespaces": ["shop"]}, "", "expected what holds for these callers"),
    ({"refuse": True, "max_ttl": "1h"}, "", "whoever is refused gets no TTL and no"),
    ({"refuse": True, "issuing_cas": ["a"]}, "", "whoever is refused gets no TTL"),
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
        "where one is left out (found min_ttl 2h, max_ttl 1h)",
    ),
    ({"max_ttl": "4m"}, ".max_ttl", "expected min_ttl <= max_ttl"),
    ({"min_ttl": "25h"}, ".min_ttl", "expected min_ttl <= max_ttl"),
    (
        {"max_ttl": "1h", "default_ttl": "2h"},
        ".default_ttl",
        "expected 5m to 1h, the bounds of this rule (found 2h)",
    ),
    ({"default_ttl": "4m"}, ".default_ttl", "expected 5m to 24h, the bounds of this"),
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


def test_all_that_is_wrong_is_told_at_once() -> None:
    lines = problems(
        {"max_ttl": "25h", "clusters": ["north"]},
        {"namespaces": ["a"], "issuing_cas": ["c"]},
    )
    keys = sorted(line.split(": ")[1] for line in lines)
    assert keys == [
        "issuance.rules[0].clusters[0]",
        "issuance.rules[0].max_ttl",
        "issuance.rules[1].issuing_cas[0]",
    ]


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
        f"{FILE}: issuance.rules[0].clusters: expected a cluster whose callers ask by "
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
