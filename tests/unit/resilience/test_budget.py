from collections.abc import Callable

import pytest

from bridge.errors import OverloadedError
from bridge.resilience.budget import RESERVE_SECONDS, Budget

NOW = 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.resilience.budget.time.monotonic", lambda: NOW)


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
    seconds: float, is_active: Callable[[], bool], rule: str
) -> None:
    budget = Budget(NOW + seconds, is_active)
    with pytest.raises(OverloadedError, match=r"nearly spent|has gone") as refusal:
        budget.require()
    assert refusal.value.rule == rule


def test_a_budget_with_time_left_lets_work_pass() -> None:
    Budget(NOW + RESERVE_SECONDS + 0.01).require()


@pytest.mark.parametrize(
    ("left", "parts", "expected"),
    [
        # 20 ms are for the way back to the caller.
        (2.02, 1, 2.0),
        (2.02, 2, 1.0),
        # One of several gets time for useful work, as long as there is as much.
        (0.17, 3, 0.1),
        (0.07, 3, 0.05),
        (0.01, 1, -0.01),
    ],
)
def test_an_attempt_leaves_time_for_those_that_can_follow(
    left: float, parts: int, expected: float
) -> None:
    assert Budget(NOW + left).part(parts) == pytest.approx(expected)
