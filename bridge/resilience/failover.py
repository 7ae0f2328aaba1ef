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
"""Errors after which nothing was signed and another try may succeed."""

Target = TypeVar("Target")
Result = TypeVar("Result")


def over_issuers(
    issuers: Sequence[Target], attempt: Callable[[Target], Result], budget: Budget
) -> Result:
    """Try each issuing CA in turn, then all of them again with pauses.

    Only a temporary error, after which no certificate can exist, leads to another try.

    Args:
        issuers: 1 or more, in order of preference, of one assurance.
        attempt: Makes one attempt at an issuing CA.
        budget: The call's budget; no pause goes beyond it.

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
    # Only a call whose first round failed pays for tenacity.
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
    # The backend's own Retry-After wins if it is longer.
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after_seconds", 0.0)
    return max(asked, _BACKOFF(state))


_BACKOFF = wait_random_exponential(multiplier=0.05, max=1.0)
