"""One bridge serves two clusters, each with a real API server of its own."""

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clients import ztunnel
from tests.support.clients.istio_raw import Answer, Wire, bearer
from tests.support.clients.linkerd_raw import SUFFIX, Certify, new_csr
from tests.support.harness.real_process import Bridge
from tests.support.harness.two_clusters import (
    ALIASES,
    BY_SECRET,
    FAR,
    HOME,
    SILENT,
    WAYS,
    TwoClusters,
)
from tests.support.parts.kubernetes import DEPLOY, APIServer

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("two-clusters")]

WEB = "spiffe://corp.example/ns/shop/sa/web"
IDS = {HOME: ("", HOME, ALIASES[HOME]), FAR: (FAR, ALIASES[FAR])}
"""From each cluster to the values of `clusterid` that mean it."""
OTHER = {HOME: FAR, FAR: HOME}
SECONDS = 60.0
"""How long a test waits for an event at most."""
CALLERS = 16


@dataclass
class Ground:
    clusters: TwoClusters
    bridge: Bridge
    wire: Wire
    way: str = ""

    @property
    def verified_by(self) -> str:
        """How tokens are verified, once the bridge has got at the API servers."""
        return "bound" if self.way.startswith("bound") else "token_review"

    def ask(
        self, token: str, cluster_id: str = "", identity: str = ""
    ) -> tuple[Answer, dict[str, Any]]:
        """Ask for a certificate; return the answer and its row."""
        if identity:
            answer = ztunnel.ask(self.wire, token, identity, cluster_id)
        else:
            answer = self.wire.ask(bearer(token, cluster_id))
        return answer, self.wire.new_outcome()

    def code(self, cluster: str) -> str:
        """Ask with a token of a new pod of the cluster; return the status."""
        token = self.clusters.workload(cluster).token
        return self.ask(token, cluster)[0].code

    def await_code(self, cluster: str, code: str) -> None:
        """Ask until the callers of a cluster get this status."""
        token = self.clusters.workload(cluster).token
        seen: set[str] = set()

        def gets_it() -> bool:
            seen.add(self.ask(token, cluster)[0].code)
            return code in seen

        await_that(gets_it, f"{cluster}: {code} never came")

    def warnings(self) -> str:
        """Return the warnings of the worker; it must be ready."""
        status, page = self.bridge.get("/readyz")
        assert status == 200, page
        (worker,) = json.loads(page)["workers"].values()
        return " ".join(worker["warnings"].values())


def await_that(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoClusters]:
    with TwoClusters(tmp_path_factory.mktemp("two-clusters")) as made:
        yield made


@contextmanager
def serving(
    clusters: TwoClusters, folder: Path, way: str, *, linkerd: str = FAR
) -> Iterator[Ground]:
    bridge = Bridge(
        folder / "served",
        fronts=("istio", "linkerd"),
        overrides=clusters.overrides(way, linkerd=linkerd),
    )
    with bridge, Wire(bridge) as wire:
        yield Ground(clusters, bridge, wire, way)
    assert "Traceback" not in bridge.log()


@pytest.fixture(scope="module", params=WAYS)
def ground(
    request: pytest.FixtureRequest,
    clusters: TwoClusters,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("bridge")
    if request.param in BY_SECRET:
        clusters.put_secret(clusters.remote_kubeconfig())
    linkerd = HOME if request.param == "kubeconfig" else FAR
    with serving(clusters, folder, request.param, linkerd=linkerd) as made:
        for cluster in (HOME, FAR):
            made.await_code(cluster, "OK")
            await_verified(made, cluster)
        yield made
    clusters.delete_secret()


def await_verified(ground: Ground, cluster: str) -> None:
    """Wait until tokens of the cluster are verified as the way says."""
    name, way = "meshca_token_verification", ground.verified_by
    await_metric(ground.bridge, name, cluster=cluster, verified_by=way)


def await_metric(bridge: Bridge, name: str, value: float = 1, **labels: str) -> None:
    await_that(lambda: bridge.metric(name, **labels) == value, f"{name} is not {value}")


EACH_ID = [(cluster, one) for cluster, ids in IDS.items() for one in ids]


@pytest.mark.parametrize(("cluster", "cluster_id"), EACH_ID)
def test_a_token_gets_its_certificate_in_its_own_cluster(
    ground: Ground, cluster: str, cluster_id: str
) -> None:
    made = ground.clusters.workload(cluster)
    answer, row = ground.ask(made.token, cluster_id)
    assert answer.code == "OK", answer
    assert answer.uris == [WEB]
    assert (row["kind"], row["cluster"]) == ("issued", cluster)
    (intent,) = ground.bridge.rows(kind="intent", pod_uid=made.uid)
    assert (intent["cluster"], intent["pod_name"]) == (cluster, made.pod)
    assert intent["verified_by"] == ground.verified_by


@pytest.mark.parametrize(("cluster", "cluster_id"), EACH_ID)
def test_a_token_of_the_other_cluster_gets_nothing(
    ground: Ground, cluster: str, cluster_id: str
) -> None:
    # Account and namespace are there in both clusters, under the same names.
    made = ground.clusters.workload(OTHER[cluster])
    answer, row = ground.ask(made.token, cluster_id)
    assert answer.code == "UNAUTHENTICATED", answer
    rule = "token.key" if ground.verified_by == "bound" else "token.review"
    assert answer.text.startswith(f"{rule}: "), answer
    assert (row["kind"], row["rule"], row["caller"]) == ("refused", rule, "")


def test_a_cluster_that_nobody_named_is_refused(ground: Ground) -> None:
    answer, row = ground.ask(ground.clusters.workload(FAR).token, "moon")
    assert answer.code == "UNAUTHENTICATED", answer
    assert row["rule"] == "cluster.unknown"


@pytest.mark.parametrize(
    ("cluster_id", "namespace"),
    [
        pytest.param(FAR, "pay", id="not on its list"),
        pytest.param(SILENT, "shop", id="no list: denied by default"),
    ],
)
def test_a_further_cluster_gets_the_namespaces_that_are_named(
    ground: Ground, cluster_id: str, namespace: str
) -> None:
    account = {"pay": "api", "shop": "web"}[namespace]
    made = ground.clusters.workload(FAR, account, namespace)
    answer, row = ground.ask(made.token, cluster_id)
    assert answer.code == "PERMISSION_DENIED", answer
    assert row["rule"] == "cluster.namespace"
    assert row["cluster"] == cluster_id
    # The same name is one of the first cluster.
    at_home = ground.clusters.workload(HOME, account, namespace)
    assert ground.ask(at_home.token)[0].code == "OK"


def test_linkerds_callers_are_of_one_cluster(ground: Ground) -> None:
    own = HOME if ground.way == "kubeconfig" else FAR
    identity = f"web.shop{SUFFIX}"
    with Certify(ground.bridge) as client:
        for cluster in (own, OTHER[own]):
            made = ground.clusters.workload(cluster, front="linkerd")
            answer = client.ask(
                identity=identity, credential=made.token, csr=new_csr(identity)
            )
            row = client.new_outcome()
            if cluster == own:
                assert [one.value for one in answer.names] == [identity]
                assert (row["kind"], row["cluster"]) == ("issued", own)
            else:
                assert answer.code == "FAILED_PRECONDITION", answer
                assert answer.text == "authentication token could not be authenticated"
                assert row["kind"] == "refused"


def test_events_of_linkerds_callers_are_of_their_cluster(ground: Ground) -> None:
    own = HOME if ground.way == "kubeconfig" else FAR
    made = ground.clusters.workload(own, "api", front="linkerd")
    identity = f"api.shop{SUFFIX}"

    def events(cluster: str) -> int:
        path = "/api/v1/namespaces/shop/events"
        found = ground.clusters.servers[cluster].call("GET", path)[1]["items"]
        return sum(identity in one["message"] for one in found)

    before = {cluster: events(cluster) for cluster in IDS}
    with Certify(ground.bridge) as client:
        csr = new_csr(identity)
        answer = client.ask(identity=identity, credential=made.token, csr=csr)
    assert answer.code == "OK", answer
    await_that(lambda: events(own) == before[own] + 1, "no event")
    assert events(OTHER[own]) == before[OTHER[own]]


@pytest.mark.parametrize("cluster", [HOME, FAR])
def test_a_ztunnel_gets_the_names_of_its_own_clusters_node(
    ground: Ground, cluster: str
) -> None:
    clusters = ground.clusters
    proxy = clusters.workload(cluster, "ztunnel", "istio-system", node=f"{cluster}-7")
    only = "spiffe://corp.example/ns/shop/sa/only-far"
    # A node of this name is there in both clusters; the workload, in one of them.
    clusters.workload(FAR, "only-far", node=f"{cluster}-7")
    for cluster_id in IDS[cluster]:
        answer, row = ground.ask(proxy.token, cluster_id, only)
        if cluster == FAR:
            ztunnel.require_taken(answer, only)
            assert row["cluster"] == FAR
        else:
            assert answer.code == "PERMISSION_DENIED", answer
            assert row["rule"] == "impersonation.node"
    # Under the other cluster's ID it acts for nobody, whoever is on that node there.
    answer, row = ground.ask(proxy.token, OTHER[cluster], only)
    assert answer.code == "UNAUTHENTICATED", answer
    assert row["rule"] in {"token.key", "token.review"}


def threads(ground: Ground) -> int:
    return len(list(Path(f"/proc/{ground.bridge.worker}/task").iterdir()))


def together(
    ground: Ground, tokens: Mapping[str, Sequence[str]]
) -> dict[str, set[str]]:
    """Let callers of clusters ask at the same time.

    Returns:
        The statuses, for each cluster. There is a row for each call.
    """
    calls = sum(map(len, tokens.values()))
    rows = len(ground.wire.outcomes()) + calls

    def one(token: str, cluster: str) -> str:
        with Wire(ground.bridge) as wire:
            return wire.ask(bearer(token, cluster)).code

    with ThreadPoolExecutor(calls) as pool:
        asked = {
            cluster: [pool.submit(one, token, cluster) for token in its]
            for cluster, its in tokens.items()
        }
        found = {
            cluster: {call.result() for call in its} for cluster, its in asked.items()
        }
    await_that(lambda: len(ground.wire.outcomes()) == rows, "a call has no row")
    ground.wire.forget()
    return found


@pytest.mark.parametrize("away", [FAR, HOME])
@pytest.mark.parametrize("fault", ["hangs", "is gone"])
def test_an_api_server_that_is_away_harms_no_other_cluster(
    ground: Ground, away: str, fault: str
) -> None:
    clusters, other = ground.clusters, OTHER[away]
    server = clusters.servers[away]
    callers = {
        name: [clusters.workload(name).token for _ in range(CALLERS)] for name in IDS
    }
    good = {HOME: {"OK"}, FAR: {"OK"}}
    assert together(ground, callers) == good
    before = threads(ground)
    server.pause() if fault == "hangs" else server.kill()
    try:
        # The watch has seen the pods, and is believed for some minutes.
        code = "OK" if ground.verified_by == "bound" else "UNAVAILABLE"
        assert together(ground, callers) == {away: {code}, other: {"OK"}}
        assert ground.bridge.get("/readyz")[0] == 200
    finally:
        server.resume() if fault == "hangs" else server.start()
    ground.await_code(away, "OK")
    assert together(ground, callers) == good
    await_that(lambda: threads(ground) <= before, "a thread is lost")


@pytest.mark.parametrize("way", WAYS)
def test_a_cluster_that_hangs_holds_up_no_start_and_no_reload(
    clusters: TwoClusters, tmp_path: Path, way: str
) -> None:
    overrides = clusters.overrides(way)
    for one in overrides["clusters"][1:]:
        # Longer than a test waits for a bridge.
        one["tokens"] = one["tokens"] | {"timeout": "5m"}
    if way in BY_SECRET:
        clusters.put_secret(clusters.remote_kubeconfig())
    bridge = Bridge(
        tmp_path / "served", fronts=("istio", "linkerd"), overrides=overrides
    )
    clusters.far.pause()
    try:
        with bridge, Wire(bridge) as wire:
            ground = Ground(clusters, bridge, wire)
            assert ground.code(HOME) == "OK"
            with bridge.configuration.open("a") as file:
                file.write("# changed\n")
            os.kill(bridge.pid, signal.SIGHUP)
            await_metric(bridge, "meshca_config_generation", 2)
            assert ground.code(HOME) == "OK"
    finally:
        clusters.far.resume()
        clusters.delete_secret()


def test_a_watch_of_another_cluster_goes_on_while_one_hangs(
    clusters: TwoClusters, tmp_path: Path
) -> None:
    with serving(clusters, tmp_path, "bound by kubeconfig") as ground:
        for cluster in (HOME, FAR):
            await_verified(ground, cluster)
        token, pod = (made := clusters.workload(HOME)).token, made.pod
        assert ground.ask(token)[0].code == "OK"
        clusters.far.pause()
        try:
            path = f"/api/v1/namespaces/shop/pods/{pod}"
            assert (
                clusters.home.call("DELETE", path, {"gracePeriodSeconds": 0})[0] == 200
            )
            await_that(
                lambda: ground.ask(token)[1]["rule"] == "token.gone", "still good"
            )
        finally:
            clusters.far.resume()


@pytest.fixture
def by_secret(
    request: pytest.FixtureRequest, clusters: TwoClusters, tmp_path: Path
) -> Iterator[Ground]:
    """A bridge that has not found a remote secret so far."""
    clusters.delete_secret()
    way = getattr(request, "param", "remote secret")
    with serving(clusters, tmp_path, way) as made:
        worker = made.bridge.worker
        yield made
        assert made.bridge.worker == worker
    clusters.delete_secret()


@pytest.mark.parametrize("by_secret", BY_SECRET, indirect=True)
def test_a_cluster_comes_and_goes_with_its_remote_secret(by_secret: Ground) -> None:
    clusters = by_secret.clusters
    answer, row = by_secret.ask(clusters.workload(FAR).token, FAR)
    assert (answer.code, row["rule"]) == ("UNAVAILABLE", "review.credential")
    assert by_secret.code(HOME) == "OK"
    clusters.put_secret(clusters.remote_kubeconfig())
    by_secret.await_code(FAR, "OK")
    await_verified(by_secret, FAR)
    clusters.delete_secret()
    by_secret.await_code(FAR, "UNAVAILABLE")
    # A ztunnel of a cluster that was taken away gets nothing, either.
    proxy = clusters.workload(FAR, "ztunnel", "istio-system")
    answer, row = by_secret.ask(proxy.token, FAR, WEB)
    assert (answer.code, row["kind"]) == ("UNAVAILABLE", "failed")
    assert by_secret.code(HOME) == "OK"


@pytest.mark.parametrize("by_secret", BY_SECRET, indirect=True)
def test_a_new_token_in_the_secret_is_taken(by_secret: Ground) -> None:
    clusters, secrets = by_secret.clusters, "/api/v1/namespaces/meshca/secrets"
    session = clusters.far.post(secrets, {"metadata": {"name": "session"}})
    old = clusters.own_token(FAR, bound_to=session)
    clusters.put_secret(clusters.remote_kubeconfig(old))
    by_secret.await_code(FAR, "OK")
    clusters.put_secret(clusters.remote_kubeconfig())
    clusters.far.call("DELETE", f"{secrets}/session")
    await_worthless(clusters.far, old)
    assert by_secret.code(FAR) == "OK"


def test_a_new_token_in_a_kubeconfig_is_taken(
    clusters: TwoClusters, tmp_path: Path
) -> None:
    with serving(clusters, tmp_path, "kubeconfig") as ground:
        secrets = "/api/v1/namespaces/meshca/secrets"
        session = clusters.far.post(secrets, {"metadata": {"name": "session"}})
        old = clusters.own_token(FAR, bound_to=session)
        clusters.by_kubeconfig(FAR, {"token": old})
        ground.await_code(FAR, "OK")
        clusters.by_kubeconfig(FAR)
        clusters.far.call("DELETE", f"{secrets}/session")
        await_worthless(clusters.far, old)
        assert ground.code(FAR) == "OK"


def await_worthless(server: APIServer, token: str) -> None:
    # The API server remembers a token for some 10 s.
    await_that(lambda: server.call("GET", "/api", token=token)[0] == 401, "still good")


HALF = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: whole[:0],
    "no YAML": lambda whole: b"\xff" + whole,
    "not verified": lambda whole: whole.replace(
        b"- cluster:\n    certificate",
        b"- cluster:\n    insecure-skip-tls-verify: true\n    certificate",
    ),
}


@pytest.mark.parametrize("what", HALF)
def test_a_secret_that_cannot_be_used_leaves_what_it_said(
    by_secret: Ground, what: str
) -> None:
    clusters = by_secret.clusters
    whole = clusters.remote_kubeconfig()
    clusters.put_secret(whole)
    by_secret.await_code(FAR, "OK")
    clusters.put_secret(HALF[what](whole))
    trouble = "remote secret istio-remote-secret-far"
    await_that(lambda: trouble in by_secret.warnings(), "not told")
    for cluster in (FAR, HOME):
        assert by_secret.code(cluster) == "OK"
    clusters.put_secret(clusters.remote_kubeconfig())
    await_that(lambda: trouble not in by_secret.warnings(), "still told")
    assert by_secret.code(FAR) == "OK"


def test_the_role_of_remote_secrets_is_what_lists_them(by_secret: Ground) -> None:
    clusters = by_secret.clusters
    clusters.put_secret(clusters.remote_kubeconfig())
    by_secret.await_code(FAR, "OK")
    binding = (
        "/apis/rbac.authorization.k8s.io/v1/namespaces/istio-system/rolebindings/"
        "meshca-bridge-remote-secrets"
    )
    assert clusters.home.call("DELETE", binding)[0] == 200
    trouble = "remote secrets in istio-system cannot be listed"
    await_that(lambda: trouble in by_secret.warnings(), "not told")
    assert 'cannot list resource "secrets"' in by_secret.warnings()
    # What was listed stays in use.
    assert by_secret.code(FAR) == "OK"
    clusters.home.apply(DEPLOY / "remote-secrets.yaml")
    await_that(lambda: trouble not in by_secret.warnings(), "still told")


def test_a_cluster_comes_and_goes_by_reload(
    clusters: TwoClusters, tmp_path: Path
) -> None:
    with serving(clusters, tmp_path, "kubeconfig") as ground:
        bridge = ground.bridge
        both = yaml.safe_load(bridge.configuration.read_text())
        one = both | {"clusters": both["clusters"][:1]}
        one["fronts"]["linkerd"].pop("cluster")
        for generation, (tree, code) in enumerate(
            [(one, "UNAUTHENTICATED"), (both, "OK"), (one, "UNAUTHENTICATED")], 2
        ):
            bridge.configuration.write_text(yaml.safe_dump(tree))
            os.kill(bridge.pid, signal.SIGHUP)
            await_metric(bridge, "meshca_config_generation", generation)
            # Connections to the worker before end in their time.
            ground.await_code(FAR, code)
            assert ground.code(HOME) == "OK"


def test_a_bridge_in_a_pod_needs_no_credentials_for_its_own_cluster(
    clusters: TwoClusters, tmp_path: Path
) -> None:
    clusters.put_secret(clusters.remote_kubeconfig())
    bridge = Bridge(
        tmp_path / "served",
        overrides=clusters.overrides("remote secret", in_pod=True),
        fronts=("istio", "linkerd"),
        prefix=clusters.in_pod(HOME),
    )
    with bridge, Wire(bridge) as wire:
        ground = Ground(clusters, bridge, wire)
        for cluster in (HOME, FAR):
            ground.await_code(cluster, "OK")
    clusters.delete_secret()


def in_kubeconfig(chain: bytes, key: bytes, _: Path) -> dict[str, object]:
    shown = {"client-certificate-data": chain, "client-key-data": key}
    return {name: base64.b64encode(pem).decode() for name, pem in shown.items()}


def by_exec_plugin(chain: bytes, key: bytes, folder: Path) -> dict[str, object]:
    version = "client.authentication.k8s.io/v1"
    status = {
        "clientCertificateData": chain.decode(),
        "clientKeyData": key.decode(),
    }
    made = {"apiVersion": version, "kind": "ExecCredential", "status": status}
    (folder / "made").write_text(json.dumps(made))
    args = [str(folder / "made")]
    return {"exec": {"apiVersion": version, "command": "/bin/cat", "args": args}}


@pytest.mark.parametrize("user_of", [in_kubeconfig, by_exec_plugin])
def test_a_client_certificate_needs_the_role_and_the_right_to_the_keys(
    clusters: TwoClusters,
    tmp_path: Path,
    user_of: Callable[[bytes, bytes, Path], dict[str, object]],
) -> None:
    roles = ("meshca-bridge-remote", "system:service-account-issuer-discovery")
    chain, key = clusters.far.user(user_of.__name__.replace("_", "-"), *roles)
    overrides = clusters.overrides("bound by kubeconfig")
    clusters.by_kubeconfig(FAR, user_of(chain, key, tmp_path))
    made = Bridge(tmp_path / "served", fronts=("istio", "linkerd"), overrides=overrides)
    with made as bridge, Wire(bridge) as wire:
        ground = Ground(clusters, bridge, wire, "bound by kubeconfig")
        await_verified(ground, FAR)
        assert ground.code(FAR) == "OK"
