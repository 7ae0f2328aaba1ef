"""Linkerd's events where the API server does not take them: no caller notices."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import linkerd_raw
from tests.support.clients.istio_raw import MAIN
from tests.support.clients.linkerd_raw import SUFFIX, Certify
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true
from tests.support.parts.scripted_http import json_answer
from tests.support.parts.token_reviews import (
    Fault,
    ReviewServer,
    dripping,
    holding,
    saying,
)

HEAD = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n"
MANY = 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with ReviewServer(tmp_path) as running:
        yield running


def serving(server: ReviewServer, folder: Path, **front: object) -> Bridge:
    return Bridge(
        folder / "served",
        issuers=(MAIN,),
        fronts=("istio", "linkerd"),
        overrides={
            "clusters": [{"name": "one", "tokens": server.section}],
            "fronts": {"linkerd": front},
            "limits": {"threads": 2},
        },
    )


def ask(client: Certify, account: str = "web") -> None:
    identity = f"{account}.shop{SUFFIX}"
    shown, csr = linkerd_raw.token("shop", account), linkerd_raw.new_csr(identity)
    answer = client.ask(identity=identity, credential=shown, csr=csr)
    assert answer.code == "OK", answer


def of(bridge: Bridge, result: str) -> float:
    return bridge.metric("meshca_events_total", result=result)


FAULTS: dict[str, Fault] = {
    "403": saying(json_answer(b'{"message": "no"}', 403)),
    "hangs": holding(),
    "drips": dripping(HEAD + b"X: ", b"a"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_api_server_that_takes_no_events_costs_no_caller_anything(
    server: ReviewServer, tmp_path: Path, name: str
) -> None:
    server.event_fault = FAULTS[name]
    with serving(server, tmp_path) as bridge, Certify(bridge) as client:
        ask(client)
        await_true(lambda: server.events() != [])
        began = time.monotonic()
        for _ in range(MANY):  # more than there are threads, while that one hangs
            ask(client)
        # None waits for an event, which has 5 s.
        assert time.monotonic() - began < MANY * 0.7
        await_true(lambda: of(bridge, "failed") >= 1)
        assert bridge.get("/readyz")[0] == 200
        assert (of(bridge, "dropped") > 0) == (name == "403")
        assert of(bridge, "sent") == 0
        # All of one account is one event, which is tried once at a time.
        assert len(server.events()) <= 5


def test_events_come_back_with_the_api_server(
    server: ReviewServer, tmp_path: Path
) -> None:
    server.event_fault = saying(json_answer(b"{}", 500))
    with serving(server, tmp_path) as bridge, Certify(bridge) as client:
        for account in ("web", "web", "api"):
            ask(client, account)
        await_true(lambda: of(bridge, "failed") >= 1)
        server.event_fault = None
        await_true(lambda: of(bridge, "sent") == 2)
        counts = {
            one["involvedObject"]["name"]: one["count"] for one in server.events()[-2:]
        }
        assert counts == {"web": 2, "api": 1}
        assert "events are written again, after: " in bridge.log()


def test_there_are_none_where_they_are_off(
    server: ReviewServer, tmp_path: Path
) -> None:
    with serving(server, tmp_path, events=False) as bridge, Certify(bridge) as client:
        ask(client)
        threads = Path(f"/proc/{bridge.worker}/task").glob("*/comm")
        assert "events" not in {one.read_text().strip() for one in threads}
    assert server.events() == []
