"""Proves issuing CAs: at a start, after a change, and while callers are kept away.

A probe is a certificate that the CA signs for a name that no caller can have. Each runs
in a thread of its own, so a CA that hangs neither stops nor delays another. A CA gets
no second probe while one is out, and none sooner than `AGAIN_SECONDS` after the last.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from bridge.errors import (
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    BridgeError,
    MisissuedError,
)
from bridge.resilience.breaker import STOPPED_RULE, is_failure
from bridge.resilience.failover import Guards
from bridge.snapshot.model import Issuer, Snapshot
from bridge.system.background import BackgroundLoop

Probe = Callable[[Issuer, Snapshot, float], object]
"""Proves an issuing CA in some seconds, or raises a `BridgeError`."""

AGAIN_SECONDS = 2.0
"""The least time between two probes of one issuing CA."""
IDLE_SECONDS = 60.0
"""An issuing CA that nobody called for so long is probed."""
PERSON_SECONDS = 4.0
"""The least time after a probe that showed that a person is needed. The latch answers
the next one: no login is tried, and nothing is signed, until it is cleared."""
FIRST_SECONDS = 10.0
"""The longest that a start or a change waits for probes."""
_OTHERS_SECONDS = 0.5
"""How long a start waits for the others, once one issuing CA has signed."""
_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 2.0
_UNPROBED = "has not been probed yet"
_NO_THREAD = "the probe cannot begin: the system gives no more threads"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _State:
    # What the probes of one issuing CA have shown.
    problem: str = _UNPROBED
    """Empty once the CA has signed."""
    began: float = float("-inf")
    """When the last probe began."""
    pause: float = AGAIN_SECONDS
    probe: "Future[None] | None" = None
    """The last probe."""


class Prober:
    """Proves issuing CAs, and opens and closes their breakers accordingly.

    Args:
        guards: The health of the issuing CAs.
        current: Returns the current snapshot.
        now: Returns the seconds of a clock that is never set.
    """

    def __init__(
        self,
        guards: Guards,
        current: Callable[[], Snapshot],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guards = guards
        self._current = current
        self._now = now
        self._probe: Probe = lambda *_: None
        self._states: dict[str, _State] = {}
        self._loop = BackgroundLoop("prober", self.look, _LOOK_SECONDS)

    def start(self, probe: Probe) -> None:
        """Probe every issuing CA side by side, then go on in the background.

        Returns when all probes have ended, soon after the first was signed, or after
        10 s. A CA that was not proven by then gets calls once it is.
        """
        self._probe = probe
        snapshot = self._current()
        probes = {
            name: self._begin(issuer, snapshot, FIRST_SECONDS)
            for name, issuer in snapshot.issuers.items()
        }
        _await_first(probes.values())
        for name, under_way in probes.items():
            if not under_way.done():
                breaker = self._guards.of(snapshot.issuers[name]).breaker
                breaker.open(BackendUnavailableError(_UNPROBED))
        self._loop.start()

    def prove(self, issuer: Issuer, snapshot: Snapshot) -> None:
        """Prove an issuing CA that is to take its place in `snapshot`.

        Raises:
            BridgeError: It did not sign in 10 s.
        """
        probe = self._launch(issuer, snapshot, FIRST_SECONDS, lambda _error: None)
        wait([probe], FIRST_SECONDS + _OTHERS_SECONDS)
        if not probe.done():
            raise BackendTimeoutError("the probe did not return in its time")
        probe.result()
        self._guards.of(issuer).breaker.close()
        self._state(issuer.name).problem = ""

    def again(self, name: str) -> None:
        """Probe an issuing CA as soon as may be: something about it has changed."""
        self._state(name).pause = AGAIN_SECONDS

    def look(self) -> None:
        """Count calls that are late, and begin the probes that are due."""
        snapshot = self._current()
        for issuer in snapshot.issuers.values():
            self._guards.of(issuer).breaker.look()
            if self._is_due(issuer):
                self._begin(issuer, snapshot, issuer.timeout_seconds)
        self._guards.keep(snapshot.issuers.values())

    def ready(self) -> bool:
        """Return whether an issuing CA has signed since the start."""
        return len(self.unproven()) < len(self._current().issuers)

    def unproven(self) -> tuple[str, ...]:
        """Return the names of the issuing CAs that have not signed since the start."""
        return tuple(
            name for name in self._current().issuers if self._state(name).problem
        )

    def problems(self) -> Mapping[str, str]:
        """Return the problem of each issuing CA that gets no calls now."""
        found: dict[str, str] = {}
        for name, issuer in self._current().issuers.items():
            cause = self._guards.of(issuer).breaker.cause
            if problem := self._state(name).problem:
                found[name] = problem
            elif cause is not None:
                found[name] = f"fails, and gets no calls until a probe: {cause}"
        return found

    def close(self) -> None:
        """Begin no more probes, and wait a moment for those that are out."""
        self._loop.close()
        wait([one.probe for one in self._states.values() if one.probe], _CLOSE_SECONDS)

    def _state(self, name: str) -> _State:
        return self._states.setdefault(name, _State())

    def _is_due(self, issuer: Issuer) -> bool:
        state, breaker = self._state(issuer.name), self._guards.of(issuer).breaker
        since = self._now() - state.began
        if since < state.pause or (state.probe and not state.probe.done()):
            return False
        if state.problem or breaker.cause is not None:
            return True
        return min(since, self._now() - breaker.called) >= IDLE_SECONDS

    def _begin(
        self, issuer: Issuer, snapshot: Snapshot, timeout: float
    ) -> "Future[None]":
        state = self._state(issuer.name)
        state.began = self._now()
        state.probe = self._launch(
            issuer, snapshot, timeout, lambda error: self._note(issuer, state, error)
        )
        return state.probe

    def _launch(
        self,
        issuer: Issuer,
        snapshot: Snapshot,
        timeout: float,
        note: Callable[[BridgeError | None], None],
    ) -> "Future[None]":
        future: Future[None] = Future()

        def run() -> None:
            error = self._error_of(issuer, snapshot, timeout)
            note(error)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        # A daemon, so that a plugin that hangs does not keep the process from ending.
        name = f"probe-{issuer.name}"
        try:
            threading.Thread(target=run, name=name, daemon=True).start()
        except RuntimeError:
            # Not the issuing CA's fault, so its breaker stays as it is.
            future.set_exception(BackendUnavailableError(_NO_THREAD))
        return future

    def _error_of(
        self, issuer: Issuer, snapshot: Snapshot, timeout: float
    ) -> BridgeError | None:
        try:
            self._probe(issuer, snapshot, timeout)
        except BridgeError as error:
            return error
        except BaseException as error:  # noqa: BLE001 - the edge of a thread
            _log.exception("issuing CA %s could not be probed", issuer.name)
            return BackendBrokenError(f"the probe failed: {type(error).__name__}")
        return None

    def _note(self, issuer: Issuer, state: _State, error: BridgeError | None) -> None:
        breaker = self._guards.of(issuer).breaker
        state.pause = AGAIN_SECONDS
        if error is None:
            state.problem = ""
            breaker.close()
            return
        if isinstance(error, BackendError) and is_failure(error):
            breaker.open(error)
        if (
            isinstance(error, BackendCredentialError | MisissuedError)
            or error.rule == STOPPED_RULE
        ):
            state.pause = PERSON_SECONDS
        if state.problem:
            problem = f"has not signed yet: {error}"
            if state.problem != problem:
                _log.warning(
                    "issuing CA %s cannot sign: %s %s", issuer.name, error, error.detail
                )
            state.problem = problem


def _await_first(probes: "Collection[Future[None]]") -> None:
    until = time.monotonic() + FIRST_SECONDS
    under_way, first = {*probes}, False
    while under_way and not first and (left := until - time.monotonic()) > 0:
        ended, under_way = wait(under_way, left, FIRST_COMPLETED)
        first = any(probe.exception() is None for probe in ended)
    wait(under_way, min(_OTHERS_SECONDS, max(0.0, until - time.monotonic())))
