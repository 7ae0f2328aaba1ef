"""A bridge whose token keys cannot be fetched: not ready while it can serve nobody."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import BackendRefusedError
from tests.support.harness.workers import Supervised, await_true, is_refused
from tests.support.parts.keyserver import KeyServer
from tests.support.parts.tokens import TokenIssuer

pytestmark = pytest.mark.xdist_group("token keys")

MAIN = TokenIssuer()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with KeyServer(tmp_path) as running:
        yield running


def fetched(name: str, server: KeyServer) -> dict[str, Any]:
    tokens = {"verify": "jwks", "url": server.jwks_url, "issuer": MAIN.issuer}
    more = {"ca_file": str(server.ca_file), "refresh_floor": "0.2s"}
    return {"name": name, "namespaces": ["*"], "tokens": tokens | more}


def readiness(bridge: Supervised) -> tuple[int, dict[str, Any]]:
    status, body = bridge.get("/readyz")
    return status, json.loads(body)


def test_a_bridge_without_token_keys_is_not_ready_until_it_has_them(
    tmp_path: Path, server: KeyServer
) -> None:
    with Supervised(
        tmp_path / "served",
        overrides={"clusters": [fetched("prod", server)]},
        issuers=[MAIN],
        awaits="/healthz",
    ) as bridge:
        await_true(lambda: "can verify no token" in bridge.get("/readyz")[1])
        status, page = readiness(bridge)
        assert status == 503
        assert page["parts"]["token keys"] == (
            "front istio can verify no token: cluster prod: has no keys yet: "
            f"{server.jwks_url}: HTTP status 404"
        )
        assert page["parts"]["issuing CAs"] == "ok"
        await_true(lambda: not is_refused(bridge.address))
        told = r"UNAVAILABLE: cluster\.keys: the keys of this cluster (could not|are)"
        with pytest.raises(BackendRefusedError, match=told):
            bridge.ask()
        server.show(MAIN.jwks())
        await_true(lambda: readiness(bridge)[0] == 200)
        assert readiness(bridge)[1]["parts"]["token keys"] == "ok"
        bridge.ask()
        assert "token keys cannot be read" in bridge.log()


def test_a_cluster_without_keys_beside_one_that_is_well_is_a_warning(
    tmp_path: Path, server: KeyServer
) -> None:
    main = {"verify": "jwks", "file": "jwks.json", "issuer": MAIN.issuer}
    clusters = [{"name": "Kubernetes", "tokens": main}, fetched("dev", server)]
    with Supervised(
        tmp_path / "served", overrides={"clusters": clusters}, issuers=[MAIN]
    ) as bridge:
        bridge.ask()
        (state,) = readiness(bridge)[1]["workers"].values()
        assert state["parts"]["token keys"] == "ok"
        warned = state["warnings"]["token keys"]
        assert warned.startswith("cluster dev: has no keys yet: https://127.0.0.1:")
