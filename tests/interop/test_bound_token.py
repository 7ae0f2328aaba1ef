"""Tokens that are verified by a watch of a real API server, over the wire."""

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.kubernetes.objects import KINDS, PODS
from tests.support.clients.istio_raw import Answer, Wire, bearer
from tests.support.harness.processes import watchers
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import Supervised
from tests.support.parts.kubernetes import DEPLOY, APIServer

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("bound-token")]

ISSUER = "https://kubernetes.default.svc"
SHOP = "/api/v1/namespaces/shop"
SECONDS = 60.0
"""How long a test waits for an event at most."""


@dataclass
class Ground:
    server: APIServer
    bridge: Bridge
    wire: Wire

    def ask(self, token: str) -> Answer:
        """Ask for a certificate."""
        return self.wire.ask(bearer(token))

    def await_refusal(self, token: str) -> str:
        """Ask until the token is refused; return the rule."""
        answers: list[Answer] = []

        def is_refused() -> bool:
            answers.append(self.ask(token))
            return answers[-1].code == "UNAUTHENTICATED"

        await_that(is_refused, "still not refused")
        return answers[-1].text.partition(":")[0]

    def has_seen(self, pod: str) -> bool:
        """Return whether the watcher has written a pod into the index."""
        fds = Path(f"/proc/{watcher_of(self.bridge)}/fd").iterdir()
        paths = [one.resolve() for one in fds if one.resolve().name == "watched"]
        if not paths:  # it has not begun
            return False
        with closing(sqlite3.connect(paths[0])) as index:
            query = "SELECT 1 FROM objects WHERE kind = 'pods' AND name = ?"
            return index.execute(query, (pod,)).fetchone() is not None

    def way(self) -> str:
        """Return how tokens are verified now."""
        name = "meshca_token_verification"
        ways = ("bound", "token_review")
        return next((w for w in ways if self.bridge.metric(name, verified_by=w)), "")

    def accepted_by(self, token: str) -> str:
        """Return how an accepted token was verified."""
        answer = self.ask(token)
        assert answer.code == "OK", answer
        return str(self.bridge.rows(kind="intent")[-1]["verified_by"])


def await_that(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def clusters_of(
    server: APIServer, own_token: Path, **more: object
) -> list[dict[str, object]]:
    """Return the sections of the one cluster; `more` is of its tokens."""
    tokens = {
        "verify": "bound",
        "issuer": ISSUER,
        "server": server.url,
        "ca_file": str(server.ca_file),
        "token_file": str(own_token),
        **more,
    }
    return [{"name": "Kubernetes", "namespaces": ["*"], "tokens": tokens}]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("bound-token")
    with APIServer(folder / "cluster") as server:
        server.apply(DEPLOY / "home.yaml")
        server.new_account("shop", "web")
        own = folder / "own"
        own.write_text(server.token("meshca", "meshca-bridge"))
        overrides = {"clusters": clusters_of(server, own)}
        made = Bridge(folder / "served", overrides=overrides)
        with made as bridge, Wire(bridge) as wire:
            ground = Ground(server, bridge, wire)
            await_that(lambda: ground.way() == "bound", "the watch has not begun")
            yield ground


def meta(name: str) -> dict[str, object]:
    return {"metadata": {"name": name}}


def of_new_pod(server: APIServer, name: str) -> str:
    return server.pod_token("shop", "web", name)


def test_a_pod_gets_its_certificate_without_a_review(ground: Ground) -> None:
    token = of_new_pod(ground.server, "web-0")
    assert ground.accepted_by(token) == "bound"
    assert ground.bridge.get("/readyz")[0] == 200


def test_a_deleted_pod_is_refused_within_a_second(ground: Ground) -> None:
    seconds: list[float] = []
    for number in range(3):
        token = of_new_pod(ground.server, f"deleted-{number}")
        assert ground.accepted_by(token) == "bound"
        began = time.monotonic()
        ground.server.delete(f"{SHOP}/pods/deleted-{number}")
        assert ground.await_refusal(token) == "token.gone"
        seconds.append(time.monotonic() - began)
    # Of some, since a busy machine may hold one up.
    assert min(seconds) < 1.0, seconds


def test_a_pod_that_ends_in_order_is_not_gone(ground: Ground) -> None:
    token = of_new_pod(ground.server, "ending")
    ground.server.delete(f"{SHOP}/pods/ending", grace=600)
    assert ground.accepted_by(token) == "bound"


def of_new_account(server: APIServer, name: str) -> str:
    """Make an account with a pod; return a token of the pod."""
    server.post(f"{SHOP}/serviceaccounts", meta(name))
    return server.pod_token("shop", name, f"of-{name}")


def refusals(server: APIServer) -> dict[str, tuple[str, str]]:
    """Return tokens that no caller gets a certificate with, and the rule."""
    twice = of_new_pod(server, "twice")
    server.delete(f"{SHOP}/pods/twice")
    server.new_pod("shop", "web", "twice")
    gone, again = of_new_account(server, "gone"), of_new_account(server, "again")
    for name in ("gone", "again"):
        server.delete(f"{SHOP}/serviceaccounts/{name}")
    server.post(f"{SHOP}/serviceaccounts", meta("again"))
    secret = server.post(f"{SHOP}/secrets", meta("a-secret"))
    head, _, signature = of_new_pod(server, "web-1").split(".")
    other = of_new_pod(server, "web-2").split(".")[1]
    return {
        "a recreated pod": (twice, "token.gone"),
        "a deleted account": (gone, "token.gone"),
        "a recreated account": (again, "token.gone"),
        "bound to a Secret": (
            server.token("shop", "web", "istio-ca", bound_to=secret),
            "token.unbound",
        ),
        "bound to nothing": (server.token("shop", "web", "istio-ca"), "token.unbound"),
        "another audience": (server.token("shop", "web", "api"), "token.audience"),
        "another payload": (f"{head}.{other}.{signature}", "token.signature"),
        "no token": ("admin-of-a-test", "token.format"),
    }


def test_what_is_not_bound_to_a_pod_that_is_there_is_refused(ground: Ground) -> None:
    for name, (token, rule) in refusals(ground.server).items():
        assert ground.await_refusal(token) == rule, name


def test_a_bridge_has_one_watch_of_each_resource(
    ground: Ground, tmp_path: Path
) -> None:
    server, own = ground.server, ground.server.folder.parent / "own"
    before = {kind: server.watches(kind) for kind in KINDS}

    def is_one_more() -> bool:
        return all(server.watches(kind) == before[kind] + 1 for kind in KINDS)

    overrides = {"clusters": clusters_of(server, own)}
    with Supervised(tmp_path / "served", 4, overrides) as bridge:
        assert len(bridge.children()) == 4
        await_that(is_one_more, "with four workers")
        bridge.change(fronts__istio__audiences=["istio-ca", "other"])
        bridge.await_reloads("ok")
        await_that(is_one_more, "after a reload")
        (replaced,) = watchers(bridge.pid)
        bridge.change(clusters=clusters_of(server, own, timeout="7s"))
        bridge.await_reloads("ok", 2)
        await_that(lambda: replaced not in watchers(bridge.pid), "not replaced")
        await_that(is_one_more, "after a reload with another watcher")
    await_that(lambda: server.watches(PODS) == before[PODS], "after its end")


def watcher_of(bridge: Bridge) -> int:
    """Return the process ID of its one watcher."""
    (found,) = watchers(bridge.pid)
    return found


def test_a_killed_watcher_is_replaced_and_callers_do_not_notice(
    ground: Ground,
) -> None:
    token, before = of_new_pod(ground.server, "steady"), watcher_of(ground.bridge)
    os.kill(before, signal.SIGKILL)
    assert ground.accepted_by(token) == "bound"
    ground.server.delete(f"{SHOP}/pods/steady")
    assert ground.await_refusal(token) == "token.gone"
    # Had it not been seen yet, it was looked up: the next process may come later.
    await_that(
        lambda: watchers(ground.bridge.pid) not in ([], [before]), "not replaced"
    )
    of_new_pod(ground.server, "after-it")
    await_that(lambda: ground.has_seen("after-it"), "the next one watches nothing")


def test_an_api_server_that_is_gone_and_back_with_an_older_store(
    ground: Ground,
) -> None:
    server = ground.server
    old = of_new_pod(server, "old")
    assert ground.accepted_by(old) == "bound"
    server.kill()
    store, backup = server.folder / "store", server.folder / "backup"
    shutil.copytree(store, backup)
    server.start()
    lost = of_new_pod(server, "lost")
    await_that(lambda: ground.has_seen("lost"), "never seen")
    server.kill()
    # The watch has seen both, and nobody is there to ask.
    for token in (old, lost):
        assert ground.accepted_by(token) == "bound"
    shutil.rmtree(store)
    backup.rename(store)
    server.start()
    assert ground.await_refusal(lost) == "token.gone"
    assert ground.accepted_by(old) == "bound"
