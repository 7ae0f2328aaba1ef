"""Failover and retries; the pauses move the clock, and nothing sleeps."""

import re
from collections import Counter
from dataclasses import dataclass

import pytest

from bridge.errors import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    CSRError,
    DeniedError,
    LedgerError,
    MisissuedError,
    OverloadedError,
)
from bridge.resilience.budget import RESERVE_SECONDS, Budget
from bridge.resilience.failover import Failover, Guards

DOWN = BackendUnavailableError("down")
Answer = BaseException | str


@dataclass(frozen=True)
class CA:
    name: str
    chooses_serial: bool = False
    certificate_sha256: str = "00"


A, B, C = CA("a"), CA("b"), CA("c")


class Place:
    """Issuing CAs that answer in order; the last answer of each is repeated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.asked: list[str] = []
        self.parts: list[int] = []
        self.counted: Counter[str] = Counter()
        self.answers: dict[str, list[Answer]] = {}
        self.guards = Guards(4, self.observer, lambda: self.now)
        self.failover = Failover(self.guards)
        monkeypatch.setattr("bridge.resilience.budget.time.monotonic", lambda: self.now)
        monkeypatch.setattr("tenacity.nap.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def observer(self, name: str) -> "Observed":
        return Observed(name, self.counted)

    def attempt(self, target: CA, parts: int) -> str:
        self.asked.append(target.name)
        self.parts.append(parts)
        answers = self.answers[target.name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def call(self, *targets: CA, front: str = "", seconds: float = 10) -> str:
        budget = Budget(self.now + seconds)
        return self.failover.over(targets, self.attempt, budget, front=front)

    def open(self, target: CA, cause: BackendError = DOWN) -> None:
        self.guards.of(target).breaker.open(cause)


@dataclass
class Observed:
    name: str
    counted: Counter[str]

    def opened(self, is_open: bool, /) -> None:  # noqa: FBT001 - see `Observer`
        pass

    def retried(self) -> None:
        self.counted[f"{self.name} retried"] += 1

    def failed_over(self) -> None:
        self.counted[f"{self.name} failed over"] += 1

    def kept_away(self, reason: str, /) -> None:
        self.counted[f"{self.name} {reason}"] += 1


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def test_the_first_that_answers_is_taken(place: Place) -> None:
    place.answers = {"a": ["1"], "b": ["2"]}
    assert place.call(A, B) == "1"
    assert (place.asked, place.parts) == (["a"], [2])
    assert not place.counted


@pytest.mark.parametrize(
    "error",
    [
        DOWN,
        BackendAuthError("lost"),
        BackendThrottledError("slow"),
        # The TBSCertificate is ours: the other CA makes a certificate of another
        # issuer, and both attempts are on record before they are made.
        BackendTimeoutError("late"),
        # None of these says anything about an equal CA.
        BackendRefusedError("no"),
        BackendBrokenError("gone"),
        BackendCredentialError("wrong PIN"),
        BackendError("any"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_equal_ca_stands_in_at_once(place: Place, error: BackendError) -> None:
    place.answers = {"a": [error], "b": ["2"]}
    assert place.call(A, B) == "2"
    assert place.asked == ["a", "b"]
    assert place.slept in ([], [0.0])
    assert place.counted == {"b failed over": 1}


@pytest.mark.parametrize(
    "error",
    [
        MisissuedError("another key"),
        LedgerError("full"),
        OverloadedError("busy"),
        DeniedError("no"),
        CSRError("bad"),
        ValueError("bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_after_these_no_ca_is_asked(place: Place, error: Exception) -> None:
    place.answers = {"a": [error], "b": ["2"]}
    with pytest.raises(type(error), match=re.escape(str(error))):
        place.call(A, B)
    assert place.asked == ["a"]


@pytest.mark.parametrize("may_exist", [True, False])
@pytest.mark.parametrize("second_certificate", [True, False])
def test_what_the_backend_builds_is_asked_for_twice_only_where_that_is_allowed(
    place: Place, *, may_exist: bool, second_certificate: bool
) -> None:
    error = BackendUnavailableError("cut", certificate_may_exist=may_exist)
    place.failover = Failover(place.guards, second_certificate=second_certificate)
    place.answers = {"a": [error], "b": ["2"]}
    vaults = CA("a", chooses_serial=True), CA("b", chooses_serial=True)
    if may_exist and not second_certificate:
        with pytest.raises(BackendUnavailableError, match="cut"):
            place.call(*vaults)
        assert place.asked == ["a"]
    else:
        assert place.call(*vaults) == "2"


@pytest.mark.parametrize(
    ("targets", "asked"),
    [
        ([A], ["a", "a", "a"]),
        ([A, B], ["a", "b", "a"]),
        ([A, B, C], ["a", "b", "c"]),
        ([A, B, C, CA("d")], ["a", "b", "c"]),
    ],
)
def test_a_call_has_three_attempts_in_all(
    place: Place, targets: list[CA], asked: list[str]
) -> None:
    place.answers = {one.name: [DOWN] for one in targets}
    with pytest.raises(BackendUnavailableError, match="down"):
        place.call(*targets)
    assert place.asked == asked


def test_the_same_ca_is_asked_again_after_a_pause(place: Place) -> None:
    place.answers = {"a": [DOWN, "1"]}
    assert place.call(A) == "1"
    (pause,) = place.slept
    assert 0 <= pause <= 0.1
    assert place.counted == {"a retried": 1}


@pytest.mark.parametrize(
    "error",
    [BackendRefusedError("no"), BackendBrokenError("x"), BackendCredentialError("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_pass_is_not_asked_again(place: Place, error: BackendError) -> None:
    place.answers = {"a": [error]}
    with pytest.raises(type(error)):
        place.call(A)
    assert place.asked == ["a"]


def test_retries_are_a_fifth_of_the_calls(place: Place) -> None:
    place.answers = {"a": [DOWN]}
    for _ in range(200):
        with pytest.raises(BackendUnavailableError, match="down"):
            place.call(A)
    retries = place.counted["a retried"]
    assert len(place.asked) == 200 + retries
    assert 40 <= retries <= 60


def test_a_backend_says_when_to_come_back(place: Place) -> None:
    later = BackendThrottledError("slow", retry_after_seconds=2.5)
    place.answers = {"a": [later, "1"]}
    assert place.call(A) == "1"
    assert place.slept == [2.5]


def test_no_pause_goes_beyond_the_budget(place: Place) -> None:
    later = BackendThrottledError("slow", retry_after_seconds=9.95)
    place.answers = {"a": [later, "1"]}
    with pytest.raises(BackendThrottledError, match="slow"):
        place.call(A)
    assert place.slept == []
    assert place.asked == ["a"]


def test_an_open_breaker_keeps_calls_away_before_an_attempt(place: Place) -> None:
    place.answers = {"a": ["1"], "b": ["2"]}
    place.open(A)
    assert place.call(A, B) == "2"
    assert place.asked == ["b"]
    assert place.counted == {"a breaker": 1, "b failed over": 1}
    place.open(B)
    with pytest.raises(BackendUnavailableError, match="gets no calls") as caught:
        place.call(A, B)
    assert caught.value.rule == "issuer.open"
    assert (place.asked, place.slept) == (["b"], [])


def test_calls_stay_with_the_second_until_the_first_has_proven_itself(
    place: Place,
) -> None:
    place.answers = {"a": ["1"], "b": ["2"]}
    place.open(A)
    assert [place.call(A, B) for _ in range(3)] == ["2"] * 3
    place.guards.of(A).breaker.close()
    assert place.call(A, B) == "1"


def test_one_that_flaps_comes_last_for_a_while(place: Place) -> None:
    place.answers = {"a": ["1"], "b": ["2"]}
    for _ in range(2):
        place.open(A)
        place.guards.of(A).breaker.close()
    assert place.call(A, B) == "2"
    place.now += 61
    assert place.call(A, B) == "1"


def test_a_stalled_ca_holds_three_quarters_of_a_fronts_threads(place: Place) -> None:
    place.answers = {"a": ["1"], "b": ["2"]}
    guard = place.guards.of(A)
    for _ in range(3):  # of four threads
        assert guard.bulkhead("istio").enter(0)
        guard.breaker.began(2.0)
    place.now += 1
    assert place.call(A, B, front="istio") == "2"
    assert place.counted["a bulkhead"] == 1
    with pytest.raises(OverloadedError, match="as many calls as it can take") as caught:
        place.call(A, front="istio")
    assert caught.value.rule == "overload.backend"
    assert place.call(A, front="linkerd") == "1", "the other front has its own threads"


@pytest.mark.parametrize(
    ("targets", "waits"), [((A, B), 0.1), ((A,), 10 - RESERVE_SECONDS)]
)
def test_nobody_waits_long_for_a_place_where_an_equal_ca_can_serve(
    place: Place, monkeypatch: pytest.MonkeyPatch, targets: tuple[CA, ...], waits: float
) -> None:
    place.answers = {"a": ["1"], "b": ["2"]}
    waited: list[float] = []

    def enter(until: float) -> bool:
        waited.append(until - place.now)
        return False

    monkeypatch.setattr(place.guards.of(A).bulkhead("istio"), "enter", enter)
    if B in targets:
        assert place.call(*targets, front="istio") == "2"
    else:
        with pytest.raises(OverloadedError, match="as many calls as it can take"):
            place.call(*targets, front="istio")
    assert waited == [pytest.approx(waits)]


def test_a_place_is_given_back_after_an_error(place: Place) -> None:
    place.answers = {"a": [BackendBrokenError("x")]}
    for _ in range(10):
        with pytest.raises(BackendBrokenError, match="x"):
            place.call(A, front="istio")
    assert len(place.asked) == 10


def test_each_attempt_leaves_time_for_the_next_ca(place: Place) -> None:
    place.answers = {"a": [DOWN], "b": [DOWN], "c": ["3"]}
    assert place.call(A, B, C) == "3"
    assert place.parts == [3, 2, 1]


def test_a_reload_of_the_same_certificate_keeps_what_is_known(place: Place) -> None:
    place.open(A)
    assert place.guards.of(CA("a")).breaker.cause is DOWN
    assert place.guards.of(CA("a", certificate_sha256="11")).breaker.cause is None
    place.guards.keep([B])
    assert place.guards.of(A).breaker.cause is None


def test_no_issuing_ca_is_no_success(place: Place) -> None:
    with pytest.raises(BackendUnavailableError, match="no issuing CA is ready"):
        place.call()


def test_a_spent_budget_makes_no_second_attempt(place: Place) -> None:
    place.answers = {"a": [DOWN], "b": ["2"]}
    with pytest.raises(BackendUnavailableError, match="down"):
        place.call(A, B, seconds=RESERVE_SECONDS / 2)
    assert place.asked == ["a"]
