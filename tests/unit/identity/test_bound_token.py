"""A token is worth something as long as its pod and its account are there."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bridge.config import BoundConfig
from bridge.errors import AuthenticationError, ReviewError
from bridge.identity.bound_token import APIServerKeys, BoundVerifier, WatchedObjects
from bridge.identity.caller import ServiceAccount
from bridge.identity.keyring import KeyOwners
from bridge.identity.offline_verifier import OfflineVerifier
from bridge.identity.service_account_token import unverified
from bridge.identity.token_review import ReviewVerifier
from bridge.kubernetes.objects import (
    ACCOUNTS,
    PODS,
    ClusterObject,
    ObjectIndex,
    WatchState,
)
from bridge.resilience.budget import Budget
from tests.support.parts.token_reviews import good_status
from tests.support.parts.tokens import OMIT, TokenIssuer

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
AT = NOW.timestamp()
AUDIENCES = frozenset({"istio-ca"})
POD_UID = "7d3a1c9e-0000-4000-8000-000000000001"
JWKS = "/openid/v1/jwks"
POD = "/api/v1/namespaces/shop/pods/web-0"
ACCOUNT = "/api/v1/namespaces/shop/serviceaccounts/web"


@cache
def issuer() -> TokenIssuer:
    return TokenIssuer(algorithm="ES256")


def token(**changed: Any) -> str:
    return issuer().token(**{"now": NOW} | changed)


def account_uid() -> str:
    bound = unverified(token())["kubernetes.io"]
    return str(bound["serviceaccount"]["uid"])


def metadata(name: str, uid: str, **more: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "shop", "name": name, "uid": uid} | more}


class Server:
    """Has what a test gives it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.objects: dict[str, Any] = {JWKS: issuer().jwks()}
        self.error: ReviewError | None = None
        self.before_answer: Callable[[], object] = lambda: None

    def get(
        self, path: str, query: Mapping[str, Any], budget: Budget, *, accept: str = ""
    ) -> Any:
        self.asked.append(path)
        self.before_answer()
        if self.error is not None:
            raise self.error
        return self.objects.get(path)

    def post(self, path: str, body: Mapping[str, Any], budget: Budget) -> Any:
        self.asked.append("review")
        if self.error is not None:
            raise self.error
        spec = body["spec"]
        status = good_status(spec["token"], spec["audiences"])
        return {"kind": "TokenReview", "spec": spec, "status": status}

    def awaits(self, answer: threading.Event, budget: Budget) -> None:
        if not answer.wait(budget.part()):
            raise ReviewError("another call asks", rule="review.busy")

    def close(self) -> None:
        self.asked.clear()


class Ground:
    def __init__(self, path: Path) -> None:
        self.server = Server()
        self.time = 1000.0
        self.source = "one"
        server: Any = self.server
        self.index = ObjectIndex(path)
        self.index.create(["one", "two"])
        config = BoundConfig(verify="bound", issuer=issuer().issuer)
        self.offline = OfflineVerifier(
            "one",
            config,
            APIServerKeys(server, lambda: self.source),
            owners=KeyOwners(["one"]),
            siblings={},
            clock=lambda: NOW,
        )
        self.offline.keyring.refresh()
        self.server.asked.clear()
        self.verifier = BoundVerifier(
            "one",
            self.offline,
            ReviewVerifier(server),
            WatchedObjects(self.index, lambda: self.source, server, lambda: self.time),
            max_age=timedelta(minutes=3),
            monotonic=lambda: self.time,
        )

    def see(self, **changed: Any) -> None:
        """Let the watch see the pod and the account of `token()`."""
        pod = ClusterObject("shop", "web-0", POD_UID, "web", "node-1")
        self.index.publish(self.source, PODS, [pod._replace(**changed)], self.time)
        account = ClusterObject("shop", "web", account_uid())
        self.index.publish(self.source, ACCOUNTS, [account], self.time)

    def verify(self, shown: str, seconds: float = 5.0) -> ServiceAccount:
        return self.verifier.verify(
            shown, audiences=AUDIENCES, now=NOW, budget=Budget.of_seconds(seconds)
        )

    def refusal(self, shown: str) -> AuthenticationError:
        with pytest.raises(AuthenticationError, match=r"\w") as caught:
            self.verify(shown)
        return caught.value


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path / "watched")
    with closing(made.verifier):
        made.see()
        yield made


def test_no_request_asks_the_api_server(ground: Ground) -> None:
    for _ in range(3):
        account = ground.verify(token())
        assert account.verified_by == "bound"
    assert ground.verifier.verified_by == "bound"
    assert ground.server.asked == []
    assert ground.verifier.problems(NOW) == []


UNBOUND: dict[str, dict[str, Any]] = {
    "of the old kind": {"claims": {"kubernetes.io": OMIT}},
    "bound to nothing": {"pod": None},
    "bound to a Secret": {
        "claims": {
            "kubernetes.io": {
                "namespace": "shop",
                "serviceaccount": {"name": "web", "uid": "1"},
                "secret": {"name": "s", "uid": "1"},
            }
        }
    },
    "bound to a node": {
        "claims": {
            "kubernetes.io": {
                "namespace": "shop",
                "serviceaccount": {"name": "web", "uid": "1"},
                "node": {"name": "node-1", "uid": "1"},
            }
        }
    },
}


@pytest.mark.parametrize("name", UNBOUND)
def test_a_token_without_a_pod_is_refused_in_each_mode(
    ground: Ground, name: str
) -> None:
    assert ground.refusal(token(**UNBOUND[name])).rule == "token.unbound"
    ground.time += 181
    if name != "of the old kind":  # of which the double knows no user
        assert ground.refusal(token(**UNBOUND[name])).rule == "token.unbound"


def test_a_token_is_verified_before_anything_is_looked_up(ground: Ground) -> None:
    other = TokenIssuer(algorithm="ES256", kid=issuer().kid)
    assert ground.refusal(other.token(now=NOW)).rule == "token.signature"
    assert ground.refusal(token(lifetime=-1)).rule == "token.expired"
    assert ground.refusal(token(audiences=("api",))).rule == "token.audience"
    assert ground.server.asked == []


@pytest.mark.parametrize(
    ("ago", "is_gone"), [(-30.0, False), (0.0, False), (60.0, False), (61.0, True)]
)
def test_a_pod_is_gone_a_minute_after_it_should_be(
    ground: Ground, ago: float, *, is_gone: bool
) -> None:
    ground.see(deleted_at=AT - ago)
    if is_gone:
        error = ground.refusal(token())
        assert (error.rule, "pod shop/web-0" in error.detail) == ("token.gone", True)
    else:
        assert ground.verify(token()).pod.name == "web-0"
    assert ground.server.asked == []


def test_a_terminating_account_is_gone_likewise(ground: Ground) -> None:
    gone = ClusterObject("shop", "web", account_uid(), deleted_at=AT - 61)
    ground.index.put("one", ACCOUNTS, gone, ground.time)
    assert "service account shop/web" in ground.refusal(token()).detail


def test_what_the_watch_has_not_seen_is_asked_for(ground: Ground) -> None:
    ground.index.publish("one", PODS, [], ground.time)
    ground.server.objects[POD] = metadata("web-0", POD_UID)
    assert ground.verify(token()).verified_by == "bound"
    assert ground.server.asked == [POD]
    # A hit is not kept: the pod may be deleted the next moment.
    del ground.server.objects[POD]
    assert ground.refusal(token()).rule == "token.gone"
    assert ground.server.asked == [POD, POD]


LIVE: dict[str, Any] = {
    "not there": None,
    "another of the name": metadata("web-0", "another"),
    "gone": metadata("web-0", POD_UID, deletionTimestamp="2030-01-02T03:03:04Z"),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_live_object_is_held_to_the_same_rules(ground: Ground, name: str) -> None:
    ground.index.publish("one", PODS, [], ground.time)
    ground.server.objects[POD] = LIVE[name]
    assert ground.refusal(token()).rule == "token.gone"


def test_a_recreated_pod_is_another(ground: Ground) -> None:
    ground.see(uid="another")
    ground.server.objects[POD] = metadata("web-0", "another")
    assert ground.refusal(token()).rule == "token.gone"


def test_a_watch_that_lags_behind_a_recreation_refuses_nobody(ground: Ground) -> None:
    ground.see(uid="the one before")
    ground.server.objects[POD] = metadata("web-0", POD_UID)
    assert ground.verify(token()).pod.uid == POD_UID


def test_a_recreated_account_is_another(ground: Ground) -> None:
    other = ClusterObject("shop", "web", "another")
    ground.index.put("one", ACCOUNTS, other, ground.time)
    ground.server.objects[ACCOUNT] = metadata("web", "another")
    assert ground.refusal(token()).rule == "token.gone"


def test_an_account_without_uid_in_the_token_is_refused(ground: Ground) -> None:
    bound = unverified(token())["kubernetes.io"]
    del bound["serviceaccount"]["uid"]
    shown = token(claims={"kubernetes.io": bound})
    assert ground.refusal(shown).rule == "token.gone"


def test_a_miss_is_kept_for_a_second(ground: Ground) -> None:
    ground.index.publish("one", PODS, [], ground.time)
    for _ in range(5):
        assert ground.refusal(token()).rule == "token.gone"
    assert ground.server.asked == [POD]
    ground.time += 1.1
    ground.server.objects[POD] = metadata("web-0", POD_UID)
    assert ground.verify(token()).pod.uid == POD_UID


def test_one_question_a_name_is_under_way(ground: Ground) -> None:
    ground.index.publish("one", PODS, [], ground.time)
    ground.server.objects[POD] = metadata("web-0", POD_UID)
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        go_on.wait(30)

    ground.server.before_answer = hold
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ground.verify, token())
        assert asked.wait(30)
        others = [pool.submit(ground.verify, token(), 30.0) for _ in range(3)]
        # One whose time is up does not wait for the others.
        with pytest.raises(ReviewError, match="another call asks"):
            ground.verify(token(), seconds=0.15)
        go_on.set()
        assert {one.result().name for one in (first, *others)} == {"web"}
    # Those that came later than the answer asked again.
    assert 1 <= len(ground.server.asked) <= 4


def test_an_api_server_that_cannot_be_asked_is_no_refusal(ground: Ground) -> None:
    ground.server.error = ReviewError("away", rule="review.unavailable")
    assert ground.verify(token()).verified_by == "bound"  # it has been seen
    ground.index.publish("one", PODS, [], ground.time)
    with pytest.raises(ReviewError, match="away"):
        ground.verify(token())
    ground.server.error = None
    ground.server.objects[POD] = metadata("web-0", POD_UID)
    assert ground.verify(token()).verified_by == "bound"  # and nothing is kept of it


def test_an_old_watch_gives_way_to_reviews_and_then_to_nothing(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    assert ground.verify(token()).verified_by == "bound"
    ground.time += 180
    assert ground.verify(token()).verified_by == "bound"
    ground.index.trouble("one", PODS, "the API server hangs")
    ground.time += 1.5
    assert ground.verify(token()).verified_by == "token_review"
    assert ground.server.asked == ["review"]
    assert ground.verifier.verified_by == "token_review"
    (told,) = ground.verifier.problems(NOW)
    assert told == (
        "the API server reviews each token: the watch of pods last heard of the API "
        "server 182 s ago: the API server hangs"
    )
    assert told in caplog.text
    assert ground.verifier.can_verify(NOW)  # nobody gets unready for it
    ground.server.error = ReviewError("away", rule="review.unavailable")
    with pytest.raises(ReviewError, match="away"):
        ground.verify(token())
    ground.server.error = None
    ground.see()
    ground.time += 1.5
    with caplog.at_level("INFO"):
        assert ground.verify(token()).verified_by == "bound"
    assert "tokens are verified by the watch" in caplog.text
    assert caplog.text.count("reviews each token") == 1


def test_reviews_are_made_until_the_watch_has_begun(tmp_path: Path) -> None:
    ground = Ground(tmp_path / "watched")
    with closing(ground.verifier):
        assert ground.verify(token()).verified_by == "token_review"
        assert "has not begun" in ground.verifier.problems(NOW)[0]


def test_reviews_are_made_where_there_are_no_keys(ground: Ground) -> None:
    ground.server.objects[JWKS] = {"keys": []}
    fresh = Ground(Path(ground.index._path).with_name("other"))
    del fresh.server.objects[JWKS]
    with closing(fresh.verifier):
        fresh.see()
        fresh.offline.keyring._last = None
        assert fresh.verify(token()).verified_by == "token_review"
        assert "has no keys yet" in fresh.verifier.problems(NOW)[0]


@pytest.mark.parametrize(
    ("hours", "way"), [(24, "bound"), (24.1, "token_review"), (-24.1, "bound")]
)
def test_keys_that_are_too_old_verify_nothing(
    ground: Ground, hours: float, way: str
) -> None:
    # The API server answers for the watch, and no more for its keys.
    now = NOW + timedelta(hours=hours)
    shown = token(now=now)
    account = ground.verifier.verify(
        shown, audiences=AUDIENCES, now=now, budget=Budget.of_seconds(5)
    )
    assert account.verified_by == way
    told = ground.verifier.problems(now)
    assert any(
        "its keys were last confirmed 24.1 hours ago" in one for one in told
    ) == (way == "token_review")


def test_the_keys_are_those_that_the_api_server_shows(ground: Ground) -> None:
    server: Any = ground.server
    keys = APIServerKeys(server, lambda: "one")
    assert json.loads(keys.read()) == issuer().jwks()
    del ground.server.objects[JWKS]
    with pytest.raises(ReviewError, match="keys of this cluster") as caught:
        keys.read()
    assert caught.value.rule == "cluster.keys"


def test_keys_that_went_after_the_last_look_give_way_to_reviews(
    ground: Ground,
) -> None:
    assert ground.verify(token()).verified_by == "bound"
    ground.source = "two"
    assert ground.verify(token()).verified_by == "token_review"
    assert ground.server.asked[-1] == "review"


def test_keys_of_the_api_server_of_before_verify_nothing(ground: Ground) -> None:
    assert ground.verify(token()).verified_by == "bound"
    ground.source = "two"
    ground.see()
    ground.server.error = ReviewError("no", rule="review.rights")
    ground.offline.keyring.refresh(always=True)
    ground.time += 1.5
    with pytest.raises(ReviewError, match="no"):
        ground.verify(token())
    assert ground.verifier.verified_by == "token_review"
    assert "has no keys yet" in ground.verifier.problems(NOW)[0]
    ground.server.error = None
    ground.offline.keyring.refresh(always=True)
    ground.time += 1.5
    assert ground.verify(token()).verified_by == "bound"


def test_keys_that_came_while_the_api_server_changed_verify_nothing(
    ground: Ground,
) -> None:
    ground.server.before_answer = lambda: setattr(ground, "source", "two")
    ground.offline.keyring.refresh(always=True)
    ground.see()
    assert ground.verify(token()).verified_by == "token_review"


class Broken:
    """Takes the place of an index of which objects, or nothing, can be read."""

    def __init__(self, index: ObjectIndex) -> None:
        self._index = index
        self.is_broken = True
        self.finds = 0

    def find(self, *key: str) -> ClusterObject | None:
        self.finds += 1
        if self.is_broken:
            raise ReviewError("no", rule="review.index", detail="it is malformed")
        return self._index.find(*key)

    def state(self, source: str, kinds: Iterable[str]) -> WatchState:
        return self._index.state(source, kinds)

    def close(self) -> None:
        self._index.close()


def test_an_index_that_cannot_be_read_refuses_nobody(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ground.verify(token()).verified_by == "bound"
    broken = Broken(ground.index)
    monkeypatch.setattr(ground.verifier.objects, "_index", broken)
    ground.server.objects |= {
        POD: metadata("web-0", POD_UID),
        ACCOUNT: metadata("web", account_uid()),
    }
    assert ground.verify(token()).verified_by == "bound"
    assert ground.server.asked == [ACCOUNT, POD]
    for _ in range(3):  # from the next call on, and not by a lookup for each
        assert ground.verify(token()).verified_by == "token_review"
    assert broken.finds == 3
    assert "it is malformed" in ground.verifier.problems(NOW)[0]
    ground.time += 1.5
    assert ground.verify(token()).verified_by == "token_review"
    broken.is_broken = False
    ground.time += 1.5
    assert ground.verify(token()).verified_by == "bound"
    assert ground.server.asked[2:] == ["review"] * 4


def test_a_pod_that_is_gone_is_refused_where_the_index_cannot_be_read(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground.verifier.objects, "_index", Broken(ground.index))
    ground.server.objects[ACCOUNT] = metadata("web", account_uid())
    assert ground.refusal(token()).rule == "token.gone"


def test_one_thread_looks_at_the_watch(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, began, go_on = [], threading.Event(), threading.Event()

    def age() -> tuple[float | None, str]:
        looks.append(1)
        began.set()
        go_on.wait(30)
        return 1.0, ""

    monkeypatch.setattr(ground.verifier.objects, "age", age)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ground.verifier.look, NOW)
        assert began.wait(30)
        others = [pool.submit(ground.verifier.look, NOW) for _ in range(3)]
        assert not wait(others, timeout=0.2).done
        go_on.set()
        assert {one.result() for one in (first, *others)} == {""}
    assert len(looks) == 1
