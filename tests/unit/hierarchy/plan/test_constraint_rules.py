"""Each rule of constraints has a case that breaks it, and one that it leaves alone."""

from typing import Any

import pytest

from bridge.hierarchy.plan import RULES, plan_of
from tests.support.parts.hierarchy_file import CONSTRAINTS, NOW, ca, loaded

C = "cas.{}.name_constraints"
EU, PROD = C.format("eu"), C.format("prod")
ANY_IP = ["0.0.0.0/0", "::/0"]
BOTH = ["corp.example", ".corp.example"]
CONTROL = {
    "permitted": {
        "dns": ["kubernetes", "kubernetes.default", "svc"],
        "uri": ["invalid", ".invalid"],
        "ip": ["10.0.0.0/8"],
        "email": ["invalid"],
    }
}
"""Of a CA of Kubernetes that can issue what it has to, and no identity of a mesh."""


def on_both(key: str, value: object) -> dict[str, Any]:
    return {f"{EU}.{key}": value, f"{PROD}.{key}": value}


def kubernetes(**more: Any) -> dict[str, Any]:
    given = {"purpose": "kubernetes", "name_constraints": CONTROL} | more
    return {"cas.k8s": ca("k8s", "root", 0, **given)}


BROKEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a DNS name more": (
        "constraints.wider",
        {f"{PROD}.permitted.dns": ["corp.example", "evil.example"]},
        PROD,
        (
            "allows more than its parent eu: DNS names that it permits are not "
            "permitted above: evil.example"
        ),
    ),
    "a URI host more": (
        "constraints.wider",
        {f"{PROD}.permitted.uri": [*BOTH, "us.example", ".us.example"]},
        PROD,
        "allows more than its parent eu: URI names that it permits are not",
    ),
    "an e-mail host more": (
        "constraints.wider",
        {f"{PROD}.permitted.email": ["corp.example"]},
        PROD,
        "allows more than its parent eu: e-mail names that it permits are not",
    ),
    "a network more": (
        "constraints.wider",
        {
            f"{EU}.excluded": {},
            f"{EU}.permitted.ip": ["10.0.0.0/8"],
            f"{PROD}.excluded": {},
            f"{PROD}.permitted.ip": ["10.0.0.0/7"],
        },
        PROD,
        "allows more than its parent eu: IP names that it permits are not",
    ),
    "DNS names left out": (
        "constraints.wider",
        {f"{PROD}.permitted.dns": ...},
        PROD,
        "allows more than its parent eu: DNS names are not constrained",
    ),
    "URI names left out": (
        "constraints.wider",
        {f"{PROD}.permitted.uri": ...},
        PROD,
        "allows more than its parent eu: URI names are not constrained",
    ),
    "e-mail addresses left out": (
        "constraints.wider",
        {f"{PROD}.permitted.email": ...},
        PROD,
        "allows more than its parent eu: e-mail names are not constrained",
    ),
    "an exclusion left out": (
        "constraints.wider",
        {f"{PROD}.excluded.ip": ["0.0.0.0/0"]},
        PROD,
        "allows more than its parent eu: IP names that are excluded above are not",
    ),
    "all of it left out": (
        "constraints.wider",
        {PROD: ...},
        PROD,
        "a child repeats what is above it, or narrows it",
    ),
    "more than a root that is constrained": (
        "constraints.wider",
        {"cas.root.name_constraints": {"permitted": {"dns": ["eu.example"]}}},
        EU,
        "allows more than its parent root",
    ),
    "not critical": (
        "constraints.not-critical",
        on_both("critical", value=False),
        EU,
        "leave critical out, or write true",
    ),
    "URI names free": (
        "constraints.uri-unconstrained",
        on_both("permitted.uri", ...),
        EU,
        (
            "URI names, and so SPIFFE IDs, are not constrained, neither here nor "
            "above; write permitted.uri, where neither ztunnel nor"
        ),
    ),
    "DNS names free": (
        "constraints.dns-unconstrained",
        on_both("permitted.dns", ...),
        EU,
        "write permitted.dns, or accept it with a reason",
    ),
    "addresses free": (
        "constraints.ip-unconstrained",
        on_both("excluded", {}),
        EU,
        'write excluded.ip ["0.0.0.0/0", "::/0"], or permitted.ip',
    ),
    "e-mail free": (
        "constraints.email-unconstrained",
        on_both("permitted.email", ...),
        EU,
        'write permitted.email ["invalid"], a host that cannot exist',
    ),
    "a host without its subdomains": (
        "constraints.half-host",
        on_both("permitted.uri", ["corp.example"]),
        EU,
        "has 'corp.example' in permitted.uri without '.corp.example': Go up to 1.27",
    ),
    "an excluded host without its subdomains": (
        "constraints.half-host",
        on_both("excluded.uri", ["dev.corp.example"]),
        PROD,
        "has 'dev.corp.example' in excluded.uri without '.dev.corp.example'",
    ),
    "another trust domain": (
        "constraints.foreign-domain",
        on_both("permitted.uri", [*BOTH, "us.example", ".us.example"]),
        EU,
        "permits URI names of us.example, .us.example, outside its trust domains",
    ),
    "a URI constraint for ambient": (
        "constraints.uri-ambient",
        {"data_planes": ["sidecar", "ambient"]},
        EU,
        "leave uri out, or give ambient a branch of its own with data_planes",
    ),
    "an excluded URI for ambient": (
        "constraints.uri-ambient",
        {"data_planes": ["ambient"]}
        | on_both("permitted.uri", ...)
        | on_both("excluded.uri", ["x.example", ".x.example"]),
        EU,
        "rejects every SPIFFE ID under a URI constraint, inside or not",
    ),
    "a URI constraint on the root for ambient": (
        "constraints.uri-ambient",
        {
            "data_planes": ["ambient"],
            "cas.root.name_constraints": {"permitted": {"uri": BOTH}},
        },
        C.format("root"),
        "has a URI constraint, and ztunnel (ambient) verifies leaves below it",
    ),
    "a URI constraint for Linkerd": (
        "constraints.uri-linkerd",
        {"data_planes": ["linkerd"]},
        EU,
        "fronts.linkerd.spiffe_uri has to stay false",
    ),
    "no SPIFFE ID of its own": (
        "constraints.shuts-out",
        on_both("permitted.uri", ["invalid", ".invalid"]),
        PROD,
        "cannot issue its own leaves, such as spiffe://corp.example/ns/shop/sa/web",
    ),
    "its own trust domain excluded": (
        "constraints.shuts-out",
        on_both("excluded.uri", BOTH),
        PROD,
        "or take it out of excluded.uri",
    ),
    "no identity of Linkerd": (
        "constraints.shuts-out",
        {"data_planes": ["linkerd"]} | on_both("permitted.dns", ["svc"]),
        PROD,
        "web.shop.serviceaccount.identity.linkerd.corp.example",
    ),
    "a second trust domain": (
        "constraints.shuts-out",
        {"trust_domains": ["corp.example", "us.example"]},
        PROD,
        "such as spiffe://us.example/ns/shop/sa/web",
    ),
    "the API server's names": (
        "constraints.shuts-out",
        kubernetes(name_constraints={"permitted": {"dns": ["svc"]}}),
        C.format("k8s"),
        "cannot issue its own leaves, such as kubernetes:",
    ),
    "no address for the API server": (
        "constraints.no-addresses",
        kubernetes(
            name_constraints={
                "permitted": CONTROL["permitted"] | {"ip": []},
                "excluded": {"ip": ANY_IP},
            }
        ),
        C.format("k8s"),
        (
            "the API server's certificate needs two, its own and that of its Service; "
            "write their networks as permitted.ip in place of excluded.ip, here"
        ),
    ),
    "no address under the constraints of a mesh": (
        "constraints.no-addresses",
        {"cas.prod.purpose": "etcd"},
        PROD,
        "all are excluded here, and etcd's certificates need those that its members",
    ),
    "no address under its parent's": (
        "constraints.no-addresses",
        {"cas.prod.purpose": "kubernetes", f"{PROD}.excluded": {}},
        PROD,
        "all are excluded on eu above it, and the API server's",
    ),
    "addresses under Envoy": ("constraints.ip-sidecar", {}, EU, "Envoy rejects every"),
    "the root as client-ca-file": (
        "client-ca.anchor",
        kubernetes(anchor="root"),
        "cas.k8s.anchor",
        (
            "has the anchor root, which would be client-ca-file of the API server, of "
            "kubelets and of controllers: any CA below it could sign a client with "
            "O=system:masters, which is let in, as DNS and URI constraints say nothing "
            "of a subject; leave anchor out, so that it is its own anchor"
        ),
    ),
    "a regional CA as client-ca-file": (
        "client-ca.anchor",
        {"cas.prod.purpose": "kubernetes", "cas.prod.anchor": "eu"},
        "cas.prod.anchor",
        "has the anchor eu, which would be client-ca-file",
    ),
    "the root as the client CA of etcd": (
        "client-ca.anchor",
        kubernetes(purpose="etcd", anchor="root"),
        "cas.k8s.anchor",
        "which would be trusted-ca-file of etcd: any CA below it could sign a client",
    ),
    "the root as the client CA of the front proxy": (
        "client-ca.anchor",
        kubernetes(purpose="front-proxy", anchor="root"),
        "cas.k8s.anchor",
        "which would be requestheader-client-ca-file of the API server",
    ),
    "a CA of Kubernetes that can make SPIFFE IDs": (
        "client-ca.mesh-identities",
        kubernetes(name_constraints={"permitted": {"dns": ["kubernetes", "svc"]}}),
        C.format("k8s"),
        (
            "could issue identities of a mesh, such as spiffe://corp.example/ns/shop/"
            "sa/web, as uri allows them; write permitted.uri"
        ),
    ),
    "a CA of Kubernetes that can make identities of Linkerd": (
        "client-ca.mesh-identities",
        {
            "data_planes": ["linkerd"],
            **kubernetes(
                name_constraints={
                    "permitted": CONTROL["permitted"] | {"dns": ["kubernetes", *BOTH]}
                }
            ),
        },
        C.format("k8s"),
        "as dns allows them; write permitted.dns with the names of the cluster's",
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
    assert plan.passes is (RULES[rule] == "info")


FINE: dict[str, tuple[str, dict[str, Any]]] = {
    "narrower in each form": (
        "constraints.wider",
        {
            f"{PROD}.permitted.dns": ["prod.corp.example"],
            f"{PROD}.permitted.uri": [".corp.example"],
            f"{PROD}.excluded.dns": ["x.corp.example"],
        },
    ),
    "a branch for ambient beside one for sidecars": (
        "constraints.uri-ambient",
        {
            "data_planes": ["sidecar", "ambient"],
            "cas.eu.data_planes": ["sidecar"],
            "cas.flat": ca("flat", "root", purpose="mesh", data_planes=["ambient"]),
        },
    ),
    "a URI constraint on a CA of Kubernetes beside ambient": (
        "constraints.uri-ambient",
        {"data_planes": ["ambient"]} | on_both("permitted.uri", ...) | kubernetes(),
    ),
    "a constrained child of a free parent is told once": (
        "constraints.uri-unconstrained",
        {},
    ),
    "a host that cannot exist": (
        "constraints.foreign-domain",
        on_both("permitted.uri", [*BOTH, "invalid", ".invalid"]),
    ),
    "a subdomain of the trust domain": (
        "constraints.foreign-domain",
        on_both("permitted.uri", [*BOTH, "eu.corp.example", ".eu.corp.example"]),
    ),
    "Linkerd has no SPIFFE ID": (
        "constraints.shuts-out",
        {"data_planes": ["linkerd"]} | on_both("permitted.uri", ["invalid"]),
    ),
    "its own names": ("constraints.shuts-out", kubernetes()),
    "networks of the API server": ("constraints.no-addresses", kubernetes()),
    "one version excluded": (
        "constraints.no-addresses",
        kubernetes(name_constraints={"excluded": {"ip": ["::/0"]}}),
    ),
    "a front proxy has no address": (
        "constraints.no-addresses",
        {"cas.prod.purpose": "front-proxy"},
    ),
    "its own anchor": ("client-ca.anchor", kubernetes()),
    "its own anchor, written out": ("client-ca.anchor", kubernetes(anchor="k8s")),
    "a regional anchor of a mesh": ("client-ca.anchor", {"cas.prod.anchor": "eu"}),
    "no identity": ("client-ca.mesh-identities", kubernetes()),
    "a mesh that trusts a CA beside it": (
        "client-ca.mesh-identities",
        {
            "cas.prod.anchor": "eu",
            **kubernetes(name_constraints={"permitted": {"dns": ["kubernetes"]}}),
        },
    ),
}


@pytest.mark.parametrize(("rule", "changes"), FINE.values(), ids=FINE)
def test_what_a_rule_leaves_alone(rule: str, changes: dict[str, Any]) -> None:
    plan = plan_of(loaded(changes), now=NOW)
    assert rule not in {one.rule for one in plan.findings}


@pytest.mark.parametrize("form", ["uri", "dns", "ip", "email"])
def test_what_no_ca_of_a_branch_constrains_is_told_once(form: str) -> None:
    free = {EU: ..., PROD: ..., "cas.us": ca("us", "root", 0, purpose="mesh")}
    plan = plan_of(loaded(free), now=NOW)
    rule = f"constraints.{form}-unconstrained"
    assert [one.ca for one in plan.findings if one.rule == rule] == ["eu", "us"]


def test_constraints_of_the_root_count() -> None:
    given = {"cas.root.name_constraints": CONSTRAINTS}
    assert plan_of(loaded(given), now=NOW).passes
