"""Failover and retries among issuing CAs, inside the budget of a call."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge.errors import (
    BackendAuthError,
    BackendError,
    BackendThrottledError,
    BackendUnavailableError,
)
from bridge.resilience.budget import RESERVE_SECONDS, Budget

_MAY_PASS = (BackendUnavailableError, BackendAuthError, BackendThrottledError)
"""Nothing was signed, and another try may succeed."""

Target = TypeVar("Target")
Result = TypeVar("Result")


def over_issuers(
    issuers: Sequence[Target], attempt: Callable[[Target], Result], budget: Budget
) -> Result:
    """Try one issuing CA after the other, then all of them again with pauses.

    Only an error after which no certificate can exist, and which may pass, leads to
    another try.

    Args:
        issuers: 1 or more, in order of preference; the configuration declares them
            equal.
        attempt: Asks one of them.
        budget: Of the whole call; no pause outlives it.

    Raises:
        BackendError: The last one.
    """
    try:
        return _one_round(issuers, attempt)
    except _MAY_PASS as error:
        return _more_rounds(error, issuers, attempt, budget)


def _one_round(
    issuers: Sequence[Target], attempt: Callable[[Target], Result]
) -> Result:
    last: BackendError = BackendUnavailableError("no issuing CA is ready")
    for issuer in issuers:
        try:
            return attempt(issuer)
        except _MAY_PASS as error:
            last = error
    raise last


def _more_rounds(
    first: BackendError,
    issuers: Sequence[Target],
    attempt: Callable[[Target], Result],
    budget: Budget,
) -> Result:
    # Only a call in trouble pays for the retrying; its first round is over already.
    rounds = 0

    def again() -> Result:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise first
        return _one_round(issuers, attempt)

    def is_spent(state: RetryCallState) -> bool:
        return budget.remaining() - state.upcoming_sleep < RESERVE_SECONDS

    retrying = Retrying(
        retry=retry_if_exception_type(_MAY_PASS),
        wait=_wait,
        stop=is_spent,
        reraise=True,
    )
    return retrying(again)


def _wait(state: RetryCallState) -> float:
    # A backend that says when to come back knows better than we do.
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after_seconds", 0.0)
    return max(asked, _BACKOFF(state))


_BACKOFF = wait_random_exponential(multiplier=0.05, max=1.0)
