"""The circuit breaker of one issuing CA: keeps calls away from a CA that fails.

Closed: calls pass. Five failures in a row open it, and so does one refused credential.
A call that is still out after its timeout is a failure as well, and is not waited for.
Open: no call passes, and a probe in the background tries the CA every few seconds.
A probe that is signed closes it.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from bridge.errors import (
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    MisissuedError,
)

OPEN_RULE = "issuer.open"
"""The rule of the error of a call that an open breaker keeps away."""
STOPPED_RULE = "issuer.stopped"
"""The rule of the error of an issuing CA that is stopped after a mis-issuance."""
FAILURES_IN_A_ROW = 5
"""So many failures open the breaker."""
LATE_SECONDS = 0.25
"""A call that is out for so much longer than its timeout is a failure."""
_FLAP_SECONDS = 30.0
"""A breaker that opens again so soon after it closed marks the CA as unsteady."""
_UNSTEADY_SECONDS = 60.0
_NO_FAILURES = (BackendRefusedError, BackendThrottledError, MisissuedError)
"""After these the CA works: it applied a policy, asks for fewer calls, or was stopped
for good."""
_NEEDS_A_PERSON = (BackendBrokenError, BackendCredentialError)
_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Counts what happens to the calls of one issuing CA."""

    def opened(self, is_open: bool, /) -> None:  # noqa: FBT001 - a callback
        """The breaker opened, or closed."""

    def retried(self) -> None:
        """A call asks the same issuing CA again."""

    def failed_over(self) -> None:
        """A call goes to this issuing CA in place of one that it prefers."""

    def kept_away(self, reason: str, /) -> None:
        """A call is not led to this issuing CA, because of `breaker` or `bulkhead`."""


class CallOut:
    """One call that an issuing CA has not answered yet."""

    __slots__ = ("due", "is_late")

    def __init__(self, due: float) -> None:
        self.due = due
        """When the call should have returned."""
        self.is_late = False
        """Whether the call was counted as a failure before it returned."""


def is_failure(error: BackendError) -> bool:
    """Tell whether an error shows that the issuing CA does not work."""
    return not isinstance(error, _NO_FAILURES) and error.rule != STOPPED_RULE


class Breaker:
    """The breaker of one issuing CA. Safe between threads.

    While all goes well, a call costs a few attributes and takes no lock.

    Args:
        name: The issuing CA's.
        observer: Is told when the breaker opens and closes.
        now: Returns the seconds of a clock that is never set.
    """

    def __init__(
        self, name: str, observer: Observer, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._observer = observer
        self._now = now
        self._lock = threading.Lock()
        self._out: dict[CallOut, None] = {}
        self._failures = 0
        self._progress = self._closed_at = float("-inf")
        self._unsteady_until = float("-inf")
        self._is_flapping = False
        self.cause: BackendError | None = None
        """Why no call passes; None while the breaker is closed."""
        self.called = now()
        """When the CA was last called, or else when the breaker was made."""

    @property
    def is_busy(self) -> bool:
        """Whether calls are out."""
        return bool(self._out)

    def began(self, timeout: float) -> CallOut:
        """Note that a call goes out; `timeout` in seconds."""
        now = self._now()
        call = CallOut(now + timeout + LATE_SECONDS)
        if not self._out:
            self._progress = now
        self.called = now
        self._out[call] = None
        return call

    def ended(self, call: CallOut, error: BackendError | None = None) -> None:
        """Note how a call ended: None, or the error of the issuing CA."""
        del self._out[call]
        self._progress = self._now()
        if error is not None:
            if not call.is_late:
                self.failed(error)
        elif self._failures and not call.is_late:
            self._failures = 0

    def quiet_seconds(self) -> float:
        """Return for how long no call has returned while one was out."""
        return self._now() - self._progress if self._out else 0.0

    def look(self) -> None:
        """Count the calls that should have returned. For the background, often."""
        now = self._now()
        for call in self._out.copy():  # copying a dict is atomic
            if call.due < now and not call.is_late:
                call.is_late = True
                self.failed(
                    BackendTimeoutError("the issuing CA does not answer in its time")
                )

    def failed(self, error: BackendError) -> None:
        """Note an error of the issuing CA outside a call."""
        if not is_failure(error):
            return
        with self._lock:
            self._failures += 1
            is_enough = self._failures >= FAILURES_IN_A_ROW
        if self.cause is None and (
            is_enough or isinstance(error, BackendCredentialError)
        ):
            self.open(error)

    def refusal(self) -> BackendError:
        """Return the error of a call that an open breaker keeps away."""
        cause = self.cause
        kind: type[BackendError] = BackendUnavailableError
        if isinstance(cause, _NEEDS_A_PERSON):
            # Another try of the caller would not help either.
            kind = type(cause)
        return kind(
            "the issuing CA fails and gets no calls until it has signed a probe",
            rule=OPEN_RULE,
            detail=f"{self._name}: {cause}",
            certificate_may_exist=False,
        )

    def is_steady(self) -> bool:
        """Tell whether the CA has not opened and closed in quick succession."""
        return self._now() >= self._unsteady_until

    def open(self, error: BackendError) -> None:
        """Let no call pass until `close`."""
        with self._lock:
            was_open = self.cause is not None
            self.cause = error
            if was_open:
                return
            self._is_flapping = self._now() - self._closed_at < _FLAP_SECONDS
        self._observer.opened(True)  # noqa: FBT003 - a callback
        _log.error(
            "issuing CA %s fails and gets no calls until it has signed a probe: %s %s",
            self._name,
            error,
            error.detail,
        )

    def close(self) -> None:
        """Let calls pass: the issuing CA has signed a probe."""
        with self._lock:
            self._failures = 0
            if self.cause is None:
                return
            self.cause = None
            self._closed_at = self._now()
            if self._is_flapping:
                self._unsteady_until = self._closed_at + _UNSTEADY_SECONDS
        self._observer.opened(False)  # noqa: FBT003 - a callback
        _log.warning("issuing CA %s has signed a probe and gets calls", self._name)
