"""The meshes' own agents get certificates with tokens of two real clusters."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.clients import linkerd_go
from tests.support.clients.istio_agent import Agent
from tests.support.clients.linkerd_go import name_of
from tests.support.harness.real_process import Bridge
from tests.support.harness.two_clusters import ALIASES, FAR, HOME, TwoClusters
from tests.support.parts import envoy
from tests.support.parts.proxies import Proxy, verifiers

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("two-clusters-agents")]

ACCOUNTS = {HOME: "web", FAR: "api"}
"""A workload of each cluster."""


@dataclass
class Ground:
    clusters: TwoClusters
    bridges: dict[str, Bridge]
    """Both under one root. The callers of Linkerd's front are of this cluster."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("agents")
    with TwoClusters(folder / "clusters") as clusters, ExitStack() as served:
        bridges: dict[str, Bridge] = {}
        for cluster in (HOME, FAR):
            overrides = clusters.overrides("kubeconfig", linkerd=cluster)
            if bridges:
                overrides |= of_the_same_root(bridges[HOME])
            bridge = Bridge(
                folder / cluster, fronts=("istio", "linkerd"), overrides=overrides
            )
            bridges[cluster] = served.enter_context(bridge)
        yield Ground(clusters, bridges)


def of_the_same_root(bridge: Bridge) -> dict[str, object]:
    """Return what makes another bridge issue under the root of this one."""
    key = {"key": str(bridge.folder / "hierarchy/issuing.key")}
    ca = {"chain": str(bridge.chain), "options": key}
    return {"issuing_cas": {"file-1": ca}, "trust_anchors": str(bridge.roots)}


def spiffe_id(account: str) -> str:
    return f"spiffe://corp.example/ns/shop/sa/{account}"


def test_istios_agents_of_two_clusters_have_envoys_that_speak_mutual_tls(
    ground: Ground, tmp_path: Path
) -> None:
    bridge, clusters = ground.bridges[HOME], ground.clusters
    with ExitStack() as running:
        agents = {
            cluster: running.enter_context(
                Agent(
                    tmp_path / cluster,
                    bridge,
                    clusters.workload(cluster, account).token,
                    cluster_id=cluster,
                    account=account,
                )
            )
            for cluster, account in ACCOUNTS.items()
        }
        for cluster, account in ACCOUNTS.items():
            issued = bridge.await_rows(1, kind="issued", caller=spiffe_id(account))
            assert issued[0]["cluster"] == cluster
        for near, other in ((HOME, FAR), (FAR, HOME)):
            asks, serves = agents[near], agents[other]
            names = {one: spiffe_id(ACCOUNTS[one]) for one in (near, other)}
            with (
                envoy.server(
                    tmp_path / f"server-{other}",
                    serves.identity,
                    serves.roots,
                    peer=names[near],
                ) as server,
                envoy.client(
                    tmp_path / f"client-{near}",
                    asks.identity,
                    asks.roots,
                    upstream=server.port,
                    peer=names[other],
                ) as client,
            ):
                assert envoy.fetch(client.port) == ("hello\n", names[near])


@pytest.mark.parametrize("cluster_id", ["", ALIASES[HOME]])
def test_istios_agent_may_name_its_cluster_by_an_alias_or_not_at_all(
    ground: Ground, tmp_path: Path, cluster_id: str
) -> None:
    token = ground.clusters.workload(HOME, "api", "pay").token
    agent = Agent(
        tmp_path / "pod",
        ground.bridges[HOME],
        token,
        cluster_id=cluster_id,
        namespace="pay",
        account="api",
    )
    with agent:
        leaf, *_ = x509.load_pem_x509_certificates(agent.identity.chain.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    (uri,) = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    assert uri == "spiffe://corp.example/ns/pay/sa/api"


@pytest.mark.parametrize("verifier", sorted(verifiers()))
def test_linkerds_proxies_of_two_clusters_hold_mutual_tls(
    ground: Ground, tmp_path: Path, verifier: str
) -> None:
    proxies: dict[str, Proxy] = {}
    roots = ground.bridges[HOME].roots.read_bytes()
    for cluster, account in ACCOUNTS.items():
        bridge = ground.bridges[cluster]
        token = ground.clusters.workload(cluster, account, front="linkerd").token
        answer = linkerd_go.ask(
            bridge.linkerd_address, name_of(account), token, tmp_path
        )
        assert answer.code == "OK", answer.error
        assert bridge.rows(kind="intent", front="linkerd")[-1]["cluster"] == cluster
        proxies[cluster] = Proxy.of(answer, roots)
    judge = verifiers()[verifier]
    for near, other in ((HOME, FAR), (FAR, HOME)):
        outcome = judge.handshake(
            server=proxies[other], client=proxies[near], name=name_of(ACCOUNTS[other])
        )
        assert (outcome.refusal, outcome.peer) == ("", name_of(ACCOUNTS[near]))
