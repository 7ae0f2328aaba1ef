"""A cluster's tokens are reviewed with the credentials of its remote secret."""

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from bridge.config import parse
from bridge.errors import ReviewError
from bridge.identity.caller import Caller, TokenCredential
from bridge.identity.clusters import ClusterRegistry
from bridge.process.role import WITHOUT_KEYS
from bridge.resilience.budget import Budget
from bridge.system.clock import system_clock
from tests.support.clients.istio_raw import token
from tests.support.harness.configuration import smallest
from tests.support.harness.workers import Supervised, await_true
from tests.support.parts.token_reviews import OWN_TOKEN, ReviewServer
from tests.unit.config.test_load import tree

SECRETS = "/api/v1/namespaces/istio-system/secrets"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with ReviewServer(tmp_path) as running, running.ending_after(60):
        running.objects[SECRETS] = {"items": []}
        yield running


def registry(server: ReviewServer, folder: Path) -> ClusterRegistry:
    home = {key: value for key, value in server.section.items() if key != "verify"}
    joined = {"verify": "token_review", "remote_secret": True}
    changed = tree() | {
        "remote_secrets": home | {"namespace": "istio-system"},
        "clusters": [
            {"name": "home", "tokens": server.section},
            {"name": "far", "namespaces": ["shop"], "tokens": joined},
        ],
    }
    config = parse(yaml.safe_dump(changed), folder / "bridge.yaml")
    return ClusterRegistry(config, clock=system_clock)


def secret_of(server: ReviewServer) -> dict[str, object]:
    cluster = {
        "server": server.url,
        "certificate-authority-data": base64.b64encode(
            server.ca_file.read_bytes()
        ).decode(),
    }
    kubeconfig = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": OWN_TOKEN}}],
    }
    value = base64.b64encode(yaml.safe_dump(kubeconfig).encode()).decode()
    return {"items": [{"metadata": {"name": "s"}, "data": {"far": value}}]}


def ask(clusters: ClusterRegistry) -> Caller:
    return clusters.identify(
        TokenCredential((f"Bearer {token()}",), ("far",)),
        audiences=frozenset({"istio-ca"}),
        now=datetime.now(UTC),
        budget=Budget.of_seconds(30),
    )


def test_a_cluster_is_asked_once_its_secret_is_there(
    server: ReviewServer, tmp_path: Path
) -> None:
    with closing(registry(server, tmp_path)) as clusters:
        secrets = clusters.secrets
        assert secrets is not None
        secrets.look()
        with pytest.raises(ReviewError, match="cannot be used") as caught:
            ask(clusters)
        assert "no remote secret has its cluster ID" in caught.value.detail
        server.objects[SECRETS] = secret_of(server)
        secrets.look()
        caller = ask(clusters)
        assert (caller.cluster, caller.verified_by) == ("far", "token_review")
        assert clusters.problems() == []


def test_a_secret_that_is_not_there_is_named_as_a_reload_would_lose_it(
    server: ReviewServer, tmp_path: Path
) -> None:
    with closing(registry(server, tmp_path)) as clusters:
        secrets = clusters.secrets
        assert secrets is not None
        assert clusters.without_credentials() == ["far"]
        server.objects[SECRETS] = secret_of(server)
        secrets.look()
        assert clusters.without_credentials() == []
        # What it said stays in use.
        server.objects[SECRETS] = {
            "items": [{"metadata": {"name": "s"}, "data": {"far": "YQ=="}}]
        }
        secrets.look()
        assert clusters.without_credentials() == []
        server.objects[SECRETS] = {"items": []}
        secrets.look()
        assert clusters.without_credentials() == ["far"]


def test_a_worker_says_which_remote_secrets_it_lacks(
    server: ReviewServer, tmp_path: Path
) -> None:
    home = {key: value for key, value in server.section.items() if key != "verify"}
    joined = {"verify": "token_review", "remote_secret": True}
    changed = {
        "clusters": [*smallest()["clusters"], {"name": "far", "tokens": joined}],
        "remote_secrets": home | {"namespace": "istio-system"},
    }
    with Supervised(tmp_path / "served", overrides=changed) as bridge:

        def lacking() -> str:
            page = json.loads(bridge.get("/readyz")[1])
            (state,) = page["workers"].values()
            return str(state["warnings"].get(WITHOUT_KEYS, ""))

        assert lacking() == "far"
        assert bridge.get("/readyz")[0] == 200
        server.objects[SECRETS] = secret_of(server)
        await_true(lambda: lacking() == "")
        bridge.hang_up()
        bridge.await_reloads("ok")
        assert lacking() == ""
