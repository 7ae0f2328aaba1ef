"""Who may act for whom, by the pods as their cluster has them."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bridge.errors import DeniedError, ReviewError
from bridge.identity.caller import NO_POD, Caller, Pod
from bridge.identity.node_authorization import NodeAuthorization
from bridge.kubernetes.pods import FoundPod
from bridge.resilience.budget import Budget
from bridge.spiffe import SpiffeID, TrustDomain

DOMAIN = TrustDomain("corp.example")
UID = "7d3a1c9e-0000-4000-8000-000000000001"
POD = Pod("istio-system", "ztunnel-1", UID, "node-1")
PROXY = Caller(
    spiffe_id=SpiffeID.of_service_account(DOMAIN, "istio-system", "ztunnel"),
    cluster="east",
    credential="token",
    verified_by="token_review",
    namespace="istio-system",
    service_account="ztunnel",
    pod=POD,
)
WEB = "spiffe://corp.example/ns/shop/sa/web"
BUDGET = Budget.of_seconds(5)


@dataclass
class Pods:
    """The pods of a cluster, and what was asked for."""

    found: FoundPod | None = field(
        default_factory=lambda: FoundPod(UID, "ztunnel", "node-1")
    )
    on_nodes: set[tuple[str, str, str]] = field(
        default_factory=lambda: {("node-1", "shop", "web")}
    )
    error: ReviewError | None = None
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def pod(self, namespace: str, name: str, budget: Budget) -> FoundPod | None:
        assert budget is BUDGET
        self.asked.append((namespace, name))
        if self.error is not None:
            raise self.error
        return self.found

    def has_pod_on(
        self, node: str, namespace: str, service_account: str, budget: Budget
    ) -> bool:
        assert budget is BUDGET
        self.asked.append((node, namespace, service_account))
        return (node, namespace, service_account) in self.on_nodes


def nodes(pods: Pods | None, *accounts: str) -> NodeAuthorization:
    found: Any = pods
    return NodeAuthorization(accounts or ("istio-system/ztunnel",), DOMAIN, found)


def test_a_proxy_gets_the_name_of_a_pod_of_its_node() -> None:
    pods = Pods()
    assert nodes(pods).authorize(PROXY, WEB, BUDGET) == SpiffeID.parse(WEB)
    assert pods.asked == [("istio-system", "ztunnel-1"), ("node-1", "shop", "web")]


def test_a_token_need_not_name_its_node() -> None:
    requester = replace(PROXY, pod=replace(POD, node=""))
    assert nodes(Pods()).authorize(requester, WEB, BUDGET) == SpiffeID.parse(WEB)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param(None, "there is no such pod", id="gone"),
        pytest.param(
            FoundPod("another", "ztunnel", "node-1"),
            "the pod of this name is another",
            id="recreated",
        ),
        pytest.param(
            FoundPod(UID, "default", "node-1"),
            "the pod's account is 'default'",
            id="another account",
        ),
        pytest.param(
            FoundPod(UID, "ztunnel", "node-2"),
            "the pod's node is 'node-2', and the credential's 'node-1'",
            id="another node than the claim's",
        ),
        pytest.param(
            FoundPod(UID, "ztunnel", ""), "the pod's node is ''", id="on no node"
        ),
    ],
)
def test_the_proxys_pod_is_as_its_cluster_has_it(
    found: FoundPod | None, reason: str
) -> None:
    pods = Pods(found=found)
    with pytest.raises(DeniedError, match="not as the cluster has it") as refused:
        nodes(pods).authorize(PROXY, WEB, BUDGET)
    assert refused.value.rule == "impersonation.pod"
    assert reason in (refused.value.detail or "")
    assert WEB in (refused.value.detail or "")
    assert len(pods.asked) == 1


@pytest.mark.parametrize("node", ["", "a,spec.nodeName=b", "a=b", "a b"])
def test_no_node_becomes_another_condition(node: str) -> None:
    pods = Pods(found=FoundPod(UID, "ztunnel", node))
    requester = replace(PROXY, pod=replace(POD, node=""))
    with pytest.raises(DeniedError, match="not as the cluster has it"):
        nodes(pods).authorize(requester, WEB, BUDGET)
    assert len(pods.asked) == 1


@pytest.mark.parametrize(
    ("requester", "rule"),
    [
        pytest.param(
            replace(PROXY, service_account="web"),
            "impersonation.account",
            id="another account",
        ),
        pytest.param(
            replace(PROXY, namespace="shop"),
            "impersonation.account",
            id="another namespace",
        ),
        pytest.param(replace(PROXY, pod=NO_POD), "impersonation.pod", id="no pod"),
        pytest.param(
            replace(PROXY, pod=Pod(node="node-1")),
            "impersonation.pod",
            id="bound to a node alone",
        ),
        pytest.param(
            replace(
                PROXY, pod=NO_POD, credential="certificate", verified_by="certificate"
            ),
            "impersonation.pod",
            id="a client certificate",
        ),
    ],
)
def test_who_is_no_proxy_costs_no_look_up(requester: Caller, rule: str) -> None:
    pods = Pods()
    with pytest.raises(DeniedError, match=r"\w") as refused:
        nodes(pods).authorize(requester, WEB, BUDGET)
    assert refused.value.rule == rule
    assert pods.asked == []


@pytest.mark.parametrize(
    ("wanted", "rule"),
    [
        ("", "impersonation.identity"),
        (" " + WEB, "impersonation.identity"),
        (WEB + "/", "impersonation.identity"),
        (WEB + "\0", "impersonation.identity"),
        (WEB + ",URI:" + WEB, "impersonation.identity"),
        ("spiffe://corp.example/ns/shop/sa/../sa/web", "impersonation.identity"),
        ("spiffe://corp.example/ns/shop/sa/.", "impersonation.identity"),
        ("spiffe://corp.example/ns/shop/sa/web.", "impersonation.identity"),
        ("spiffe://corp.example/ns/shop/sa/we_b", "impersonation.identity"),
        ("spiffe://corp.example/ns/shop/ns/web", "impersonation.identity"),
        ("spiffe://corp.example/ns/" + "a" * 64 + "/sa/web", "impersonation.identity"),
        ("spiffe://corp.example/ns/shop/sa/" + "a" * 254, "impersonation.identity"),
        ("spiffe://Corp.example/ns/shop/sa/web", "impersonation.identity"),
        ("SPIFFE://corp.example/ns/shop/sa/web", "impersonation.identity"),
        ("spiffe:///ns/shop/sa/web", "impersonation.identity"),
        ("spiffe://corp.example./ns/shop/sa/web", "impersonation.identity"),
        ("spiffe://x@corp.example/ns/shop/sa/web", "impersonation.identity"),
        ("spiffe://corp.example.evil/ns/shop/sa/web", "impersonation.trust-domain"),
        ("spiffe://corp/ns/shop/sa/web", "impersonation.trust-domain"),
        ("spiffe://cluster.local/ns/shop/sa/web", "impersonation.trust-domain"),
    ],
)
def test_what_is_no_identity_of_the_mesh_costs_no_look_up(
    wanted: str, rule: str
) -> None:
    pods = Pods()
    with pytest.raises(DeniedError, match="the identity that is asked for") as refused:
        nodes(pods).authorize(PROXY, wanted, BUDGET)
    assert refused.value.rule == rule
    assert pods.asked == []


@pytest.mark.parametrize(
    "on_nodes",
    [
        pytest.param(set(), id="nowhere"),
        pytest.param({("node-2", "shop", "web")}, id="another node"),
        pytest.param({("node-1", "pay", "web")}, id="another namespace"),
        pytest.param({("node-1", "shop", "api")}, id="another account"),
    ],
)
def test_a_name_without_a_pod_on_the_node_is_refused(
    on_nodes: set[tuple[str, str, str]],
) -> None:
    with pytest.raises(DeniedError, match="no pod of this identity") as refused:
        nodes(Pods(on_nodes=on_nodes)).authorize(PROXY, WEB, BUDGET)
    assert refused.value.rule == "impersonation.node"
    assert "node-1" in (refused.value.detail or "")


def test_keys_alone_tell_nothing_of_pods() -> None:
    with pytest.raises(DeniedError, match="not allowed here") as refused:
        nodes(None).authorize(PROXY, WEB, BUDGET)
    assert refused.value.rule == "impersonation"
    for way_out in ("token_review or bound", "its API server is asked"):
        assert way_out in (refused.value.detail or "")


def test_a_look_up_that_cannot_be_made_denies_nothing() -> None:
    with pytest.raises(ReviewError, match="away"):
        nodes(Pods(error=ReviewError("away"))).authorize(PROXY, WEB, BUDGET)


def test_the_accounts_are_those_of_the_cluster() -> None:
    other = replace(PROXY, namespace="mesh", service_account="node-proxy")
    here = nodes(Pods(found=FoundPod(UID, "node-proxy", "node-1")), "mesh/node-proxy")
    assert here.authorize(other, WEB, BUDGET) == SpiffeID.parse(WEB)
    assert here.is_proxy(other)
    assert not here.is_proxy(PROXY)


def test_the_node_of_a_proxy_is_its_pods() -> None:
    assert nodes(Pods()).node_of(PROXY, BUDGET) == "node-1"
    with pytest.raises(DeniedError, match="not as the cluster has it"):
        nodes(Pods(found=None)).node_of(PROXY, BUDGET)
