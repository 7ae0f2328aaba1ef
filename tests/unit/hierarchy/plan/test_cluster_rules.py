"""A cluster's CAs allow every certificate under them, or the plan says which not."""

from typing import Any

import pytest

from bridge.hierarchy.plan import plan_of
from tests.support.parts.cluster_pki import CLUSTER, FILE
from tests.support.parts.hierarchy_file import CONSTRAINTS, NOW, ca, loaded

NAMES = ["kubernetes", "svc", "cluster.local", "localhost", "corp.example"]
NODES = ["kubernetes.default", "cp-1", "worker-1"]
CONTROL: dict[str, Any] = {
    "permitted": {
        "dns": [*NAMES, *NODES],
        "uri": ["invalid", ".invalid"],
        "ip": ["10.0.0.0/8", "127.0.0.0/8", "::1/128"],
        "email": ["invalid"],
    }
}


def with_cas(**more: Any) -> dict[str, Any]:
    """Return a file with a cluster, and with changes to the entries of its CAs."""
    changes = {**FILE}
    for purpose in ("kubernetes", "etcd", "front-proxy"):
        given: dict[str, Any] = {"purpose": purpose, "name_constraints": CONTROL}
        given |= more.get(purpose.replace("-", "_"), {})
        changes[f"cas.prod-{purpose}"] = ca(purpose, "root") | given
    return changes


def permitting(form: str, *names: str) -> dict[str, Any]:
    permitted = {**CONTROL["permitted"], form: [*names]}
    return {"name_constraints": {"permitted": permitted}}


K = "cas.prod-kubernetes"
BROKEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "the constraints of a mesh": (
        "certificates.names",
        with_cas(kubernetes={"parent": "eu", "name_constraints": CONSTRAINTS}),
        f"{K}.name_constraints",
        "cannot issue all certificates of certificates.prod: cp-1/apiserver: the name",
    ),
    "a node whose name is not permitted": (
        "certificates.names",
        with_cas(kubernetes=permitting("dns", *NAMES, "kubernetes.default", "cp-1")),
        f"{K}.name_constraints",
        "worker-1/kubelet-server: the name is outside what the certificate of tier 1",
    ),
    "an address that is not permitted": (
        "certificates.names",
        with_cas(etcd=permitting("ip", "10.0.0.0/8")),
        "cas.prod-etcd.name_constraints",
        "cp-1/etcd-server: the name is outside what the certificate of tier 1",
    ),
    "certificates that outlive their CA": (
        "validity.renewal-budget",
        with_cas() | {"certificates.prod": {**CLUSTER, "days": 1830}},
        "cas.prod-etcd.validity",
        "and its leaves up to 43920h: expected more than 43920h",
    ),
    "no server below a CA of clients": (
        "certificates.usage",
        with_cas(etcd={"ext_key_usage": ["client_auth"]}),
        "cas.prod-etcd.ext_key_usage",
        (
            "issues certificates of certificates.prod for server_auth, which "
            "ext_key_usage of prod-etcd leaves out"
        ),
    ),
    "no client below a CA of servers": (
        "certificates.usage",
        with_cas(front_proxy={"ext_key_usage": ["server_auth"]}),
        "cas.prod-front-proxy.ext_key_usage",
        "issues certificates of certificates.prod for client_auth, which",
    ),
}


@pytest.mark.parametrize(
    ("rule", "changes", "path", "told"), BROKEN.values(), ids=BROKEN
)
def test_what_breaks_a_rule_is_told_where_it_is_with_the_way_out(
    rule: str, changes: dict[str, Any], path: str, told: str
) -> None:
    plan = plan_of(loaded(changes), now=NOW)
    found = [(one.path, one.text) for one in plan.findings if one.rule == rule]
    assert any(at == path and told in text for at, text in found), plan.findings
    assert not plan.passes


FINE = {
    "all names are permitted": with_cas(),
    "a CA of clients for clients": with_cas(
        front_proxy={"ext_key_usage": ["client_auth"]}
    ),
    "no constraint": with_cas(etcd={"name_constraints": None}),
}


@pytest.mark.parametrize("case", FINE)
def test_what_a_cluster_needs_is_allowed(case: str) -> None:
    plan = plan_of(loaded(FINE[case]), now=NOW)
    found = [one for one in plan.findings if one.rule.startswith("certificates.")]
    assert found == []


def test_many_names_are_told_by_their_number() -> None:
    workers: dict[str, Any] = {f"w-{number}": {} for number in range(9)}
    changes = with_cas() | {"certificates.prod": {**CLUSTER, "workers": workers}}
    plan = plan_of(loaded(changes), now=NOW)
    (found,) = [one for one in plan.findings if one.rule == "certificates.names"]
    assert found.text.count("kubelet-server") == 4
    assert "and 5 more" in found.text
