"""Tokens of a real API server, which the bridge has reviewed there, over the wire."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clients.istio_raw import Answer, Wire, bearer
from tests.support.harness.real_process import Bridge
from tests.support.parts.kubernetes import DEPLOY, APIServer

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("token-review")]

PODS = "/api/v1/namespaces/shop/pods"


@dataclass
class Ground:
    server: APIServer
    bridge: Bridge
    wire: Wire


def tokens_of(server: APIServer, token_file: Path) -> dict[str, object]:
    return {
        "verify": "token_review",
        "server": server.url,
        "ca_file": str(server.ca_file),
        "token_file": str(token_file),
    }


def by_kubeconfig(server: APIServer, token_file: Path) -> dict[str, object]:
    """Return a section that names a kubeconfig, whose program shows the token."""
    version = "client.authentication.k8s.io/v1"
    answer = '{"apiVersion": "%s", "kind": "ExecCredential", "status": {"token": "%s"}}'
    program = ["-c", f"printf '{answer}' {version} $(cat {token_file})"]
    run = {"apiVersion": version, "command": "/bin/sh", "args": program}
    cluster = {"server": server.url, "certificate-authority": str(server.ca_file)}
    path = token_file.with_name("kubeconfig")
    tree = {
        "clusters": [{"name": "far", "cluster": cluster}],
        "users": [{"name": "bridge", "user": {"exec": run}}],
        "contexts": [{"name": "one", "context": {"cluster": "far", "user": "bridge"}}],
    }
    path.touch(0o600)
    path.write_text(yaml.safe_dump(tree))
    return {"verify": "token_review", "kubeconfig": str(path), "context": "one"}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("token-review")
    with APIServer(folder / "cluster") as server:
        for name in ("home", "remote"):
            server.apply(DEPLOY / f"{name}.yaml")
        server.new_account("shop", "web")
        server.post("/api/v1/namespaces/shop/serviceaccounts", meta("idle"))
        accounts = {"own": "meshca-bridge", "far": "meshca-bridge-remote"}
        for file, account in accounts.items():
            (folder / file).write_text(server.token("meshca", account))
        (folder / "none").write_text(server.token("shop", "idle"))
        one = {"name": "Kubernetes", "aliases": ["main"], "namespaces": ["*"]}
        clusters = [
            one | {"tokens": tokens_of(server, folder / "own")},
            {"name": "far", "tokens": by_kubeconfig(server, folder / "far")},
            {"name": "rightless", "tokens": tokens_of(server, folder / "none")},
        ]
        every = {"refusals_per_second": 100_000}
        overrides = {"clusters": clusters, "ledger": every}
        made = Bridge(folder / "served", overrides=overrides)
        with made as bridge, Wire(bridge) as wire:
            yield Ground(server, bridge, wire)


def ask(ground: Ground, token: str, *cluster: str) -> tuple[Answer, dict[str, Any]]:
    """Ask for a certificate; return the answer and its row."""
    answer = ground.wire.ask(bearer(token, *cluster))
    return answer, ground.wire.new_outcome()


def meta(name: str) -> dict[str, object]:
    return {"metadata": {"name": name}}


def test_a_pod_gets_its_certificate_and_is_on_record(ground: Ground) -> None:
    pod = ground.server.new_pod("shop", "web", "web-0")
    token = ground.server.token("shop", "web", "istio-ca", bound_to=pod)
    answer, _ = ask(ground, token)
    assert answer.code == "OK", answer
    assert answer.uris == ["spiffe://corp.example/ns/shop/sa/web"]
    (intent,) = ground.bridge.rows(kind="intent", pod_name="web-0")
    assert intent["verified_by"] == "token_review"
    uid = pod["metadata"]["uid"]
    assert (intent["pod_namespace"], intent["pod_uid"]) == ("shop", uid)
    assert intent["node"] == "node-1"


@pytest.mark.parametrize("secret", ["", "a-secret"])
def test_a_token_that_is_bound_to_no_pod_is_taken(ground: Ground, secret: str) -> None:
    token = of_new_secret(ground.server, secret) if secret else of_no_pod(ground.server)
    answer, row = ask(ground, token)
    assert (answer.code, row["kind"]) == ("OK", "issued")
    (intent,) = ground.bridge.rows(kind="intent", attempt=row["attempt"])
    assert (intent["pod_name"], intent["verified_by"]) == ("", "token_review")


def of_no_pod(server: APIServer) -> str:
    return server.token("shop", "web", "istio-ca")


def of_new_secret(server: APIServer, name: str) -> str:
    """Return a token that is bound to a new Secret."""
    made = server.post("/api/v1/namespaces/shop/secrets", meta(name))
    return server.token("shop", "web", "istio-ca", bound_to=made)


def refusals(server: APIServer) -> dict[str, tuple[str, str]]:
    """Return tokens that no caller gets a certificate with, and the rule."""
    of_deleted = server.pod_token("shop", "web", "old")
    server.delete(f"{PODS}/old")
    of_recreated = token_of_first(server)
    server.post("/api/v1/namespaces/shop/serviceaccounts", meta("gone"))
    of_gone = server.token("shop", "gone", "istio-ca")
    server.delete_account("shop", "gone")
    server.post("/api/v1/namespaces/shop/serviceaccounts", meta("again"))
    recreated = server.token("shop", "again", "istio-ca")
    server.delete_account("shop", "again")
    server.post("/api/v1/namespaces/shop/serviceaccounts", meta("again"))
    of_secret = of_new_secret(server, "gone")
    server.call("DELETE", "/api/v1/namespaces/shop/secrets/gone")
    good = server.pod_token("shop", "web", "web-1")
    head, _, signature = good.split(".")
    other = server.token("shop", "web", "istio-ca").split(".")[1]
    return {
        "another audience": (server.token("shop", "web", "api"), "token.audience"),
        "the API server's audience": (server.token("shop", "web"), "token.audience"),
        "a deleted pod": (of_deleted, "token.review"),
        "a recreated pod": (of_recreated, "token.review"),
        "a deleted account": (of_gone, "token.review"),
        "a recreated account": (recreated, "token.review"),
        "a deleted Secret": (of_secret, "token.review"),
        "another payload": (f"{head}.{other}.{signature}", "token.review"),
        "no token": ("admin-of-a-test", "token.format"),
    }


def token_of_first(server: APIServer) -> str:
    token = server.pod_token("shop", "web", "twice")
    server.delete(f"{PODS}/twice")
    server.new_pod("shop", "web", "twice")
    return token


def test_what_the_api_server_does_not_confirm_is_refused(ground: Ground) -> None:
    for name, (token, rule) in refusals(ground.server).items():
        answer, row = ask(ground, token)
        assert answer.code == "UNAUTHENTICATED", (name, answer)
        assert answer.text.startswith(f"{rule}: "), (name, answer)
        assert row["rule"] == rule, name


def test_the_role_for_a_remote_cluster_suffices(ground: Ground) -> None:
    token = ground.server.token("shop", "web", "istio-ca")
    # Its namespaces are denied by default: the caller is known, and that is all.
    answer, row = ask(ground, token, "far")
    assert answer.text.startswith("cluster.namespace: "), answer
    assert row["verified_by"] == "token_review"


def test_without_the_right_nobody_is_identified(ground: Ground) -> None:
    token = ground.server.token("shop", "web", "istio-ca")
    answer, row = ask(ground, token, "rightless")
    assert answer.code == "UNAVAILABLE"
    assert answer.text.startswith("review.rights: ")
    assert row["kind"] == "failed"


def test_check_tells_what_is_missing(ground: Ground, tmp_path: Path) -> None:
    server = ground.server
    server.new_account("lab", "nobody")
    own = tmp_path / "nobody"
    own.write_text(server.token("lab", "nobody"))
    tree = yaml.safe_load(ground.bridge.configuration.read_text())
    tree["clusters"][2]["tokens"]["token_file"] = str(own)
    ground.bridge.configuration.write_text(yaml.safe_dump(tree))
    found = ground.bridge.run("check")
    assert found.returncode == 1
    (told,) = [
        line for line in found.stdout.splitlines() if "rightless, API server" in line
    ]
    assert (
        "the bridge may not create tokenreviews.authentication.k8s.io, which "
        "tokens.verify: token_review needs: deploy/kubernetes has the role and its "
        "binding"
    ) in told
    assert (
        "the bridge may not list pods, which trusted_node_accounts needs: "
        "deploy/kubernetes has the role and its binding, or set "
        "trusted_node_accounts: [] where no ztunnel runs"
    ) in told
    for name in ("Kubernetes", "far"):
        assert (
            sum(
                f"{name}, API server" in line and "may review tokens" in line
                for line in found.stdout.splitlines()
            )
            == 1
        )


def test_the_api_server_says_of_which_version_it_is(ground: Ground) -> None:
    # Built without it, it says v0.0.0, and clients that ask for a version refuse it.
    _, found = ground.server.call("GET", "/version")
    module = (DEPLOY.parents[1] / "tests/interop/kube_apiserver/go.mod").read_text()
    assert f"\tk8s.io/kubernetes {found['gitVersion']}\n" in module


def test_an_api_server_takes_the_network_policy_as_it_stands(ground: Ground) -> None:
    policy = yaml.safe_load((DEPLOY.parent / "network/policy.yaml").read_bytes())
    namespace = policy["metadata"]["namespace"]
    made, _ = ground.server.call("POST", "/api/v1/namespaces", meta(namespace))
    assert made in {201, 409}
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    # Strict: a field that is misspelt, or there twice, is no warning.
    kept = ground.server.post(f"{path}?fieldValidation=Strict", policy)
    assert kept["spec"] == policy["spec"]
