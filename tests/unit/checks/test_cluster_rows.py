"""What `meshca check` tells of each cluster, and of the bridge that runs."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.checks.cluster_rows import Row, cluster_rows
from bridge.config import parse
from bridge.identity.clusters import ClusterRegistry
from bridge.metrics.instruments import Metrics
from bridge.system.clock import system_clock
from tests.support.harness.configuration import text
from tests.support.parts import netports
from tests.support.parts.scripted_http import (
    ScriptedServer,
    answering,
    json_answer,
    saying,
)
from tests.support.parts.token_reviews import ReviewServer
from tests.support.parts.tokens import TokenIssuer

JWKS = "/openid/v1/jwks"
BOUND = {"verify": "bound", "issuer": "https://a.example"}
HEARD = "the bridge that runs heard of the API server"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with ReviewServer(tmp_path) as running, running.ending_after(60):
        TokenIssuer().write_jwks(tmp_path / "jwks.json")
        running.objects[JWKS] = json.loads((tmp_path / "jwks.json").read_text())
        yield running


def rows(folder: Path, tokens: object, listen: str = "", **more: Any) -> dict[str, Row]:
    changed = {
        "clusters": [{"name": "one", "tokens": tokens}],
        "admin": {"listen": listen or netports.address()},
    }
    config = parse(text(**(changed | more)), folder / "bridge.yaml")
    with closing(ClusterRegistry(config, clock=system_clock)) as clusters:
        return {row[0]: row for row in cluster_rows(config, clusters)}


def page(
    *,
    watch: float | None = 12.0,
    objects: tuple[tuple[str, str, int], ...] = (
        ("one", "pods", 3),
        ("one", "serviceaccounts", 1),
    ),
) -> bytes:
    made = Metrics("1")
    views = SimpleNamespace(
        modes=list,
        watch_ages=lambda: [] if watch is None else [("one", watch)],
        key_ages=lambda: [("one", 35.0)],
        refused_keys=dict,
        watched_objects=lambda: objects,
    )
    made.watch_tokens(views)
    body, kind = made.render()
    return json_answer(body, kind=kind)


def by_bound(server: ReviewServer) -> dict[str, object]:
    return server.section | BOUND


def test_a_cluster_that_is_well_has_a_row_for_each_part(
    server: ReviewServer, tmp_path: Path
) -> None:
    with ScriptedServer(answering(page())) as running:
        listen = running.url.removeprefix("http://")
        found = rows(tmp_path, by_bound(server), listen)
    told = (
        f"{server.url} answers; the bridge may review tokens, and watch what they are"
    )
    assert [*found.values()] == [
        ("one", "ok", "trust domain corp.example"),
        ("one, API server", "ok", f"{told} bound to and read pods"),
        ("one, keys", "ok", "1 key; confirmed 35 s ago by the bridge that runs"),
        (
            "one, watch",
            "ok",
            f"{HEARD} 12 s ago; 3 pods, 1 service account",
        ),
    ]


def test_a_bridge_that_listens_everywhere_is_asked_on_this_host(
    server: ReviewServer, tmp_path: Path
) -> None:
    with ScriptedServer(answering(page())) as running:
        everywhere = f"0.0.0.0:{running.port}"
        found = rows(tmp_path, by_bound(server), everywhere)
    assert found["one, watch"][1] == "ok"


def test_a_missing_right_fails_and_the_rest_is_told(
    server: ReviewServer, tmp_path: Path
) -> None:
    server.denied = {"watch pods", "watch serviceaccounts"}
    what, result, told = rows(tmp_path, by_bound(server))["one, API server"]
    assert (what, result) == ("one, API server", "FAILED")
    assert told.count("the bridge may not watch ") == 2


def test_an_api_server_that_is_away_fails_with_the_reason(
    server: ReviewServer, tmp_path: Path
) -> None:
    server.fault = lambda *_: None
    found = rows(tmp_path, by_bound(server))
    for part, result in ("API server", "FAILED"), ("keys", "warning"):
        assert found[f"one, {part}"][1] == result
        assert f"{server.url}: " in found[f"one, {part}"][2]


def test_without_a_running_bridge_that_is_told(
    server: ReviewServer, tmp_path: Path
) -> None:
    listen = netports.address()
    found = rows(tmp_path, by_bound(server), listen)
    told = (
        f"not known: no bridge answers at {listen}, its admin.listen (Connection refu"
    )
    what, result, detail = found["one, watch"]
    assert (what, result, detail.startswith(told)) == ("one, watch", "note", True)
    assert found["one, keys"] == ("one, keys", "ok", "1 key")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (json_answer(b"a 1\n", kind="text/plain"), "is no bridge"),
        (json_answer(b"{}", 404), "no bridge answers at"),
        (json_answer(b"\xff", kind="text/plain"), "no bridge answers at"),
        (b"junk", "no bridge answers at"),
        (b"", "no bridge answers at"),
    ],
)
def test_what_is_no_bridge_is_told(
    server: ReviewServer, tmp_path: Path, answer: bytes, says: str
) -> None:
    with ScriptedServer(saying(answer)) as other:
        listen = other.url.removeprefix("http://")
        _, result, told = rows(tmp_path, by_bound(server), listen)["one, watch"]
    assert result == "note"
    assert says in told


@pytest.mark.parametrize(
    ("watch", "says"),
    [
        (None, "the bridge that runs has not listed everything yet"),
        (181.0, "heard of the API server 181 s ago"),
    ],
)
def test_a_watch_that_is_of_no_use_is_a_warning(
    server: ReviewServer, tmp_path: Path, watch: float | None, says: str
) -> None:
    with ScriptedServer(answering(page(watch=watch))) as running:
        listen = running.url.removeprefix("http://")
        _, result, told = rows(tmp_path, by_bound(server), listen)["one, watch"]
    assert result == "warning"
    assert says in told


def test_each_way_to_verify_has_its_rows(server: ReviewServer, tmp_path: Path) -> None:
    jwks = {"verify": "jwks", "file": "jwks.json", "issuer": "https://a.example"}
    assert [*rows(tmp_path, server.section)] == ["one", "one, API server"]
    assert [*rows(tmp_path, jwks)] == ["one", "one, keys"]


def test_events_are_among_the_rights(server: ReviewServer, tmp_path: Path) -> None:
    front = {"linkerd": {"listen": "127.0.0.1:0"}}
    found = rows(tmp_path, server.section, fronts=front)
    assert found["one, API server"][2].endswith("read pods and write events")
