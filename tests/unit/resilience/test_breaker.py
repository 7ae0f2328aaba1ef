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
    MisissuedError,
)
from bridge.resilience.breaker import FAILURES_IN_A_ROW, LATE_SECONDS, Breaker

DOWN = BackendUnavailableError("down")


class Patient:
    """A breaker with a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.states: list[bool] = []
        self.breaker = Breaker("seoul-1", self, lambda: self.now)

    def opened(self, is_open: bool, /) -> None:  # noqa: FBT001 - see `Observer`
        self.states.append(is_open)

    def retried(self) -> None:
        raise AssertionError

    def failed_over(self) -> None:
        raise AssertionError

    def kept_away(self, reason: str, /) -> None:
        raise AssertionError(reason)

    def fail(self, times: int, error: BackendError = DOWN) -> None:
        for _ in range(times):
            call = self.breaker.began(2.0)
            self.breaker.ended(call, error)

    def succeed(self) -> None:
        self.breaker.ended(self.breaker.began(2.0))

    @property
    def is_open(self) -> bool:
        return self.breaker.cause is not None


@pytest.mark.parametrize(
    ("error", "opens_after"),
    [
        (DOWN, FAILURES_IN_A_ROW),
        (BackendTimeoutError("late"), FAILURES_IN_A_ROW),
        (BackendAuthError("lost"), FAILURES_IN_A_ROW),
        (BackendBrokenError("gone"), FAILURES_IN_A_ROW),
        (BackendError("any"), FAILURES_IN_A_ROW),
        # Each further try could lock the credential.
        (BackendCredentialError("wrong PIN"), 1),
        # These say that the CA works.
        (BackendRefusedError("no"), None),
        (BackendThrottledError("slow"), None),
        # This one is stopped for good, by another mechanism.
        (MisissuedError("another key"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_in_a_row_open_it(
    error: BackendError, opens_after: int | None
) -> None:
    one = Patient()
    if opens_after is None:
        one.fail(3 * FAILURES_IN_A_ROW, error)
        assert not one.is_open
        return
    one.fail(opens_after - 1, error)
    assert not one.is_open
    one.fail(1, error)
    assert one.is_open
    assert one.states == [True]


def test_an_answer_ends_the_row() -> None:
    one = Patient()
    for _ in range(3):
        one.fail(FAILURES_IN_A_ROW - 1)
        one.succeed()
    assert not one.is_open


def test_calls_that_do_not_return_open_it_without_a_wait() -> None:
    one = Patient()
    calls = [one.breaker.began(2.0) for _ in range(FAILURES_IN_A_ROW)]
    one.now += 2.0 + LATE_SECONDS
    one.breaker.look()
    assert not one.is_open, "they are not late yet"
    one.now += 0.01
    one.breaker.look()
    one.breaker.look()
    assert one.is_open
    assert one.breaker.is_busy
    # Their own errors, when they come at last, are not counted again.
    one.breaker.close()
    for call in calls:
        one.breaker.ended(call, BackendTimeoutError("late"))
    assert not one.is_open
    assert not one.breaker.is_busy


def test_a_late_answer_is_no_sign_of_health() -> None:
    one = Patient()
    call = one.breaker.began(2.0)
    one.fail(FAILURES_IN_A_ROW - 2)
    one.now += 3
    one.breaker.look()
    one.breaker.ended(call)
    one.fail(1)
    assert one.is_open


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (DOWN, BackendUnavailableError),
        (BackendTimeoutError("late"), BackendUnavailableError),
        # Another try of the caller would not help: the status says so.
        (BackendBrokenError("gone"), BackendBrokenError),
        (BackendCredentialError("wrong PIN"), BackendCredentialError),
    ],
)
def test_a_call_that_is_kept_away_gets_an_error_after_which_nothing_exists(
    cause: BackendError, kind: type[BackendError]
) -> None:
    one = Patient()
    one.breaker.open(cause)
    refusal = one.breaker.refusal()
    assert type(refusal) is kind
    assert (refusal.rule, refusal.certificate_may_exist) == ("issuer.open", False)
    assert str(cause) in refusal.detail
    assert str(cause) not in str(refusal), "details are not for peers"


def test_it_opens_once_and_closes_once() -> None:
    one = Patient()
    one.fail(2 * FAILURES_IN_A_ROW)
    one.breaker.close()
    one.breaker.close()
    assert one.states == [True, False]
    one.fail(FAILURES_IN_A_ROW - 1)
    assert not one.is_open, "the row begins anew"


def test_one_that_opens_soon_after_it_closed_is_unsteady_for_a_minute() -> None:
    one = Patient()
    one.breaker.open(DOWN)
    one.breaker.close()
    assert one.breaker.is_steady()
    one.now += 10
    one.breaker.open(DOWN)
    one.breaker.close()
    assert not one.breaker.is_steady()
    one.now += 60
    assert one.breaker.is_steady()


def test_it_knows_how_long_nothing_has_returned() -> None:
    one = Patient()
    one.now += 50
    assert one.breaker.quiet_seconds() == 0
    one.breaker.began(2.0)
    one.now += 1
    other = one.breaker.began(2.0)
    assert one.breaker.quiet_seconds() == 1
    one.breaker.ended(other)
    assert one.breaker.quiet_seconds() == 0
