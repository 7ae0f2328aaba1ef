import re
from collections.abc import Callable

import pytest

from bridge.errors import (
    BackendAuthError,
    BackendBrokenError,
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
from bridge.resilience.failover import over_issuers

DOWN = BackendUnavailableError("down")


class Pauses:
    """The pauses between tries, and a clock that they move; nothing sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        monkeypatch.setattr("bridge.resilience.budget.time.monotonic", lambda: self.now)
        monkeypatch.setattr("tenacity.nap.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    return Pauses(monkeypatch)


class Issuers:
    """Answers in order, one list per issuing CA; the last answer is repeated."""

    def __init__(self, **answers: list[BackendError | str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, name: str) -> str:
        self.asked.append(name)
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BackendError):
            raise answer
        return answer


def test_the_first_that_answers_is_taken() -> None:
    issuers = Issuers(a=["1"], b=["2"])
    assert over_issuers(["a", "b"], issuers, Budget.of_seconds(1)) == "1"
    assert issuers.asked == ["a"]


@pytest.mark.parametrize(
    "error", [DOWN, BackendAuthError("no"), BackendThrottledError("slow")]
)
def test_the_next_one_stands_in(error: BackendError) -> None:
    issuers = Issuers(a=[error], b=["2"])
    assert over_issuers(["a", "b"], issuers, Budget.of_seconds(1)) == "2"
    assert issuers.asked == ["a", "b"]


@pytest.mark.parametrize(
    "error",
    [
        BackendError("any"),
        BackendTimeoutError("late"),
        BackendRefusedError("no"),
        BackendBrokenError("gone"),
        MisissuedError("another key"),
        LedgerError("full"),
        OverloadedError("busy"),
        DeniedError("no"),
        CSRError("bad"),
        ValueError("bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_other_error_is_tried_again(error: Exception) -> None:
    asked: list[str] = []

    def attempt(name: str) -> str:
        asked.append(name)
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        over_issuers(["a", "b"], attempt, Budget.of_seconds(1))
    assert asked == ["a"]


def test_after_a_round_there_is_a_pause_and_another_round(pauses: Pauses) -> None:
    issuers = Issuers(a=[DOWN, DOWN, "1"], b=[DOWN, DOWN, "2"])
    assert over_issuers(["a", "b"], issuers, Budget.of_seconds(10)) == "1"
    assert issuers.asked == ["a", "b", "a", "b", "a"]
    assert len(pauses.slept) == 2
    assert all(0 <= pause <= 1 for pause in pauses.slept)


@pytest.mark.usefixtures("pauses")
def test_the_rounds_end_with_the_budget_and_the_last_error_is_raised() -> None:
    last = BackendUnavailableError("b is down")
    issuers = Issuers(a=[DOWN], b=[last])
    budget = Budget.of_seconds(3)
    with pytest.raises(BackendUnavailableError, match="b is down"):
        over_issuers(["a", "b"], issuers, budget)
    assert len(issuers.asked) > 4
    assert budget.remaining() >= RESERVE_SECONDS


def test_a_backend_says_when_to_come_back(pauses: Pauses) -> None:
    later = BackendThrottledError("slow", retry_after_seconds=2.5)
    issuers = Issuers(a=[later, "1"])
    assert over_issuers(["a"], issuers, Budget.of_seconds(10)) == "1"
    assert pauses.slept == [2.5]


def test_no_pause_goes_beyond_the_budget(pauses: Pauses) -> None:
    later = BackendThrottledError("slow", retry_after_seconds=9.95)
    with pytest.raises(BackendThrottledError, match="slow"):
        over_issuers(["a"], Issuers(a=[later, "1"]), Budget.of_seconds(10))
    assert pauses.slept == []


@pytest.mark.usefixtures("pauses")
def test_an_error_in_a_later_round_that_may_not_pass_ends_it() -> None:
    issuers = Issuers(a=[DOWN, BackendTimeoutError("late")])
    with pytest.raises(BackendTimeoutError, match="late"):
        over_issuers(["a"], issuers, Budget.of_seconds(10))
    assert issuers.asked == ["a", "a"]


def test_no_issuing_ca_is_no_success() -> None:
    with pytest.raises(BackendUnavailableError, match="no issuing CA is ready"):
        over_issuers([], Issuers(), Budget.of_seconds(0))


def gone() -> bool:
    return False


@pytest.mark.parametrize(
    ("seconds", "is_active", "rule"),
    [
        (RESERVE_SECONDS - 0.01, lambda: True, "overload.deadline"),
        (0, lambda: True, "overload.deadline"),
        (-5, lambda: True, "overload.deadline"),
        (10, gone, "overload.gone"),
        (0, gone, "overload.deadline"),
    ],
)
def test_work_without_a_waiting_caller_is_not_done(
    seconds: float, is_active: Callable[[], bool], rule: str, pauses: Pauses
) -> None:
    budget = Budget(pauses.now + seconds, is_active)
    with pytest.raises(OverloadedError, match=r"nearly spent|has gone") as refusal:
        budget.require()
    assert refusal.value.rule == rule


def test_a_budget_with_time_left_lets_work_pass(pauses: Pauses) -> None:
    Budget(pauses.now + RESERVE_SECONDS + 0.01).require()
