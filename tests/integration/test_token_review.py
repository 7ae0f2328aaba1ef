"""Faults of one cluster's API server, over the wire; another cluster is unharmed."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from bridge.config import parse
from bridge.errors import ReviewError
from bridge.identity.caller import TokenCredential
from bridge.identity.clusters import ClusterRegistry
from bridge.resilience.budget import Budget
from bridge.system.clock import system_clock
from tests.support.clients import linkerd_raw
from tests.support.clients.istio_raw import MAIN, Wire, bearer, token
from tests.support.clients.linkerd_raw import SUFFIX, Certify
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true
from tests.support.parts.scripted_http import server_tls
from tests.support.parts.token_reviews import (
    ACCESS,
    FAULTS,
    ReviewServer,
    holding,
    saying,
)
from tests.support.parts.tokens import OMIT
from tests.unit.config.test_load import tree

pytestmark = pytest.mark.xdist_group("token-review-faults")

NAME = "spiffe://corp.example/ns/shop/sa/web"


@dataclass
class Ground:
    server: ReviewServer
    bridge: Bridge


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("token-review")
    with ReviewServer(folder) as server:
        jwks = {"verify": "jwks", "file": "jwks.json", "issuer": MAIN.issuer}
        clusters = [
            {"name": "reviewed", "tokens": server.section | {"timeout": "1.5s"}},
            {"name": "offline", "namespaces": ["*"], "tokens": jwks},
        ]
        bridge = Bridge(
            folder / "served",
            issuers=(MAIN,),
            fronts=("istio", "linkerd"),
            overrides={
                "clusters": clusters,
                "ledger": {"refusals_per_second": 100_000},
                "limits": {"threads": 4},
            },
        )
        with bridge:
            yield Ground(server, bridge)
        assert "Traceback" not in bridge.log()


@pytest.fixture
def wire(ground: Ground) -> Iterator[Wire]:
    ground.server.fault = None
    ground.server.alter = lambda status: status
    with Wire(ground.bridge) as opened:
        yield opened


def test_a_good_token_is_reviewed_once_for_each_call(
    ground: Ground, wire: Wire
) -> None:
    before = ground.server.reviews()
    for number in (1, 2):
        answer = wire.ask(bearer(token()))
        assert answer.uris == [NAME]
        assert wire.new_outcome()["caller"] == NAME
        assert ground.server.reviews() == before + number


def test_junk_costs_no_review(ground: Ground, wire: Wire) -> None:
    before = ground.server.reviews()
    for junk in (
        "",
        "a.b.c",
        token(audiences=("api",)),
        token(claims={"aud": OMIT}),
        token(lifetime=-1),
        token(claims={"sub": "jane"}),
        token(claims={"sub": "system:node:node-1"}),
    ):
        assert wire.ask(bearer(junk)).code == "UNAUTHENTICATED"
        wire.new_outcome()
    assert ground.server.reviews() == before


@pytest.mark.parametrize("name", FAULTS)
def test_a_review_that_cannot_be_made_is_unavailable(
    ground: Ground, wire: Wire, name: str
) -> None:
    ground.server.fault, rule = FAULTS[name]
    answer = wire.ask(bearer(token()))
    assert (answer.code, answer.text.partition(":")[0]) == ("UNAVAILABLE", rule)
    row = wire.new_outcome()
    told = (row["kind"], row["status"], row["rule"])
    assert told == ("failed", "UNAVAILABLE", rule)
    # It is told, and nobody gets unready for it.
    status, text = ground.bridge.get("/readyz")
    assert (status, "cluster reviewed: " in text) == (200, True), text
    # The other cluster is unharmed, and nothing is kept of the fault.
    assert wire.ask(bearer(token(), "offline")).code == "OK"
    assert wire.new_outcome()["kind"] == "issued"
    ground.server.fault = None
    assert wire.ask(bearer(token())).code == "OK"
    assert wire.new_outcome()["kind"] == "issued"


def test_an_api_server_with_another_certificate_gets_no_token(
    ground: Ground, wire: Wire, tmp_path: Path
) -> None:
    server = ground.server
    server.fault = saying(b"")  # no connection is left
    assert wire.ask(bearer(token())).code == "UNAVAILABLE"
    wire.new_outcome()
    server.fault = None
    other, _ = server_tls(tmp_path)
    asked = len(server.requests)
    before, server.tls = server.tls, other
    try:
        answer = wire.ask(bearer(token()))
    finally:
        server.tls = before
    rule = "review.unavailable"
    assert (answer.code, answer.text.partition(":")[0]) == ("UNAVAILABLE", rule)
    row = wire.new_outcome()
    assert (row["kind"], row["rule"]) == ("failed", rule)
    assert "certificate verify failed" in row["detail"]
    # Neither its own token nor the workload's was shown.
    assert len(server.requests) == asked
    assert wire.ask(bearer(token(), "offline")).code == "OK"
    wire.new_outcome()
    assert wire.ask(bearer(token())).code == "OK"
    wire.new_outcome()


def test_no_fault_keeps_a_thread(ground: Ground) -> None:
    # Four threads have met each fault above. All of them serve, at once.
    before = len(ground.bridge.rows(kind="issued", front="istio"))
    with ExitStack() as parts:
        wires = [parts.enter_context(Wire(ground.bridge)) for _ in range(8)]
        pool = parts.enter_context(ThreadPoolExecutor(len(wires)))
        ground.server.fault = None
        ground.server.alter = lambda status: status

        def serve(one: Wire) -> None:
            # A call waits 0.2 s for a place at the API server. Its client asks again.
            await_true(lambda: one.ask(bearer(token())).code == "OK")

        for call in [pool.submit(serve, one) for one in wires]:
            call.result()
    ground.bridge.await_rows(before + 8, kind="issued", front="istio")


def user(name: str) -> Callable[[dict[str, Any]], object]:
    """Return an alteration: the token is another user's."""
    return lambda status: status | {"user": status["user"] | {"username": name}}


ALTERED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "not authenticated": (lambda status: status | {"authenticated": False}, "review"),
    "with an error": (lambda status: status | {"error": "expired"}, "review"),
    "without audiences": (lambda status: status | {"audiences": []}, "review"),
    "another audience": (lambda status: status | {"audiences": ["api"]}, "review"),
    "another account": (user("system:serviceaccount:pay:api"), "review"),
    "a user": (user("jane"), "subject"),
    "a node": (user("system:node:node-1"), "subject"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_review_identifies_nobody(
    ground: Ground, wire: Wire, name: str
) -> None:
    ground.server.alter, what = ALTERED[name]
    answer = wire.ask(bearer(token()))
    rule = f"token.{what}"
    told = (answer.code, answer.text.partition(":")[0])
    assert told == ("UNAUTHENTICATED", rule)
    row = wire.new_outcome()
    assert (row["kind"], row["rule"], row["caller"]) == ("refused", rule, "")
    assert wire.ask(bearer(token(), "offline")).code == "OK"
    wire.new_outcome()


def test_linkerds_callers_get_the_status_of_its_own_ca(ground: Ground) -> None:
    ground.server.alter = lambda status: status
    identity = f"web.shop{SUFFIX}"

    def ask(client: Certify) -> Any:
        shown = linkerd_raw.token("shop", "web")
        csr = linkerd_raw.new_csr(identity)
        return client.ask(identity=identity, credential=shown, csr=csr)

    with Certify(ground.bridge) as client:
        ground.server.fault = None
        assert ask(client).code == "OK"
        ground.server.fault = holding()
        answer = ask(client)
        assert answer.code == "INTERNAL"
        assert answer.text.startswith(f"error validating token for {identity}: ")
        ground.server.fault = None
        for name, (ground.server.alter, what) in ALTERED.items():
            answer = ask(client)
            if what == "subject":
                assert answer.code == "INVALID_ARGUMENT", name
                assert answer.text.startswith("Username must be in form "), name
            else:
                assert answer.code == "FAILED_PRECONDITION", name
                assert answer.text == "authentication token could not be authenticated"


def test_calls_that_hang_leave_threads_for_the_other_cluster(
    ground: Ground, wire: Wire
) -> None:
    ground.server.hanging.clear()
    ground.server.fault = holding()

    def hang() -> None:
        with Wire(ground.bridge) as one:
            one.ask(bearer(token()))

    held = [Thread(target=hang) for _ in range(8)]
    for one in held:
        one.start()
    assert ground.server.hanging.wait(20)
    assert wire.ask(bearer(token(), "offline")).code == "OK"
    for one in held:
        one.join()
    ground.server.fault = None


def test_api_servers_that_hang_hold_few_threads_together(tmp_path: Path) -> None:
    # 12 threads: half of them for API servers, of which each of three has one.
    names = ("one", "two", "well")
    with ExitStack() as parts:
        servers = {}
        for name in names:
            (tmp_path / name).mkdir()
            servers[name] = parts.enter_context(ReviewServer(tmp_path / name))
        sections = {name: servers[name].section for name in names}
        for name in names[:2]:
            sections[name] |= {"timeout": "1s"}
            servers[name].fault = holding()
        changed = tree() | {
            "clusters": [
                {"name": name, "namespaces": ["*"], "tokens": section}
                for name, section in sections.items()
            ],
            "limits": {"threads": 12},
        }
        config = parse(yaml.safe_dump(changed), tmp_path / "bridge.yaml")
        clusters = ClusterRegistry(config, clock=system_clock)
        parts.callback(clusters.close)

        def ask(name: str) -> str:
            shown = TokenCredential((bearer(token())[0][1],), (name,))
            try:
                clusters.identify(
                    shown,
                    audiences=frozenset({"istio-ca"}),
                    now=datetime.now(UTC),
                    budget=Budget.of_seconds(30),
                )
            except ReviewError as error:
                return error.rule
            return "OK"

        pool = parts.enter_context(ThreadPoolExecutor(24))
        calls = [pool.submit(ask, name) for name in names[:2] for _ in range(12)]
        rules = Counter(one.result() for one in as_completed(calls, 60))
        assert rules.keys() == {"review.timeout", "review.busy"}
        # One of each, and what was lent before it was seen that they hang.
        assert 2 <= rules["review.timeout"] <= 5
        for name in names[:2]:
            servers[name].hanging.clear()
        calls = [pool.submit(ask, name) for name in names[:2] for _ in range(12)]
        for name in names[:2]:
            assert servers[name].hanging.wait(30)
        assert ask("well") == "OK"
        rules = Counter(one.result() for one in as_completed(calls, 60))
        assert rules == {"review.timeout": 2, "review.busy": 22}


def test_a_start_waits_for_no_api_server(tmp_path: Path) -> None:
    with ReviewServer(tmp_path) as server:
        server.fault = holding()
        made = Bridge(
            tmp_path / "served",
            overrides={"clusters": [{"name": "a", "tokens": server.section}]},
        )
        with made:
            assert made.get("/readyz")[0] == 200
        # The parent asks for the bridge's rights besides, and waits for no answer.
        assert all(ACCESS.encode() in one for one in server.requests)
