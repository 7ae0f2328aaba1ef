"""Failover and retries among equal issuing CAs, inside the budget of a call.

What is known of a CA's health is kept by its name and certificate, so it outlives a
reload of a CA that has not changed.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from bridge.errors import (
    BackendError,
    BackendUnavailableError,
    BridgeError,
    MisissuedError,
    OverloadedError,
    drop_tracebacks,
)
from bridge.resilience.breaker import Breaker, Observer
from bridge.resilience.budget import RESERVE_SECONDS, Budget
from bridge.resilience.bulkhead import STALL_SECONDS, Bulkhead, places_of
from bridge.resilience.retry import (
    BACKOFF,
    MOST_ATTEMPTS,
    RetryBudget,
    ends_the_call,
    may_pass,
    worth_telling,
)

_PLACE_SECONDS = 0.1
"""For a place at an issuing CA that has an equal, which can take the call."""


class Guarded(Protocol):
    """The parts of an issuing CA that failover needs."""

    @property
    def name(self) -> str:
        """The name in the configuration."""

    @property
    def certificate_sha256(self) -> str:
        """The fingerprint of the CA's certificate."""

    @property
    def chooses_serial(self) -> bool:
        """Whether the backend builds the TBSCertificate."""


Target = TypeVar("Target", bound=Guarded)
Result = TypeVar("Result")


class Guard:
    """The health of one issuing CA: its breaker, retries and bulkheads.

    Args:
        name: The issuing CA's.
        threads: Of each front.
        observer: Counts what happens.
        now: Returns the seconds of a clock that is never set.
    """

    def __init__(
        self, name: str, threads: int, observer: Observer, now: Callable[[], float]
    ) -> None:
        self.observer = observer
        self.breaker = Breaker(name, observer, now)
        self.retries = RetryBudget()
        self._places = places_of(threads)
        self._bulkheads: dict[str, Bulkhead] = {}

    def bulkhead(self, front: str) -> Bulkhead:
        """Return the bulkhead of a front."""
        found = self._bulkheads.get(front)
        if found is None:
            made = Bulkhead(self._places, self._is_stalled)
            found = self._bulkheads.setdefault(front, made)
        return found

    def _is_stalled(self) -> bool:
        breaker = self.breaker
        return breaker.cause is not None or breaker.quiet_seconds() > STALL_SECONDS


class Guards:
    """The health of every issuing CA of a process.

    Args:
        threads: Of each front: `limits.threads`.
        observe: Returns who counts what happens to a CA's calls, by its name.
        now: Returns the seconds of a clock that is never set.
    """

    def __init__(
        self,
        threads: int,
        observe: Callable[[str], Observer],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = threads
        self._observe = observe
        self._now = now
        self._known: dict[tuple[str, str], Guard] = {}

    def of(self, target: Guarded) -> Guard:
        """Return what is known of an issuing CA."""
        key = target.name, target.certificate_sha256
        found = self._known.get(key)
        if found is None:
            name = target.name
            made = Guard(name, self._threads, self._observe(name), self._now)
            found = self._known.setdefault(key, made)
        return found

    def keep(self, targets: Collection[Guarded]) -> None:
        """Forget every issuing CA that is not one of these and has no call out."""
        kept = {(one.name, one.certificate_sha256) for one in targets}
        for key, guard in self._known.copy().items():
            if key not in kept and not guard.breaker.is_busy:
                del self._known[key]


class Failover:
    """Leads each call to an issuing CA that can answer it.

    Args:
        guards: The health of the issuing CAs.
        second_certificate: Whether a backend that builds the certificate may be asked
            again when it may have made one: `issuance.second_certificate`.
    """

    def __init__(self, guards: Guards, *, second_certificate: bool = False) -> None:
        self.guards = guards
        """The health of the issuing CAs."""
        self.second_certificate = second_certificate

    def over(
        self,
        targets: Sequence[Target],
        attempt: Callable[[Target, int], Result],
        budget: Budget,
        *,
        front: str = "",
    ) -> Result:
        """Make one attempt, and more where that is safe and may help.

        Each issuing CA that gets calls is asked once, in order. After that, one whose
        error may pass is asked again, after a pause.

        Args:
            targets: 1 or more equal issuing CAs, in order of preference.
            attempt: Makes one attempt at an issuing CA. Its second argument is how many
                attempts share what is left of the budget.
            budget: The call's budget; no pause goes beyond it.
            front: Whose threads are counted; "" counts none.

        Raises:
            BackendError: What `worth_telling` picks of all attempts.
            OverloadedError: The only CA that might answer has no place for the call.
        """
        run = _Run(self, targets, attempt, budget, front)
        try:
            return run.step()
        except BackendError as error:
            try:
                if not run.may_go_on(error):
                    raise
                return run.go_on(error)
            finally:
                run.forget()


class _Run(Generic[Target, Result]):
    # The attempts of one call.

    def __init__(
        self,
        failover: Failover,
        targets: Sequence[Target],
        attempt: Callable[[Target, int], Result],
        budget: Budget,
        front: str,
    ) -> None:
        of = failover.guards.of
        self._targets = [(target, of(target)) for target in targets]
        self._preferred = targets[0] if targets else None
        if len(self._targets) > 1:
            # An unsteady one comes last. The sort keeps the order of equals.
            self._targets.sort(key=lambda one: not one[1].breaker.is_steady())
        self._second_certificate = failover.second_certificate
        self._attempt = attempt
        self._budget = budget
        self._front = front
        self._asked: dict[str, BackendError] = {}
        self._refused: set[str] = set()
        self._told: list[BridgeError] = []
        self._attempts = 0
        self._is_over = False

    def step(self) -> Result:
        """Make one attempt at the next issuing CA."""
        target, guard = self._next()
        parts = self._parts(target)
        self._attempts += 1
        try:
            return self._attempt(target, parts)
        except BackendError as error:
            self._asked[target.name] = error
            self._told.append(error)
            is_ours = self._second_certificate or not target.chooses_serial
            self._is_over = ends_the_call(error, is_ours=is_ours)
            raise
        finally:
            if self._front:
                guard.bulkhead(self._front).leave()

    def go_on(self, first: BackendError) -> Result:
        """Make the other attempts. Only a call that failed pays for tenacity."""
        is_first = True

        def again() -> Result:
            nonlocal is_first
            if is_first:
                is_first = False
                raise first
            return self.step()

        retrying = Retrying(
            retry=retry_if_exception(self.may_go_on),
            wait=self._pause,
            stop=self._is_spent,
            reraise=True,
        )
        try:
            return retrying(again)
        except MisissuedError:
            raise
        except BackendError as error:
            raise worth_telling(self._told) from error

    def forget(self) -> None:
        """Let go of the call. The run itself may stay until garbage is collected."""
        # The tracebacks hold the frames of the call, and tenacity's object, which holds
        # itself, holds the run.
        for error in self._told:
            drop_tracebacks(error)
        del self._attempt, self._budget

    def may_go_on(self, error: BaseException) -> bool:
        """Tell whether another attempt is safe after this error, and may help."""
        if self._is_over or not isinstance(error, BackendError):
            return False
        return bool(self._fresh() or self._again())

    def _fresh(self) -> list[Target]:
        # The issuing CAs that were not asked yet and get calls.
        return [
            target
            for target, guard in self._targets
            if target.name not in self._asked
            and target.name not in self._refused
            and guard.breaker.cause is None
        ]

    def _again(self) -> tuple[Target, Guard, float] | None:
        # The issuing CA to ask again, and after how many seconds by its own hint.
        found = [
            (target, guard, getattr(error, "retry_after_seconds", 0.0))
            for target, guard in self._targets
            if (error := self._asked.get(target.name)) is not None
            and may_pass(error)
            and guard.breaker.cause is None
        ]
        return min(found, key=lambda one: one[2], default=None)

    def _next(self) -> tuple[Target, Guard]:
        for target, guard in self._targets:
            if target.name not in self._asked and self._admits(target, guard):
                guard.retries.called()
                if target is not self._preferred:
                    guard.observer.failed_over()
                return target, guard
        if (again := self._again()) is not None:
            target, guard, _ = again
            if guard.retries.take() and self._admits(target, guard):
                guard.observer.retried()
                return target, guard
        self._is_over = True
        none = BackendUnavailableError("no issuing CA is ready")
        raise worth_telling(self._told or [none])

    def _admits(self, target: Target, guard: Guard) -> bool:
        # With a front, `leave` is due after a True.
        refusal: BridgeError
        if guard.breaker.cause is not None:
            reason, refusal = "breaker", guard.breaker.refusal()
        elif not self._front or guard.bulkhead(self._front).enter(
            self._place_by(target)
        ):
            return True
        else:
            reason = "bulkhead"
            refusal = OverloadedError(
                "the issuing CA has as many calls as it can take",
                rule="overload.backend",
                detail=target.name,
            )
        self._refused.add(target.name)
        guard.observer.kept_away(reason)
        if target.name not in self._asked:
            self._told.append(refusal)
        return False

    def _place_by(self, target: Target) -> float:
        # A call that waits holds a thread: with all of them at a CA that stalls, and
        # waiting for it, nobody asks its equal.
        deadline = self._budget.deadline - RESERVE_SECONDS
        if any(one is not target for one in self._fresh()):
            return min(deadline, time.monotonic() + _PLACE_SECONDS)
        return deadline

    def _parts(self, target: Target) -> int:
        # An attempt leaves time for the issuing CAs that can follow.
        if len(self._targets) == 1:
            return 1
        others = sum(one is not target for one in self._fresh())
        return min(1 + others, MOST_ATTEMPTS - self._attempts)

    def _pause(self, state: RetryCallState) -> float:
        if self._fresh() or (again := self._again()) is None:
            return 0.0
        return max(again[2], BACKOFF(state))

    def _is_spent(self, state: RetryCallState) -> bool:
        if state.attempt_number >= MOST_ATTEMPTS:
            return True
        return self._budget.remaining() - state.upcoming_sleep < RESERVE_SECONDS
