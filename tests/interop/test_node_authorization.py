"""A ztunnel asks for the pods of its node, as a real API server has them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import ztunnel
from tests.support.clients.istio_raw import Answer, Wire
from tests.support.harness.real_process import Bridge
from tests.support.parts.kubernetes import DEPLOY, APIServer

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("node-authorization")]

PROXY = "spiffe://corp.example/ns/istio-system/sa/ztunnel"
ACCOUNTS = (
    ("istio-system", "ztunnel"),
    ("lab", "reviewer"),
    ("pay", "api"),
    ("pay", "web"),
    ("shop", "done"),
    ("shop", "elsewhere"),
    ("shop", "leaving"),
    ("shop", "unscheduled"),
    ("shop", "web"),
)


def name_of(account: str, namespace: str = "shop") -> str:
    return f"spiffe://corp.example/ns/{namespace}/sa/{account}"


@dataclass
class Ground:
    server: APIServer
    bridge: Bridge
    wire: Wire
    token: str
    """Of the ztunnel on node-1."""

    def ask(
        self, identity: str, *, token: str = "", cluster: str = ""
    ) -> tuple[Answer, dict[str, Any]]:
        """Ask for an identity; return the answer and its row."""
        answer = ztunnel.ask(self.wire, token or self.token, identity, cluster)
        return answer, self.wire.new_outcome()


def end_pod(server: APIServer, namespace: str, name: str, phase: str) -> None:
    """Say what a kubelet says of a pod whose containers have all ended."""
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    _, pod = server.call("GET", path)
    pod["status"]["phase"] = phase
    status, answer = server.call("PUT", path, pod)
    assert status == 200, answer


def new_ztunnel(server: APIServer, name: str, node: str = "node-1") -> str:
    """Make a ztunnel; return its token."""
    return server.pod_token("istio-system", "ztunnel", name, node)


def populate(server: APIServer) -> None:
    """Make the accounts, and the pods of the tables below."""
    for namespace in dict(ACCOUNTS):
        server.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    for namespace, account in ACCOUNTS:
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        server.post(accounts, {"metadata": {"name": account}})
    for node in ("node-1", "node-2"):
        server.new_pod("shop", "web", f"web-{node}", node)
    server.new_pod("pay", "api", "api-0")
    server.new_pod("shop", "elsewhere", "elsewhere-0", "node-2")
    server.new_pod("shop", "unscheduled", "unscheduled-0", "")
    for phase in ("Failed", "Succeeded"):
        server.new_pod("shop", "done", phase.lower())
        end_pod(server, "shop", phase.lower(), phase)
    server.new_pod("shop", "leaving", "leaving-0")
    server.delete("/api/v1/namespaces/shop/pods/leaving-0", grace=3600)


def clusters_of(server: APIServer, folder: Path) -> list[dict[str, object]]:
    """Return one API server as four clusters, by what the bridge may do there."""
    accounts = {
        "own": ("meshca", "meshca-bridge"),
        "far": ("meshca", "meshca-bridge-remote"),
        "rightless": ("lab", "reviewer"),
    }
    tokens: dict[str, dict[str, object]] = {}
    for name, account in accounts.items():
        (folder / name).write_text(server.token(*account))
        tokens[name] = {
            "verify": "token_review",
            "server": server.url,
            "ca_file": str(server.ca_file),
            "token_file": str(folder / name),
        }
    _, keys = server.call("GET", "/openid/v1/jwks")
    (folder / "keys.json").write_text(json.dumps(keys))
    offline = {
        "verify": "jwks",
        "issuer": "https://kubernetes.default.svc",
        "file": str(folder / "keys.json"),
    }
    own = {"name": "Kubernetes", "aliases": ["main"], "namespaces": ["*"]}
    return [
        own | {"tokens": tokens["own"]},
        {"name": "far", "namespaces": ["shop"], "tokens": tokens["far"]},
        {"name": "rightless", "namespaces": ["*"], "tokens": tokens["rightless"]},
        {"name": "offline", "namespaces": ["*"], "tokens": offline},
    ]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("node-authorization")
    with APIServer(folder / "cluster") as server:
        for name in ("home", "remote"):
            server.apply(DEPLOY / f"{name}.yaml")
        populate(server)
        server.allow_reviews("lab", "reviewer")
        overrides: dict[str, Any] = {
            "clusters": clusters_of(server, folder),
            # Every refusal gets its row, also those of callers that nobody knows.
            "ledger": {"refusals_per_second": 100_000, "excess_per_second": 100_000},
        }
        with Bridge(folder / "served", overrides=overrides) as bridge:
            token = new_ztunnel(server, "ztunnel-1")
            with Wire(bridge) as wire:
                yield Ground(server, bridge, wire, token)
        assert "Traceback" not in bridge.log()


@pytest.mark.parametrize("cluster", ["", "main", "Kubernetes"])
def test_it_gets_the_certificates_of_its_nodes_pods(
    ground: Ground, cluster: str
) -> None:
    identity = name_of("web")
    answer, row = ground.ask(identity, cluster=cluster)
    ztunnel.require_taken(answer, identity)
    assert (row["caller"], row["requester"]) == (identity, PROXY)
    intent = ground.bridge.rows(kind="intent", pod_name="ztunnel-1")[-1]
    assert (intent["caller"], intent["requester"]) == (identity, PROXY)
    assert (intent["cluster"], intent["node"]) == ("Kubernetes", "node-1")
    assert intent["verified_by"] == "token_review"


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(name_of("leaving"), id="of a pod that is terminating"),
        pytest.param(name_of("api", "pay"), id="of another namespace"),
        pytest.param(PROXY, id="its own"),
    ],
)
def test_each_pod_that_has_not_ended_counts(ground: Ground, identity: str) -> None:
    answer, row = ground.ask(identity)
    ztunnel.require_taken(answer, identity)
    assert (row["caller"], row["requester"]) == (identity, PROXY)


REFUSED = {
    "on another node": (name_of("elsewhere"), "impersonation.node"),
    "on no node": (name_of("unscheduled"), "impersonation.node"),
    "all have ended": (name_of("done"), "impersonation.node"),
    "of another namespace": (name_of("web", "pay"), "impersonation.node"),
    "an unknown namespace": (name_of("web", "nowhere"), "impersonation.node"),
    "an unknown account": (name_of("nobody"), "impersonation.node"),
    "a foreign trust domain": (
        "spiffe://other.example/ns/shop/sa/web",
        "impersonation.trust-domain",
    ),
    "a comma and a DNS name": (
        "spiffe://corp.example,DNS:evil.example/ns/shop/sa/web",
        "impersonation.identity",
    ),
    "two with a comma": (
        f"{name_of('web')},{name_of('api', 'pay')}",
        "impersonation.identity",
    ),
    "a condition of a selector": (
        name_of("web,spec.nodeName=node-2"),
        "impersonation.identity",
    ),
    "an empty part": ("spiffe://corp.example/ns//sa/web", "impersonation.identity"),
    "an empty account": (name_of(""), "impersonation.identity"),
    "one part more": (name_of("web/x"), "impersonation.identity"),
    "a percent sign": (name_of("w%65b"), "impersonation.identity"),
    "a slash in percent": (name_of("web%2Fx"), "impersonation.identity"),
    "a capital": (name_of("Web"), "impersonation.identity"),
    "a dot in a namespace": (name_of("web", "a.b"), "impersonation.identity"),
    "a query": (name_of("web?a=b"), "impersonation.identity"),
    "a port": ("spiffe://corp.example:1/ns/shop/sa/web", "impersonation.identity"),
    "no service account": ("spiffe://corp.example/web", "impersonation.identity"),
    "a newline": (name_of("web\n"), "impersonation.identity"),
    "nobody": ("", "impersonation.identity"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_gets_no_other_name(ground: Ground, what: str) -> None:
    identity, rule = REFUSED[what]
    answer, row = ground.ask(identity)
    assert answer.code == "PERMISSION_DENIED", answer
    assert answer.text.startswith(f"{rule}: "), answer
    assert (row["kind"], row["rule"], row["caller"]) == ("refused", rule, PROXY)
    assert repr(identity) in row["detail"]


def others(server: APIServer) -> dict[str, tuple[str, set[str]]]:
    """Return tokens that act for nobody, and the rules that may say so."""
    deleted = new_ztunnel(server, "deleted")
    server.delete("/api/v1/namespaces/istio-system/pods/deleted")
    recreated = new_ztunnel(server, "again")
    server.delete("/api/v1/namespaces/istio-system/pods/again")
    new_ztunnel(server, "again")
    # Which of both sees it depends on what the API server remembers of a token.
    gone = {"token.review", "impersonation.pod"}
    return {
        "of a pod that is no ztunnel": (
            server.pod_token("shop", "web", "web-asks"),
            {"impersonation.account"},
        ),
        "of no pod": (
            server.token("istio-system", "ztunnel", "istio-ca"),
            {"impersonation.pod"},
        ),
        "of a ztunnel on another node": (
            new_ztunnel(server, "ztunnel-3", "node-3"),
            {"impersonation.node"},
        ),
        "of a ztunnel on no node": (
            new_ztunnel(server, "ztunnel-0", ""),
            {"impersonation.pod"},
        ),
        "of a deleted ztunnel": (deleted, gone),
        "of a recreated ztunnel": (recreated, gone),
    }


def test_nobody_else_acts_for_a_pod(ground: Ground) -> None:
    for what, (token, rules) in others(ground.server).items():
        answer, row = ground.ask(name_of("web"), token=token)
        assert answer.code in {"PERMISSION_DENIED", "UNAUTHENTICATED"}, (what, answer)
        assert row["kind"] == "refused", what
        assert row["rule"] in rules, (what, row)


def test_a_ztunnel_that_is_deleted_after_a_call_gets_no_more(ground: Ground) -> None:
    token = new_ztunnel(ground.server, "short")
    answer, _ = ground.ask(name_of("web"), token=token)
    ztunnel.require_taken(answer, name_of("web"))
    ground.server.delete("/api/v1/namespaces/istio-system/pods/short")
    answer, row = ground.ask(name_of("web"), token=token)
    # The API server remembers the token for some 10 s; the pod is looked up each time.
    assert answer.code in {"PERMISSION_DENIED", "UNAUTHENTICATED"}
    assert row["rule"] in {"impersonation.pod", "token.review"}


ELSEWHERE: dict[str, tuple[str, str, str, str]] = {
    "a namespace that its cluster may not have": (
        "far",
        name_of("api", "pay"),
        "PERMISSION_DENIED",
        "cluster.namespace",
    ),
    "a bridge that may not read pods": (
        "rightless",
        name_of("web"),
        "UNAVAILABLE",
        "review.rights",
    ),
    "a cluster that is verified by keys alone": (
        "offline",
        name_of("web"),
        "PERMISSION_DENIED",
        "impersonation",
    ),
    "a cluster that is not known": (
        "moon",
        name_of("web"),
        "UNAUTHENTICATED",
        "cluster.unknown",
    ),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_what_another_cluster_refuses(ground: Ground, what: str) -> None:
    cluster, identity, code, rule = ELSEWHERE[what]
    answer, row = ground.ask(identity, cluster=cluster)
    assert (answer.code, row["rule"]) == (code, rule), (answer, row)
    if rule == "cluster.namespace":
        # It was authorized, so both names are on record.
        assert (row["caller"], row["requester"]) == (identity, PROXY)
    if rule == "review.rights":
        assert 'cannot get resource "pods"' in row["detail"]


def test_the_namespaces_of_a_cluster_hold_for_the_name_alone(ground: Ground) -> None:
    # The namespace of the ztunnel itself is not on the list of this cluster.
    answer, _ = ground.ask(name_of("web"), cluster="far")
    ztunnel.require_taken(answer, name_of("web"))


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        pytest.param(
            lambda ground: ground.token,
            "for other workloads: those with a pod on node-1",
            id="of a ztunnel",
        ),
        pytest.param(
            lambda ground: ground.server.token("istio-system", "ztunnel", "istio-ca"),
            "for other workloads: impersonation.pod: ",
            id="of no pod",
        ),
    ],
)
def test_check_tells_what_a_token_is_good_for(
    ground: Ground, tmp_path: Path, make: Callable[[Ground], str], verdict: str
) -> None:
    (tmp_path / "token").write_text(make(ground))
    told = ground.bridge.run("check", "--token-file", str(tmp_path / "token"))
    assert told.returncode == 0, told
    (line,) = [
        one for one in told.stdout.splitlines() if "istio, cluster Kubernetes" in one
    ]
    assert f"{PROXY}" in line
    assert verdict in line
