"""Each right is asked for where the configuration needs it, and told when missing."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import BridgeConfig, parse
from bridge.errors import ReviewError
from bridge.kubernetes.clients import remote_secrets_of
from bridge.kubernetes.rights import (
    BOUND,
    EVENTS,
    NODES,
    REVIEWS,
    RIGHTS,
    SECRETS,
    missing_rights,
    needed_servers,
    needs_of,
)
from bridge.resilience.budget import Budget
from tests.support.harness.configuration import text
from tests.support.parts.token_reviews import ACCESS, ReviewServer

ROLE = "deploy/kubernetes has the role and its binding"
NO_ZTUNNEL = ", or set trusted_node_accounts: [] where no ztunnel runs"
NO_EVENTS = ", or set fronts.linkerd.events: false"
OF_KEYS = "the cluster role system:service-account-issuer-discovery has it"
BY_BOUND = f"tokens.verify: bound needs: {ROLE}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with ReviewServer(tmp_path) as running, running.ending_after(60):
        yield running


def config(server: ReviewServer, *clusters: dict[str, Any], **more: Any) -> Any:
    listed = [
        {"name": f"c{index}"} | one | {"tokens": server.section | one["tokens"]}
        for index, one in enumerate(clusters)
    ]
    return parse(text(clusters=listed, **more), Path("/etc/meshca/bridge.yaml"))


def missing(server: ReviewServer, *needs: str, place: str = "") -> list[str]:
    one = next(needed_servers(config(server, {"tokens": {}}), None))
    with closing(one.open()) as client:
        return missing_rights(client, needs, Budget.of_seconds(30), namespace=place)


EVERY = (REVIEWS, BOUND, NODES, EVENTS)
TOLD = {
    "create tokenreviews": (
        (REVIEWS,),
        f".authentication.k8s.io, which {REVIEWS} needs: {ROLE}",
    ),
    "get pods": ((NODES,), f", which {NODES} needs: {ROLE}{NO_ZTUNNEL}"),
    "list pods": ((BOUND, NODES), f", which {BOUND} and {NODES} need: {ROLE}"),
    "watch pods": ((BOUND, NODES), f", which {BY_BOUND}"),
    "get serviceaccounts": ((BOUND,), f", which {BY_BOUND}"),
    "list serviceaccounts": ((BOUND,), f", which {BY_BOUND}"),
    "watch serviceaccounts": ((BOUND,), f", which {BY_BOUND}"),
    "get /openid/v1/jwks": ((BOUND,), f", which {BOUND} needs: {OF_KEYS}"),
    "create events": ((EVENTS,), f", which {EVENTS} needs: {ROLE}{NO_EVENTS}"),
    "list secrets": ((SECRETS,), f", which {SECRETS} needs: {ROLE}"),
}


@pytest.mark.parametrize("right", TOLD)
def test_a_right_that_is_missing_is_one_sentence(
    server: ReviewServer, right: str
) -> None:
    needs, told = TOLD[right]
    server.denied = {right}
    assert missing(server, *needs) == [f"the bridge may not {right}{told}"]


def test_there_is_a_row_for_every_right() -> None:
    assert [str(one).partition(".")[0] for one in RIGHTS] == [*TOLD]


def test_nothing_is_told_of_rights_that_nothing_needs(server: ReviewServer) -> None:
    server.allowed = {"allowed": False}
    assert missing(server) == []
    assert len(missing(server, REVIEWS)) == 1
    assert server.requests
    server.allowed = {"allowed": True}
    assert missing(server, *EVERY) == []


def test_a_right_in_a_namespace_is_asked_for_there(server: ReviewServer) -> None:
    server.denied = {"list secrets"}
    (told,) = missing(server, SECRETS, place="istio-system")
    assert told.startswith("the bridge may not list secrets in istio-system, which ")
    assert b'"namespace": "istio-system"' in server.requests[-1]


@pytest.mark.parametrize("status", [None, {}, {"allowed": "yes"}])
def test_an_answer_of_another_form_denies_nothing(
    server: ReviewServer, status: Any
) -> None:
    server.allowed = status
    with pytest.raises(ReviewError, match="cannot be read"):
        missing(server, REVIEWS)


def needs(made: BridgeConfig) -> list[set[str]]:
    return [{*needs_of(made, one)} for one in made.clusters]


LINKERD = {"linkerd": {"listen": "127.0.0.1:0"}}
AS_BOUND = {"tokens": {"verify": "bound", "issuer": "https://a.example"}}
BY_REVIEW: dict[str, object] = {"tokens": {}}


def test_each_mode_needs_what_it_uses(server: ReviewServer) -> None:
    made = config(
        server, BY_REVIEW, AS_BOUND, BY_REVIEW | {"trusted_node_accounts": []}
    )
    assert needs(made) == [{REVIEWS, NODES}, {BOUND, NODES}, {REVIEWS}]


def test_events_are_of_linkerds_cluster_where_they_are_on(server: ReviewServer) -> None:
    both = (BY_REVIEW, AS_BOUND)
    assert needs(config(server, *both, fronts=LINKERD)) == [
        {REVIEWS, NODES, EVENTS},
        {BOUND, NODES},
    ]
    of_second = {"linkerd": LINKERD["linkerd"] | {"cluster": "c1"}, "istio": None}
    assert needs(config(server, *both, fronts=of_second)) == [
        {REVIEWS},
        {BOUND, EVENTS},
    ]
    off = {"linkerd": LINKERD["linkerd"] | {"events": False}}
    assert needs(config(server, *both, fronts=off)) == [
        {REVIEWS, NODES},
        {BOUND, NODES},
    ]


def test_clusters_by_keys_alone_need_no_right() -> None:
    made = parse(text(fronts=LINKERD), Path("/etc/meshca/bridge.yaml"))
    assert needs(made) == [set()]
    assert [*needed_servers(made, None)] == []


def test_the_server_of_the_remote_secrets_is_asked_first(server: ReviewServer) -> None:
    home = {key: each for key, each in server.section.items() if key != "verify"}
    joined = {"verify": "token_review", "remote_secret": True}
    tree = yaml.safe_load(text(clusters=[{"name": "far", "tokens": joined}]))
    tree["remote_secrets"] = home | {"namespace": "istio-system"}
    made = parse(yaml.safe_dump(tree), Path("/etc/meshca/bridge.yaml"))
    secrets = remote_secrets_of(made)
    assert secrets is not None
    with closing(secrets):
        found = [(one.name, one.namespace) for one in needed_servers(made, secrets)]
    assert found == [("remote secrets in istio-system", "istio-system"), ("far", "")]
    # Without the secrets, nothing says where the cluster is.
    assert [one.name for one in needed_servers(made, None)] == [found[0][0]]
    assert not any(ACCESS.encode() in one for one in server.requests)
