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
    BridgeError,
    MisissuedError,
    OverloadedError,
)
from bridge.resilience.retry import (
    RetryBudget,
    ends_the_call,
    may_pass,
    worth_telling,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BackendUnavailableError("x"), True),
        (BackendAuthError("x"), True),
        (BackendThrottledError("x"), True),
        (BackendTimeoutError("x"), True),
        (BackendRefusedError("a policy says no, and will again"), False),
        (BackendBrokenError("needs a person"), False),
        (BackendCredentialError("another try may lock it"), False),
        (MisissuedError("stopped"), False),
        (BackendError("nothing is known"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_be_asked_of_the_same_ca_again(
    error: BackendError, *, expected: bool
) -> None:
    assert may_pass(error) is expected


@pytest.mark.parametrize(
    ("error", "is_ours", "expected"),
    [
        (BackendUnavailableError("x"), True, False),
        (BackendUnavailableError("x"), False, False),
        (BackendTimeoutError("our TBS: the second is the first"), True, False),
        (BackendTimeoutError("two certificates"), False, True),
        (BackendUnavailableError("cut", certificate_may_exist=True), False, True),
        (MisissuedError("whatever built it"), True, True),
    ],
)
def test_when_no_other_ca_may_be_asked(
    error: BackendError, *, is_ours: bool, expected: bool
) -> None:
    assert ends_the_call(error, is_ours=is_ours) is expected


def test_retries_are_a_fifth_of_the_calls_after_a_burst() -> None:
    budget = RetryBudget()
    assert sum(budget.take() for _ in range(100)) == 10
    for _ in range(100):
        budget.called()
    assert sum(budget.take() for _ in range(100)) == pytest.approx(10, abs=1)
    granted = 0
    for _ in range(1000):
        budget.called()
        granted += budget.take()
    assert granted == pytest.approx(200, abs=2)


GONE = BackendBrokenError("gone")
BUSY = OverloadedError("busy")
DOWN = BackendUnavailableError("down")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([DOWN, GONE], DOWN),
        ([GONE, DOWN], DOWN),
        ([GONE, BUSY], BUSY),
        ([DOWN, BUSY], BUSY),
        ([GONE], GONE),
    ],
)
def test_a_caller_is_told_the_error_after_which_it_may_try_again(
    errors: list[BridgeError], expected: BridgeError
) -> None:
    assert worth_telling(errors) is expected
