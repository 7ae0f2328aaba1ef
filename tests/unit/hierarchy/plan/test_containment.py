"""What a compromised key could do, by the anchor of each verifier; and the matrix."""

from typing import Any

import pytest

from bridge.hierarchy.plan import plan_of
from tests.support.parts.hierarchy_file import NOW, ca, loaded

EU, PROD = "cas.eu.name_constraints", "cas.prod.name_constraints"
FREE = {f"{one}.permitted.uri": ... for one in (EU, PROD)}
US = {"cas.us": ca("us", "root", 0, purpose="mesh")}
K8S = {
    "cas.k8s": ca("k8s", "root", 0, purpose="kubernetes"),
    "cas.etcd": ca("etcd", "root", 0, purpose="etcd"),
    "cas.proxy": ca("proxy", "root", 0, purpose="front-proxy"),
}


def accepted(changes: dict[str, Any]) -> list[tuple[str, str, tuple[str, ...], str]]:
    plan = plan_of(loaded(changes), now=NOW)
    return [
        (one.verifier, one.anchor, one.cas, one.accepts) for one in plan.containment
    ]


def test_a_constraint_limits_every_key_below_it_and_none_above() -> None:
    (_, _, root, all_of_it), (_, _, below, limited) = accepted({})
    assert (root, below) == (("root",), ("eu", "prod"))
    assert all_of_it.startswith("every SPIFFE ID of every trust domain")
    assert limited.startswith("every SPIFFE ID of corp.example and below")


def test_keys_that_are_limited_alike_are_told_together() -> None:
    (_, _, cas, text), *rest = accepted(FREE | US)
    assert cas == ("root", "eu", "prod", "us")
    assert text.startswith("every SPIFFE ID of every trust domain")
    assert rest == []


def test_under_a_regional_anchor_the_keys_beside_it_do_nothing() -> None:
    given = FREE | US | {"cas.prod.anchor": "eu", "cas.us.anchor": "us"}
    assert [(anchor, cas) for _, anchor, cas, _ in accepted(given)] == [
        ("eu", ("eu", "prod")),
        ("us", ("us",)),
    ]


def test_each_data_plane_is_told_of_with_its_own_names() -> None:
    found = accepted({"data_planes": ["sidecar", "linkerd"]})
    texts = {verifier: text for verifier, _, cas, text in found if "prod" in cas}
    assert "SPIFFE ID of corp.example" in texts["sidecar"]
    assert "every identity of corp.example" in texts["linkerd"]


def test_a_control_plane_trusts_its_own_ca_and_no_other_key() -> None:
    found = [one for one in accepted(K8S) if one[0] != "sidecar"]
    assert [one[:3] for one in found] == [
        ("kube-apiserver", "k8s", ("k8s",)),
        ("etcd", "etcd", ("etcd",)),
        ("kube-apiserver (front proxy)", "proxy", ("proxy",)),
    ]
    assert "system:masters included" in found[0][3]


def test_with_the_root_as_client_ca_the_key_of_a_mesh_is_an_administrators() -> None:
    found = accepted(K8S | {"cas.k8s.anchor": "root"})
    (cas,) = (cas for verifier, _, cas, _ in found if verifier == "kube-apiserver")
    assert {"prod", "eu", "root"} <= {*cas}


def test_a_ca_of_kubernetes_below_the_anchor_of_a_mesh_is_told_of() -> None:
    found = accepted(K8S)
    (cas,) = (cas for who, _, cas, text in found if "every trust domain" in text)
    assert {"k8s", "etcd", "proxy"} <= {*cas}


@pytest.mark.parametrize(
    ("changes", "columns", "uri"),
    [
        ({}, ("Envoy", "Go", "OpenSSL"), ("enforced", "enforced", "enforced")),
        (FREE, ("Envoy", "Go", "OpenSSL"), ("not limited",) * 3),
        (
            {"data_planes": ["ambient", "linkerd"]},
            ("ztunnel", "linkerd2-proxy", "Go", "OpenSSL"),
            ("rejects form", "rejects form", "enforced", "enforced"),
        ),
    ],
)
def test_the_matrix_has_the_data_planes_of_the_file_and_programs_without(
    changes: dict[str, Any], columns: tuple[str, ...], uri: tuple[str, ...]
) -> None:
    (matrix,) = plan_of(loaded(changes), now=NOW).matrices
    assert matrix.cas == ("prod",)
    assert matrix.verifiers == columns
    assert dict(matrix.rows)["URI"] == uri


def test_chains_of_one_kind_have_one_matrix() -> None:
    more = {"cas.us": ca("us", "eu", 0, purpose="mesh")}
    assert [one.cas for one in plan_of(loaded(US), now=NOW).matrices] == [
        ("prod",),
        ("us",),
    ]
    assert [one.cas for one in plan_of(loaded(more), now=NOW).matrices] == [
        ("prod", "us")
    ]
