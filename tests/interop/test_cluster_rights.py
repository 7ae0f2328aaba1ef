"""The rights of deploy/kubernetes at a real API server, and what the bridge does there.

Each right is taken away in turn: the bridge says which one is missing.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.kubernetes.api import APIServer as Client
from bridge.kubernetes.credentials import APIAccess, Credentials
from bridge.kubernetes.rights import (
    BOUND,
    EVENTS,
    NODES,
    REVIEWS,
    RIGHTS,
    SECRETS,
    missing_rights,
)
from bridge.resilience.budget import Budget
from tests.support.clients import linkerd_raw
from tests.support.clients.istio_raw import Wire, bearer
from tests.support.clients.linkerd_raw import AUDIENCE, SUFFIX, Certify
from tests.support.harness.real_process import Bridge
from tests.support.parts.kubernetes import APIServer

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("cluster-rights")]

DEPLOY = Path(__file__).parents[2] / "deploy/kubernetes"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
LISTS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/meshca/serviceaccounts",
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "Role": f"{RBAC}/namespaces/istio-system/roles",
    "RoleBinding": f"{RBAC}/namespaces/istio-system/rolebindings",
}
NEEDS = (REVIEWS, BOUND, NODES, EVENTS)
ACCOUNTS = {"home": "meshca-bridge", "remote": "meshca-bridge-remote"}
DISCOVERY = f"{RBAC}/clusterrolebindings/system:service-account-issuer-discovery"
EVENTS_OF_SHOP = "/api/v1/namespaces/shop/events"
SECONDS = 60.0
"""How long a test waits at most."""
Rights = set[tuple[str, str, str]]


@dataclass
class Ground:
    server: APIServer
    folder: Path

    def missing(self, name: str, *needs: str, place: str = "") -> list[str]:
        """Return what the account of a manifest lacks."""
        own = self.folder / name
        if not own.exists():
            own.write_text(self.server.token("meshca", ACCOUNTS[name]))
        access = APIAccess(server=self.server.url, ca=self.server.ca_file, token=own)
        with closing(Client(Credentials(access), seconds=10, calls=1)) as client:
            budget = Budget.of_seconds(30)
            return missing_rights(client, needs, budget, namespace=place)

    def await_missing(
        self, told: Sequence[str], name: str, *needs: str, place: str = ""
    ) -> None:
        """Wait until these rights are missing, in order: a role counts late."""
        found: list[str] = []

        def is_so() -> bool:
            found[:] = self.missing(name, *needs, place=place)
            return [*map(_right, found)] == [*told]

        await_that(is_so, lambda: f"{found}, not {told}")

    def put(self, path: str, changed: dict[str, object]) -> None:
        """Put part of an object, as an administrator."""
        _, found = self.server.call("GET", path)
        status, answer = self.server.call("PUT", path, found | changed)
        assert status == 200, answer


def _right(sentence: str) -> str:
    """Return the right that a sentence is about."""
    return sentence.removeprefix("the bridge may not ").partition(", which ")[0]


def await_that(holds: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def manifest(name: str) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all((DEPLOY / f"{name}.yaml").read_text("utf-8"))


def rules_of(name: str) -> Rights:
    """Return all rights of the role in a manifest: group, resource and verb."""
    (role,) = [one for one in manifest(name) if one["kind"].endswith("Role")]
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def as_rules(rights: Rights) -> list[dict[str, list[str]]]:
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for group, resource, verb in sorted(rights)
    ]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("cluster-rights")
    with APIServer(folder / "cluster") as server:
        server.post("/api/v1/namespaces", {"metadata": {"name": "istio-system"}})
        for name in ("home", "remote", "remote-secrets"):
            for one in manifest(name):
                status, answer = server.call("POST", LISTS[one["kind"]], one)
                assert status in {201, 409}, answer
        server.new_account("shop", "web")
        yield Ground(server, folder)


@pytest.mark.parametrize("name", ACCOUNTS)
def test_the_role_has_each_right_that_is_needed_and_no_other(
    ground: Ground, name: str
) -> None:
    needed = {
        (right.group, right.resource, right.verb)
        for right in RIGHTS
        if not right.path and right.needed_by != (SECRETS,)
    }
    assert rules_of(name) == needed
    ground.await_missing([], name, *NEEDS)


@pytest.mark.parametrize("right", sorted(rules_of("home")), ids=" ".join)
def test_each_right_that_is_taken_away_is_told(
    ground: Ground, right: tuple[str, str, str]
) -> None:
    group, resource, verb = right
    told = f"{verb} {resource}.{group}" if group else f"{verb} {resource}"
    role = f"{LISTS['ClusterRole']}/meshca-bridge"
    whole = rules_of("home")
    ground.put(role, {"rules": as_rules(whole - {right})})
    ground.await_missing([told], "home", *NEEDS)
    ground.put(role, {"rules": as_rules(whole)})
    ground.await_missing([], "home", *NEEDS)


def test_the_right_to_the_keys_is_every_accounts_until_it_is_taken_away(
    ground: Ground,
) -> None:
    _, binding = ground.server.call("GET", DISCOVERY)
    ground.put(DISCOVERY, {"subjects": []})
    ground.await_missing(["get /openid/v1/jwks"], "home", BOUND)
    ground.put(DISCOVERY, {"subjects": binding["subjects"]})
    ground.await_missing([], "home", BOUND)


def test_the_right_to_the_remote_secrets_is_one_in_their_namespace(
    ground: Ground,
) -> None:
    place = "istio-system"
    assert rules_of("remote-secrets") == {("", "secrets", "list")}
    ground.await_missing([], "home", SECRETS, place=place)
    role = f"{LISTS['Role']}/meshca-bridge-remote-secrets"
    _, found = ground.server.call("GET", role)
    ground.put(role, {"rules": []})
    ground.await_missing([f"list secrets in {place}"], "home", SECRETS, place=place)
    ground.put(role, {"rules": found["rules"]})
    ground.await_missing([], "home", SECRETS, place=place)


def tokens_of(ground: Ground, verify: str) -> dict[str, object]:
    own = ground.folder / "own"
    own.write_text(ground.server.token("meshca", "meshca-bridge"))
    tokens: dict[str, object] = {
        "verify": verify,
        "server": ground.server.url,
        "ca_file": str(ground.server.ca_file),
        "token_file": str(own),
    }
    if verify == "bound":
        tokens["issuer"] = "https://kubernetes.default.svc"
    return tokens


def serving(ground: Ground, folder: Path, verify: str) -> Bridge:
    one = {
        "name": "Kubernetes",
        "namespaces": ["*"],
        "tokens": tokens_of(ground, verify),
    }
    return Bridge(
        folder / "served",
        fronts=("istio", "linkerd"),
        overrides={"clusters": [one], "workers": 2},
    )


def test_a_bridge_without_a_right_starts_and_says_which(
    ground: Ground, tmp_path: Path
) -> None:
    role = f"{LISTS['ClusterRole']}/meshca-bridge"
    lost = {("", "pods", "watch"), ("", "events", "create")}
    ground.put(role, {"rules": as_rules(rules_of("home") - lost)})
    ground.await_missing(["watch pods", "create events"], "home", *NEEDS)
    told = (
        "cluster Kubernetes: the bridge may not watch pods, which tokens.verify: bound "
        "needs: deploy/kubernetes has the role and its binding"
    )
    with serving(ground, tmp_path, "bound") as bridge:

        def is_told() -> bool:
            status, text = bridge.get("/readyz")
            assert status == 200
            return told in text and "the bridge may not create events" in text

        await_that(is_told, lambda: bridge.get("/readyz"))
        assert bridge.log().count(told) == 1
        found = bridge.run("check")
        assert found.returncode == 1
        (row,) = [one for one in found.stdout.splitlines() if "API server" in one]
        assert "FAILED" in row
        assert told.partition(": ")[2] in row
    ground.put(role, {"rules": as_rules(rules_of("home"))})
    ground.await_missing([], "home", *NEEDS)


def line_of(table: str, what: str) -> str:
    (line,) = [one for one in table.splitlines() if what in one]
    return line


def ask_linkerd(bridge: Bridge, token: str, account: str = "web") -> Any:
    identity = f"{account}.shop{SUFFIX}"
    csr = linkerd_raw.new_csr(identity)
    with Certify(bridge) as client:
        return client.ask(identity=identity, credential=token, csr=csr)


@pytest.mark.parametrize("verify", ["token_review", "bound"])
def test_both_fronts_record_pod_and_node_and_linkerds_callers_get_events(
    ground: Ground, tmp_path: Path, verify: str
) -> None:
    server = ground.server
    status, _ = server.call("DELETE", EVENTS_OF_SHOP)
    assert status == 200
    with serving(ground, tmp_path, verify) as bridge, Wire(bridge) as wire:
        name = "meshca_token_verification"
        await_that(
            lambda: bridge.metric(name, verified_by=verify) == 2,
            lambda: bridge.get("/readyz"),
        )
        pod = f"by-{verify.replace('_', '-')}"
        made = server.new_pod("shop", "web", pod)
        uid = made["metadata"]["uid"]
        own = server.token("shop", "web", "istio-ca", bound_to=made)
        answer = wire.ask(bearer(own))
        assert answer.code == "OK", answer
        of_linkerd = server.token("shop", "web", AUDIENCE, bound_to=made)
        found = ask_linkerd(bridge, of_linkerd)
        assert found.code == "OK", found
        rows = bridge.await_rows(2, kind="intent", pod_name=pod)
        assert {row["front"] for row in rows} == {"istio", "linkerd"}
        for row in rows:
            told = (row["pod_namespace"], row["pod_uid"], row["node"])
            assert told == ("shop", uid, "node-1")
            assert (row["verified_by"], row["cluster"]) == (verify, "Kubernetes")
        refused = ask_linkerd(bridge, of_linkerd, "api")
        assert refused.code == "FAILED_PRECONDITION", refused
        (row,) = bridge.await_rows(1, kind="refused", pod_name=pod)
        assert (row["front"], row["pod_uid"], row["node"]) == ("linkerd", uid, "node-1")
        assert (row["pod_namespace"], row["verified_by"]) == ("shop", verify)
        if verify == "bound":
            checked = bridge.run("check")
            assert checked.returncode == 0, checked
            assert "confirmed" in line_of(checked.stdout, "Kubernetes, keys")
            assert re.search(
                r"heard of the API server \d+ s ago; \d+ pods?, \d+ service accounts",
                line_of(checked.stdout, "Kubernetes, watch"),
            )
        await_that(lambda: events(server) != [], lambda: bridge.get("/metrics"))
        (event,) = events(server)
        (ending,) = bridge.await_rows(1, kind="issued", front="linkerd")
    assert event["reason"] == "IssuedLeafCertificate"
    assert event["type"] == "Normal"
    assert event["source"] == {"component": "linkerd-identity"}
    reference = event["involvedObject"]
    assert (reference["kind"], reference["namespace"], reference["name"]) == (
        "ServiceAccount",
        "shop",
        "web",
    )
    start, until = f"issued certificate for web.shop{SUFFIX} until ", " +0000 UTC: "
    assert event["message"].startswith(start)
    assert event["message"].endswith(until + ending["certificate_sha256"])


def events(server: APIServer) -> list[dict[str, Any]]:
    _, found = server.call("GET", EVENTS_OF_SHOP)
    return list(found["items"])
