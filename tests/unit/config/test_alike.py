"""What holds for one cluster holds for the certificates of its callers, too."""

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, reject
from hypothesis import strategies as st

from bridge.config import BridgeConfig, parse
from bridge.config.alike import namespaces_of
from bridge.errors import ConfigError, DeniedError
from bridge.identity.caller import Caller
from bridge.policy.issuance_policy import IssuancePolicy
from bridge.policy.rules import Rules
from bridge.spiffe import SpiffeID

FILE = Path("bridge.yaml")
TOKENS = {"verify": "jwks", "file": "jwks.json", "issuer": "https://a"}
REFUSED = {"clusters": ["dev"], "refuse": True}


def load(
    clusters: dict[str, dict[str, Any]],
    *rules: dict[str, Any],
    mtls: str | None = "127.0.0.1:0",
    **limits: Any,
) -> BridgeConfig:
    istio: dict[str, Any] = {"listen": "127.0.0.1:0", "tls": {"dns_names": ["a"]}}
    linkerd = {"listen": "127.0.0.1:0", "trust_domain": "linkerd.example"}
    istio |= {} if mtls is None else {"mtls_listen": mtls}
    tree = {
        "trust_domain": "corp.example",
        "fronts": {"istio": istio, "linkerd": linkerd | {"cluster": [*clusters][-1]}},
        "clusters": [
            {"name": name, "tokens": TOKENS} | more for name, more in clusters.items()
        ],
        "issuing_cas": {"a": {"plugin": "file"}, "b": {"plugin": "file"}},
        "trust_anchors": "roots.pem",
        "issuance": {"issuing_cas": ["a"], "rules": [*rules]},
        "limits": limits,
        "ledger": {"journal": "j", "archive": "sqlite:///a", "heads": {"sink": "h"}},
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
            "Kubernetes and dev: a client certificate at fronts.istio.mtls_listen with "
            "the namespace shop may be of either; otherwise let "
            "clusters[0].trust_domain and clusters[1].trust_domain differ, or let "
            "clusters[0].namespaces and clusters[1].namespaces have none in common, or "
            f"take mtls_listen out (found ('{name}',))"
        ),
    ):
        load(
            alike(),
            {"namespaces": ["bank"], "refuse": True},
            {"clusters": [name], **terms},
        )


def test_where_both_have_all_namespaces_any_may_be_of_either() -> None:
    with pytest.raises(ConfigError, match="with any namespace may be of either"):
        load(alike(namespaces=["*"]), REFUSED)


def test_any_two_of_several_clusters_count() -> None:
    clusters = {
        "Kubernetes": {"namespaces": ["a"]},
        "dev": {"namespaces": ["b", "c"]},
        "lab": {"namespaces": ["c", "d"]},
    }
    rule = {"clusters": ["Kubernetes", "dev"], "refuse": True}
    with pytest.raises(ConfigError, match=r"dev and lab: .* with the namespace c may"):
        load(clusters, rule)


def test_a_ceiling_of_each_cluster_counts_nobody_as_anothers() -> None:
    ceiling = {"rate": 1, "burst": 1}
    with pytest.raises(
        ConfigError, match=r"limits.per_cluster: expected no ceiling that tells apart "
    ):
        load(alike(), per_cluster=ceiling)
    load(alike(), per_identity=ceiling)
    load(alike(namespaces=[]), per_cluster=ceiling)


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
    load(clusters, rule)


def test_tokens_tell_every_cluster_apart() -> None:
    load(alike(), REFUSED, mtls=None, per_cluster={"rate": 1, "burst": 1})


def test_a_key_that_is_wrong_does_not_make_clusters_alike() -> None:
    with pytest.raises(ConfigError, match="namespaces: expected a list") as told:
        load(alike() | {"Kubernetes": {"namespaces": "lab"}}, REFUSED)
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
        config = load(dict(zip("abc", clusters, strict=False)), *rules)
    except ConfigError:
        reject()
    for one, other in permutations(range(len(clusters)), 2):
        first, second = config.clusters[one], config.clusters[other]
        if config.trust_domain_of(first) != config.trust_domain_of(second):
            continue
        for namespace in "xyzn":
            allowed = [
                found is None or namespace in found
                for found in (namespaces_of(first, one), namespaces_of(second, other))
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
        namespace=namespace,
        service_account="web",
    )
    try:
        return Rules.of(config.issuance, config.asking()).policy_for("istio", caller)
    except DeniedError:
        return None
