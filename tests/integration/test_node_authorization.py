"""Node authorization where the API server lies, fails, or is another one's."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.clients import ztunnel
from tests.support.clients.istio_raw import MAIN, Answer, Wire, token
from tests.support.harness.real_process import Bridge
from tests.support.parts.scripted_http import json_answer
from tests.support.parts.token_reviews import (
    FAULTS as API_FAULTS,
)
from tests.support.parts.token_reviews import (
    OTHER_OBJECT,
    ReviewServer,
    saying,
)

pytestmark = pytest.mark.xdist_group("node-authorization-faults")

PROXY = "spiffe://corp.example/ns/istio-system/sa/ztunnel"
WEB = "spiffe://corp.example/ns/shop/sa/web"
UID = "7d3a1c9e-0000-4000-8000-000000000001"
OWN_POD = "/api/v1/namespaces/istio-system/pods/ztunnel-1"
WEB_PODS = "/api/v1/namespaces/shop/pods"
PODS: dict[str, Any] = {
    OWN_POD: {
        "kind": "Pod",
        "metadata": {"namespace": "istio-system", "name": "ztunnel-1", "uid": UID},
        "spec": {"serviceAccountName": "ztunnel", "nodeName": "node-1"},
    },
    WEB_PODS: {
        "kind": "PartialObjectMetadataList",
        "items": [{"metadata": {"namespace": "shop"}}],
    },
}


@dataclass
class Ground:
    home: ReviewServer
    remote: ReviewServer
    """Of another cluster, which has the same ztunnel and no other pods."""
    bridge: Bridge


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("node-authorization")
    with ExitStack() as parts:
        servers = []
        for name in ("home", "remote"):
            (folder / name).mkdir()
            servers.append(parts.enter_context(ReviewServer(folder / name)))
        home, remote = servers
        clusters: list[dict[str, object]] = [
            {"name": "home", "aliases": ["first"]},
            {"name": "remote", "namespaces": ["*"]},
            {
                "name": "closed",
                "namespaces": ["*"],
                "trusted_node_accounts": [],
            },
        ]
        for cluster, server in zip(clusters, (home, remote, home), strict=True):
            cluster["tokens"] = server.section | {"timeout": "1.5s"}
        jwks = {"verify": "jwks", "file": "jwks.json", "issuer": MAIN.issuer}
        offline = {"name": "offline", "namespaces": ["*"], "tokens": jwks}
        made = Bridge(
            folder / "served",
            issuers=(MAIN,),
            overrides={
                "clusters": [*clusters, offline],
                # Fewer than there are faults: a thread that is lost would be missed.
                "limits": {"threads": 6},
                "ledger": {
                    "refusals_per_second": 100_000,
                    "excess_per_second": 100_000,
                },
            },
        )
        with made as bridge:
            yield Ground(home, remote, bridge)
            assert "Traceback" not in bridge.log()


@pytest.fixture
def wire(ground: Ground) -> Iterator[Wire]:
    ground.home.objects = dict(PODS)
    ground.home.pod_fault = ground.home.fault = None
    ground.remote.objects = {OWN_POD: PODS[OWN_POD]}
    ground.remote.objects[WEB_PODS] = {
        "kind": "PartialObjectMetadataList",
        "items": None,
    }
    with Wire(ground.bridge) as opened:
        yield opened


def own_token(**changed: Any) -> str:
    claims = {"pod": ("ztunnel-1", UID)} | changed
    return token("istio-system", "ztunnel", **claims)


def asked(server: ReviewServer, since: int) -> list[bytes]:
    """Return the targets of requests for pods, in order."""
    return [
        one.split(b" ")[1]
        for one in server.requests[since:]
        if one.startswith(b"GET /api/v1/")
    ]


def test_two_small_calls_tell_it_each_time(ground: Ground, wire: Wire) -> None:
    for _ in range(2):
        since = len(ground.home.requests)
        ztunnel.require_taken(ztunnel.ask(wire, own_token(), WEB), WEB)
        assert wire.new_outcome()["requester"] == PROXY
        pod, pods = asked(ground.home, since)
        assert pod == OWN_POD.encode()
        assert pods == (
            b"/api/v1/namespaces/shop/pods?fieldSelector=spec.nodeName%3Dnode-1%2C"
            b"spec.serviceAccountName%3Dweb%2Cstatus.phase%21%3DFailed%2C"
            b"status.phase%21%3DSucceeded&limit=1"
        )
        (listed,) = [one for one in ground.home.requests[since:] if pods in one]
        assert b"as=PartialObjectMetadataList" in listed


def test_what_is_refused_without_a_look_up_costs_none(
    ground: Ground, wire: Wire
) -> None:
    since = len(ground.home.requests)
    for shown, identity in (
        (token("shop", "web"), WEB),
        (own_token(pod=None), WEB),
        (own_token(), "spiffe://other.example/ns/shop/sa/web"),
        (own_token(), f"{WEB},{PROXY}"),
    ):
        assert ztunnel.ask(wire, shown, identity).code == "PERMISSION_DENIED"
        wire.new_outcome()
    assert asked(ground.home, since) == []


def refused(wire: Wire, cluster: str = "") -> tuple[Answer, dict[str, Any]]:
    answer = ztunnel.ask(wire, own_token(), WEB, cluster)
    row = wire.new_outcome()
    assert (row["caller"], row["pod_name"]) == (PROXY, "ztunnel-1")
    assert WEB in row["detail"] or row["kind"] == "failed"
    return answer, row


ALTERED: dict[str, dict[str, Any]] = {
    "another UID": {"metadata": PODS[OWN_POD]["metadata"] | {"uid": "another"}},
    "another account": {"spec": PODS[OWN_POD]["spec"] | {"serviceAccountName": "a"}},
    "another node than the claim's": {
        "spec": PODS[OWN_POD]["spec"] | {"nodeName": "node-2"}
    },
    "no node": {"spec": {"serviceAccountName": "ztunnel"}},
}


@pytest.mark.parametrize("what", ALTERED)
def test_the_pod_is_as_the_api_server_has_it(
    ground: Ground, wire: Wire, what: str
) -> None:
    ground.home.objects[OWN_POD] = PODS[OWN_POD] | ALTERED[what]
    answer, row = refused(wire)
    assert (answer.code, row["rule"]) == ("PERMISSION_DENIED", "impersonation.pod")


def test_a_pod_that_is_gone_acts_for_nobody(ground: Ground, wire: Wire) -> None:
    del ground.home.objects[OWN_POD]
    answer, row = refused(wire)
    assert (answer.code, row["rule"]) == ("PERMISSION_DENIED", "impersonation.pod")


ELSEWHERE = {
    "a workload of another cluster": ("remote", "impersonation.node"),
    "a cluster that trusts no account": ("closed", "impersonation.account"),
    "a cluster that is verified by keys alone": ("offline", "impersonation"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_each_cluster_tells_of_its_own_pods_alone(wire: Wire, what: str) -> None:
    cluster, rule = ELSEWHERE[what]
    answer, row = refused(wire, cluster)
    assert (answer.code, row["rule"]) == ("PERMISSION_DENIED", rule)
    assert row["cluster"] == cluster


FAULTS = API_FAULTS | {
    "another object": OTHER_OBJECT,
    "no object": (saying(json_answer(b"[]")), "review.answer"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_look_up_that_cannot_be_made_is_unavailable(
    ground: Ground, wire: Wire, name: str
) -> None:
    ground.home.pod_fault, rule = FAULTS[name]
    answer, row = refused(wire)
    assert (answer.code, answer.text.partition(":")[0]) == ("UNAVAILABLE", rule)
    told = (row["kind"], row["status"], row["rule"])
    assert told == ("failed", "UNAVAILABLE", rule)
    # Who asks for itself is served, and nothing is kept of the fault.
    assert wire.ask((("authorization", f"Bearer {token()}"),)).code == "OK"
    assert wire.new_outcome()["kind"] == "issued"
    ground.home.pod_fault = None
    ztunnel.require_taken(ztunnel.ask(wire, own_token(), WEB), WEB)
    assert wire.new_outcome()["requester"] == PROXY


LISTS: dict[str, Callable[[], object]] = {
    "a list of another kind": lambda: {"kind": "PodList", "items": [{}]},
    "no list": lambda: {"kind": "PartialObjectMetadataList", "items": "one"},
    "not found": lambda: None,
}


@pytest.mark.parametrize("what", LISTS)
def test_a_list_that_cannot_be_read_denies_nothing(
    ground: Ground, wire: Wire, what: str
) -> None:
    ground.home.objects[WEB_PODS] = LISTS[what]()
    answer, row = refused(wire)
    assert (answer.code, row["rule"]) == ("UNAVAILABLE", "review.answer")
