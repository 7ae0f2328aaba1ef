"""Tokens that are verified by a watch: faults of the API server, and remote secrets."""

import base64
import itertools
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.identity.service_account_token import unverified
from bridge.kubernetes.informer import RESOURCES
from tests.support.clients import ztunnel
from tests.support.clients.istio_raw import FOREIGN, MAIN, Wire, bearer
from tests.support.harness import processes
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true
from tests.support.parts.scripted_http import json_answer, server_tls
from tests.support.parts.token_reviews import (
    FAULTS as API_FAULTS,
)
from tests.support.parts.token_reviews import (
    OTHER_OBJECT,
    OWN_TOKEN,
    REVIEWS,
    Fault,
    ReviewServer,
    holding,
    saying,
)
from tests.support.parts.tokens import OMIT, TokenIssuer
from tests.support.parts.watched_objects import (
    HEAD,
    ISTIO,
    WatchedObjects,
    chunk,
    end_of_list,
    event,
)

pytestmark = pytest.mark.xdist_group("bound-token-faults")

SECRETS = f"/api/v1/namespaces/{ISTIO}/secrets"
SHOP_PODS = "/api/v1/namespaces/shop/pods"
NAME = "spiffe://corp.example/ns/shop/sa/web"
PROXY = "spiffe://corp.example/ns/istio-system/sa/ztunnel"
UID = "7d3a1c9e-0000-4000-8000-000000000001"
SECONDS = 60.0
NUMBERS = itertools.count()


def pods(*namespaces: str) -> dict[str, Any]:
    """Return what the API server tells of the pods on a node."""
    items = [{"metadata": {"namespace": one}} for one in namespaces]
    return {"kind": "PartialObjectMetadataList", "items": items}


class Side:
    """One cluster: its API server, and what that has."""

    def __init__(self, server: ReviewServer, issuer: TokenIssuer) -> None:
        self.server = server
        self.issuer = issuer
        self.objects = WatchedObjects(server, issuer)
        for namespace, account in (("shop", "web"), (ISTIO, "ztunnel")):
            bound = unverified(self.token(namespace, account))["kubernetes.io"]
            uid = bound["serviceaccount"]["uid"]
            self.objects.put("serviceaccounts", namespace, account, uid)
        self.objects.put_pod("shop", "web-0", UID, "web")
        self.objects.put_pod(ISTIO, "ztunnel-1", UID, "ztunnel")
        server.objects[SHOP_PODS] = pods("shop")

    def token(
        self, namespace: str = "shop", account: str = "web", pod: str = "web-0"
    ) -> str:
        """Return a token of one of its pods."""
        now = datetime.now(UTC)
        return self.issuer.token(namespace, account, now=now, pod=(pod, UID))

    def secret(self, token: str = OWN_TOKEN) -> dict[str, Any]:
        """Return the list of one remote secret with the way to it."""
        ca = base64.b64encode(self.server.ca_file.read_bytes()).decode()
        cluster = {"server": self.server.url, "certificate-authority-data": ca}
        kubeconfig = {
            "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        return secret_of(yaml.safe_dump(kubeconfig))


def secret_of(content: str) -> dict[str, Any]:
    value = base64.b64encode(content.encode()).decode()
    return {"items": [{"metadata": {"name": "s"}, "data": {"far": value}}]}


@dataclass
class Ground:
    home: Side
    far: Side
    """Of the cluster with a remote secret."""
    bridge: Bridge

    def ways(self) -> dict[str, str]:
        """Return how the tokens of each cluster are verified now."""
        found: list[tuple[str, str]] = []
        way = r'meshca_token_verification\{cluster="(\w+)",verified_by="(\w+)"\} 1'

        def is_told() -> bool:
            found[:] = re.findall(way, self.bridge.get("/metrics")[1])
            return bool(found)

        # A page is without a worker that is too busy to answer within a second.
        await_true(is_told, SECONDS)
        return dict(found)

    def await_way(self, cluster: str, way: str) -> None:
        await_true(lambda: self.ways().get(cluster) == way, SECONDS)

    def await_watches(self, cluster: str) -> None:
        """Wait until both watches of a cluster tell of what is new.

        What an earlier watch has seen stays in use: that tokens are verified by it does
        not tell that there is one now.
        """
        objects = {"home": self.home, "far": self.far}[cluster].objects
        for kind in RESOURCES:
            self._await_more(objects, cluster, kind)

    def _await_more(self, objects: WatchedObjects, cluster: str, kind: str) -> None:
        counts: list[float] = []

        def seen() -> float:
            labels = {"cluster": cluster, "kind": kind}
            return self.bridge.metric("meshca_watched_objects", **labels)

        def is_more() -> bool:
            objects.put(kind, "shop", f"new-{next(NUMBERS)}", UID)
            return seen() > counts[-1]

        def is_told() -> bool:
            counts.append(seen())
            return counts[-1] > 0  # a page may be without a worker that is too busy

        await_true(is_told, SECONDS)
        await_true(is_more, SECONDS)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("bound-token")
    with ExitStack() as parts:
        sides = []
        for name, issuer in (("home", MAIN), ("far", FOREIGN)):
            (folder / name).mkdir()
            server = parts.enter_context(ReviewServer(folder / name))
            sides.append(Side(server, issuer))
        home, far = sides
        home.server.objects[SECRETS] = far.secret()
        made = Bridge(folder / "served", issuers=(MAIN,), overrides=bound(home, far))
        ground = Ground(home, far, parts.enter_context(made))
        for cluster in ("home", "far"):
            ground.await_way(cluster, "bound")
        yield ground
        assert "Traceback" not in made.log()


def bound(home: Side, far: Side) -> dict[str, Any]:
    """Return the sections of the bridge: one cluster beside its remote one."""
    way = home.server.section | {"timeout": "1.5s"}
    del way["verify"]
    tokens = {"verify": "bound", "issuer": home.issuer.issuer}
    joined = {"verify": "bound", "issuer": far.issuer.issuer, "remote_secret": True}
    return {
        "clusters": [
            {"name": "home", "tokens": tokens | way},
            {
                "name": "far",
                "namespaces": ["*"],
                "tokens": joined | {"timeout": "1.5s"},
            },
        ],
        "remote_secrets": way | {"namespace": ISTIO},
        "ledger": {"refusals_per_second": 100_000, "excess_per_second": 100_000},
        # Fewer than there are faults: a thread that is lost would be missed.
        "limits": {"threads": 4},
    }


@pytest.fixture
def wire(ground: Ground) -> Iterator[Wire]:
    for side in (ground.home, ground.far):
        side.server.fault = side.server.pod_fault = None
    with Wire(ground.bridge) as opened:
        yield opened


def certified(wire: Wire, side: Side, cluster: str) -> str:
    """Return how the token of a pod that was seen is verified."""
    before = side.server.reviews()
    answer = wire.ask(bearer(side.token(), cluster))
    assert (answer.code, answer.uris) == ("OK", [NAME])
    assert wire.new_outcome()["cluster"] == cluster
    way = str(wire.bridge.rows(kind="intent", front="istio")[-1]["verified_by"])
    assert side.server.reviews() - before == (way == "token_review")
    return way


def test_both_clusters_are_watched(ground: Ground, wire: Wire) -> None:
    assert certified(wire, ground.home, "home") == "bound"
    assert certified(wire, ground.far, "far") == "bound"
    # Each by its own keys.
    answer = wire.ask(bearer(ground.home.token(), "far"))
    assert (answer.code, answer.text.partition(":")[0]) == (
        "UNAUTHENTICATED",
        "token.key",
    )
    wire.new_outcome()


def test_a_pod_that_is_deleted_is_refused_in_its_cluster(
    ground: Ground, wire: Wire
) -> None:
    for side in (ground.home, ground.far):
        side.objects.put_pod("shop", "web-1", UID, "web")
    shown = bearer(ground.far.token(pod="web-1"), "far")
    assert wire.ask(shown).code == "OK"
    wire.new_outcome()
    ground.far.objects.delete("pods", "shop", "web-1")
    rules: list[str] = []

    def is_refused() -> bool:
        answer = wire.ask(shown)
        rules.append(wire.new_outcome()["rule"])
        return answer.code == "UNAUTHENTICATED"

    await_true(is_refused, SECONDS)
    assert rules[-1] == "token.gone"
    assert wire.ask(bearer(ground.home.token(pod="web-1"), "home")).code == "OK"
    wire.new_outcome()


BOUND_TO: dict[str, Any] = {
    "namespace": "shop",
    "serviceaccount": {"name": "web", "uid": "1"},
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another audience": ({"audiences": ("api",)}, "token.audience"),
    "no audience": ({"claims": {"aud": OMIT}}, "token.audience"),
    "expired": ({"lifetime": -1}, "token.expired"),
    "a user's": ({"claims": {"sub": "jane"}}, "token.subject"),
    "a node's": ({"claims": {"sub": "system:node:node-1"}}, "token.subject"),
    "bound to a Secret": (
        {"claims": {"kubernetes.io": BOUND_TO | {"secret": {"name": "s", "uid": "1"}}}},
        "token.unbound",
    ),
    "of the old kind": ({"claims": {"kubernetes.io": OMIT}}, "token.unbound"),
    "bound to no pod": ({"pod": None}, "token.unbound"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("cluster", ["home", "far"])
def test_a_token_that_is_no_good_costs_no_call(
    ground: Ground, wire: Wire, cluster: str, name: str
) -> None:
    side, (changed, rule) = {"home": ground.home, "far": ground.far}[cluster], BAD[name]
    asked = len(side.server.requests)
    shown = side.issuer.token(now=datetime.now(UTC), **changed)
    answer = wire.ask(bearer(shown, cluster))
    told = (answer.code, answer.text.partition(":")[0])
    assert told == ("UNAUTHENTICATED", rule)
    row = wire.new_outcome()
    assert (row["kind"], row["rule"], row["caller"]) == ("refused", rule, "")
    # The watches go on meanwhile, and the remote secrets are listed.
    later = side.server.requests[asked:]
    calls = (b"/namespaces/shop/", REVIEWS.encode())
    assert not any(call in one for one in later for call in calls)


FAULTS = API_FAULTS | {"another object": OTHER_OBJECT}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("cluster", ["home", "far"])
def test_a_pod_that_was_seen_needs_no_api_server(
    ground: Ground, wire: Wire, cluster: str, name: str
) -> None:
    sides = {"home": ground.home, "far": ground.far}
    side = sides.pop(cluster)
    (other,) = sides.items()
    side.server.fault, rule = FAULTS[name]
    assert certified(wire, side, cluster) == "bound"
    # One that was not seen has to be asked for.
    unseen = bearer(side.token(pod=f"unseen-{[*FAULTS].index(name)}"), cluster)
    answer = wire.ask(unseen)
    assert (answer.code, answer.text.partition(":")[0]) == ("UNAVAILABLE", rule)
    row = wire.new_outcome()
    told = (row["kind"], row["status"], row["rule"])
    assert told == ("failed", "UNAVAILABLE", rule)
    assert certified(wire, other[1], other[0]) == "bound"
    # Nothing is kept of the fault.
    side.server.fault = None
    answer = wire.ask(unseen)
    assert answer.text.partition(":")[0] == "token.gone"
    wire.new_outcome()
    assert ground.bridge.get("/readyz")[0] == 200


def test_an_api_server_with_another_certificate_gets_no_token(
    ground: Ground, wire: Wire, tmp_path: Path
) -> None:
    side, server = ground.far, ground.far.server
    unseen = bearer(side.token(pod="unseen-by-anybody"), "far")
    server.fault = saying(b"")  # no connection is left but those of the watches
    assert wire.ask(unseen).code == "UNAVAILABLE"
    wire.new_outcome()
    server.fault = None
    other, _ = server_tls(tmp_path)
    asked = len(server.requests)
    before, server.tls = server.tls, other
    try:
        answer = wire.ask(unseen)
        row = wire.new_outcome()
        assert certified(wire, side, "far") == "bound"
    finally:
        server.tls = before
    rule = "review.unavailable"
    assert (answer.code, answer.text.partition(":")[0]) == ("UNAVAILABLE", rule)
    assert (row["kind"], row["rule"]) == ("failed", rule)
    assert "certificate verify failed" in row["detail"]
    assert not any(b"/namespaces/shop/" in one for one in server.requests[asked:])
    assert certified(wire, ground.home, "home") == "bound"
    assert wire.ask(unseen).text.startswith("token.gone")
    wire.new_outcome()


def closing(_: ReviewServer, sock: Any) -> None:
    """Begin a list, and lose the connection."""
    sock.sendall(HEAD + chunk(event("ADDED", FOUND)))


def silent(_: ReviewServer, sock: Any) -> None:
    """Begin a list, and say nothing more, until the test goes on."""
    sock.sendall(HEAD + chunk(event("ADDED", FOUND)))
    GO_ON.wait(SECONDS)


FOUND = {"metadata": {"name": "a", "uid": "1", "resourceVersion": "1"}}
GONE = {"kind": "Status", "code": 410, "message": "too old"}
GO_ON = threading.Event()
WATCHES: dict[str, Fault] = {
    "401": saying(json_answer(b"{}", 401)),
    "410 amid a list": saying(
        HEAD + chunk(event("ADDED", FOUND)) + chunk(event("ERROR", GONE)) + chunk(b"")
    ),
    "429 and when": saying(json_answer(b"{}", 429, ["Retry-After: 1"])),
    "500": saying(json_answer(b"{}", 500)),
    "hangs": holding(),
    "closes": closing,
    "silent but open": silent,
}


@pytest.mark.parametrize("name", WATCHES)
def test_a_watch_that_is_broken_off_forgets_nobody_and_catches_up(
    ground: Ground, wire: Wire, name: str
) -> None:
    far, pod = ground.far, f"web-{[*WATCHES].index(name)}x"
    far.objects.put_pod("shop", pod, UID, "web")
    shown = bearer(far.token(pod=pod), "far")
    assert wire.ask(shown).code == "OK"
    wire.new_outcome()
    GO_ON.clear()
    asked = len(far.server.requests)
    try:
        far.objects.fault = WATCHES[name]
        lists = (b"GET /api/v1/pods?", b"GET /api/v1/serviceaccounts?")

        def is_met() -> bool:
            later = far.server.requests[asked:]
            return all(any(one in each for each in later) for one in lists)

        await_true(is_met, SECONDS)
        far.objects.delete("pods", "shop", pod)
        assert certified(wire, far, "far") == "bound"
        assert certified(wire, ground.home, "home") == "bound"
        assert ground.bridge.get("/readyz")[0] == 200
    finally:
        far.objects.fault = None
        GO_ON.set()
    rules: list[str] = []

    def is_refused() -> bool:
        answer = wire.ask(shown)
        rules.append(wire.new_outcome()["rule"])
        return answer.code == "UNAUTHENTICATED"

    await_true(is_refused, SECONDS)
    assert rules[-1] == "token.gone"
    assert certified(wire, far, "far") == "bound"


def test_a_watcher_that_is_killed_is_replaced(ground: Ground, wire: Wire) -> None:
    for side in (ground.home, ground.far):
        side.objects.put_pod("shop", "web-k", UID, "web")
    (before,) = processes.watchers(ground.bridge.pid)
    os.kill(before, signal.SIGKILL)
    for name, side in (("home", ground.home), ("far", ground.far)):
        assert certified(wire, side, name) == "bound"
        side.objects.delete("pods", "shop", "web-k")
        shown = bearer(side.token(pod="web-k"), name)

        def is_refused(shown: Any = shown) -> bool:
            answer = wire.ask(shown)
            wire.new_outcome()
            return answer.code == "UNAUTHENTICATED"

        await_true(is_refused, SECONDS)
    assert before not in processes.watchers(ground.bridge.pid)
    for name in ("home", "far"):
        ground.await_watches(name)


@pytest.mark.parametrize("cluster", ["home", "far"])
def test_a_ztunnel_is_asked_about_at_the_api_server_of_its_cluster(
    ground: Ground, wire: Wire, cluster: str
) -> None:
    side = {"home": ground.home, "far": ground.far}[cluster]

    def asked(pod: str = "ztunnel-1", account: str = "ztunnel") -> tuple[str, str]:
        shown = side.token(ISTIO, account, pod)
        answer = ztunnel.ask(wire, shown, NAME, cluster)
        row = wire.new_outcome()
        if answer.code == "OK":
            ztunnel.require_taken(answer, NAME)
            assert (row["requester"], row["cluster"]) == (PROXY, cluster)
            intent = ground.bridge.rows(kind="intent", front="istio")[-1]
            assert intent["verified_by"] == "bound"
        return answer.code, row["rule"]

    before = side.server.reviews()
    assert asked() == ("OK", "")
    # The workload is a pod of its node, or gets nothing, though the watch saw it.
    side.server.objects[SHOP_PODS] = pods()
    assert asked() == ("PERMISSION_DENIED", "impersonation.node")
    side.server.objects[SHOP_PODS] = pods("shop")
    side.server.pod_fault = holding()
    assert asked() == ("UNAVAILABLE", "review.timeout")
    side.server.pod_fault = None
    assert asked() == ("OK", "")
    answer = ztunnel.ask(wire, side.token(), NAME, cluster)
    assert answer.code == "PERMISSION_DENIED"
    assert wire.new_outcome()["rule"] == "impersonation.account"
    assert asked(pod="ztunnel-2") == ("UNAUTHENTICATED", "token.gone")
    assert side.server.reviews() == before


def test_a_new_token_in_a_remote_secret_interrupts_nothing(
    ground: Ground, wire: Wire
) -> None:
    server = ground.far.server
    ground.await_watches("far")
    before = len(server.requests)

    def is_asked() -> bool:
        assert certified(wire, ground.far, "far") == "bound"
        # What was not seen is asked for with the new token, once it is listed. That a
        # pod is not there is known for a second.
        unseen = ground.far.token(pod=f"unseen-{next(NUMBERS)}")
        answer = wire.ask(bearer(unseen, "far"))
        wire.new_outcome()
        return answer.text.startswith("token.gone")

    try:
        server.accepted = "another-token"
        ground.home.server.objects[SECRETS] = ground.far.secret("another-token")
        await_true(is_asked, SECONDS)
        # The streams go on: nothing is listed again.
        assert not any(b"watch=true" in one for one in server.requests[before:])
    finally:
        server.accepted = OWN_TOKEN
        ground.home.server.objects[SECRETS] = ground.far.secret()
    await_true(is_asked, SECONDS)


def test_a_half_written_secret_leaves_what_it_said(ground: Ground, wire: Wire) -> None:
    ground.home.server.objects[SECRETS] = secret_of("apiVersion: v1\nclusters: [")

    def is_told() -> bool:
        status, text = ground.bridge.get("/readyz")
        assert status == 200
        return "remote secret of far" in text or "remote secret s" in text

    await_true(is_told, SECONDS)
    assert certified(wire, ground.far, "far") == "bound"
    ground.home.server.objects[SECRETS] = ground.far.secret()
    await_true(lambda: not is_told(), SECONDS)


def test_a_remote_secret_that_is_gone_takes_the_watch_with_it(
    ground: Ground, wire: Wire
) -> None:
    ground.home.server.objects[SECRETS] = {"items": []}
    rules: list[str] = []

    def is_away() -> bool:
        answer = wire.ask(bearer(ground.far.token(), "far"))
        rules.append(wire.new_outcome()["rule"])
        # A call that began before may have been refused for another reason.
        return (answer.code, rules[-1]) == ("UNAVAILABLE", "review.credential")

    await_true(is_away, SECONDS)
    ground.await_way("far", "token_review")
    assert ground.bridge.get("/readyz")[0] == 200
    assert certified(wire, ground.home, "home") == "bound"
    ground.home.server.objects[SECRETS] = ground.far.secret()
    ground.await_way("far", "bound")
    assert certified(wire, ground.far, "far") == "bound"


def require_followed(bridge: Bridge, home: Side, pod: str) -> None:
    """Raise AssertionError if the watch does not tell of a pod that is deleted."""
    home.objects.put_pod("shop", pod, UID, "web")
    shown = bearer(home.token(pod=pod), "home")
    # The bridge closes a connection with too many refused calls.
    with Wire(bridge) as wire:
        answer = wire.ask(shown)
        assert answer.code == "OK", answer
        home.objects.delete("pods", "shop", pod)
        await_true(lambda: wire.ask(shown).code == "UNAUTHENTICATED", SECONDS)


def endless(kind: str, *first: bytes) -> Fault:
    """Return a fault: events of new objects without an end."""

    def fault(server: ReviewServer, sock: Any) -> None:
        sock.sendall(HEAD + b"".join(map(chunk, first)))
        numbers = itertools.count()
        while not server.over.is_set():
            events = []
            for number in itertools.islice(numbers, 500):
                metadata = {
                    "namespace": "shop",
                    "name": f"{number:0>253}",
                    "uid": f"{number:0>64}",
                    "resourceVersion": "20",
                }
                events.append(event(kind, {"metadata": metadata}))
            sock.sendall(chunk(b"".join(events)))

    return fault


ENDLESS = {
    "a list": (endless("ADDED"), "it has more than 150000 pods", "token_review"),
    "changes": (
        endless("MODIFIED", end_of_list(20)),
        "there were more than 150000 changes",
        "bound",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_harms_no_other_cluster(tmp_path: Path, name: str) -> None:
    fault, told, way = ENDLESS[name]
    with ExitStack() as parts:
        sides = []
        for cluster, issuer in (("home", MAIN), ("far", FOREIGN)):
            (tmp_path / cluster).mkdir()
            server = parts.enter_context(ReviewServer(tmp_path / cluster))
            sides.append(Side(server, issuer))
        home, far = sides
        home.server.objects[SECRETS] = far.secret()
        far.objects.fault = fault
        made = Bridge(tmp_path / "served", issuers=(MAIN,), overrides=bound(home, far))
        ground = Ground(home, far, parts.enter_context(made))
        ground.await_way("home", "bound")
        # The watch of the other cluster goes on, again and again.
        pods = (f"pod-{number}" for number in itertools.count())
        while told not in made.log():
            require_followed(made, home, next(pods))
        assert ground.ways() == {"home": "bound", "far": way}
        (watcher,) = processes.watchers(made.pid)
        peak = re.search(
            r"VmHWM:\s+(\d+) kB", Path(f"/proc/{watcher}/status").read_text()
        )
        assert peak is not None
        # 150,000 objects of each of two resources, with texts of the greatest length.
        assert int(peak[1]) < 400 * 1024
