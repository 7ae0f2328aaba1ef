"""What may be tried again after an error, where, how often, and after which pause.

A mesh's clients try again themselves, so a bridge that retries freely makes three calls
of one just when a backend is weak. A call has three attempts in all. At one issuing CA,
retries are at most a fifth of the calls.
"""

import threading

from tenacity import wait_random_exponential

from bridge.errors import (
    BackendAuthError,
    BackendError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    BridgeError,
    MisissuedError,
    OverloadedError,
)

MOST_ATTEMPTS = 3
"""Of one call, over all issuing CAs."""
RETRIES_PER_CALL = 0.2
"""The share of a CA's calls that may be repeated at it."""
_BURST = 10.0
"""So many retries a CA has saved at most: a quiet one needs them all at once."""
_MAY_PASS = (
    BackendUnavailableError,
    BackendAuthError,
    BackendThrottledError,
    BackendTimeoutError,
)
BACKOFF = wait_random_exponential(multiplier=0.05, max=1.0)
"""The pause before an issuing CA is asked again: 50 ms at most, then 100 ms."""


class RetryBudget:
    """The retries that one issuing CA has left: a token bucket that calls fill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = _BURST

    def called(self) -> None:
        """Note the first attempt of a call at the CA."""
        if self._tokens < _BURST:  # a full bucket takes no lock
            with self._lock:
                self._tokens = min(_BURST, self._tokens + RETRIES_PER_CALL)

    def take(self) -> bool:
        """Take one retry; False if none is left."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def may_pass(error: BackendError) -> bool:
    """Tell whether the same issuing CA may answer another try."""
    return isinstance(error, _MAY_PASS)


def ends_the_call(error: BackendError, *, is_ours: bool) -> bool:
    """Tell whether no issuing CA may be asked after this error.

    Args:
        error: How an attempt ended.
        is_ours: The TBSCertificate is the bridge's own, with a serial number that is on
            record: a second certificate of it is known before it exists. What the
            backend builds is not; the configuration may permit a second one.
    """
    if isinstance(error, MisissuedError):
        return True
    return error.certificate_may_exist and not is_ours


def worth_telling(errors: list[BridgeError]) -> BridgeError:
    """Return the error that a call ends with, of those of all its attempts.

    The last one after which the caller may try again, or else the last one.
    """
    passing = (*_MAY_PASS, OverloadedError)
    retryable = [error for error in errors if isinstance(error, passing)]
    return (retryable or errors)[-1]
