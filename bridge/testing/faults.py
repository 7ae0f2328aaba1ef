"""The tests that harm the part behind a plugin, each by an ability of `Backend`."""

# A conformance test is made of `assert`.
# ruff: noqa: S101

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress

import pytest

from bridge.spi import (
    BackendError,
    ConfigError,
    IssuedChain,
    IssuingCA,
    MisissuedError,
    Prepared,
)
from bridge.testing.backend import Backend, Harm, needs
from bridge.testing.contract import CLOSE_SECONDS, TIMEOUT_SECONDS, issue
from bridge.testing.leaves import require_issued

_DEADLINE_SECONDS = 1.0
_LATE_SECONDS = 0.5
"""A call ends at its deadline or at most this much later, whatever the part does."""
_BUILD_SECONDS = 1.0
_PERIOD_SECONDS = 0.05
_PROOFS = 10
"""Calls in a row that must pass before a CA counts as well again."""


class FaultTests:
    """What holds with a part that stalls, is away, restarts or changes its key."""

    recovery_seconds: float = 5.0
    """Within this time of the part being well, the CA issues without a restart."""

    @needs("stall")
    @pytest.mark.parametrize("calls", [1, 24])
    def test_a_stalled_part_holds_no_call_beyond_its_deadline(
        self, backend: Backend, ca: IssuingCA, calls: int
    ) -> None:
        """Each call ends in time with a `BackendError`; then the CA issues again."""
        issue(ca, backend.prepare(ca))
        with _harmed(backend.stall), ThreadPoolExecutor(calls) as pool:
            list(pool.map(lambda _: _fails_in_time(backend, ca), range(calls)))
        self._require_well_again(backend, ca)

    @needs("stall")
    def test_a_stalled_part_holds_no_check_beyond_its_deadline(
        self, backend: Backend, ca: IssuingCA
    ) -> None:
        """`check` of a stalled part ends in time, with a `BackendError` or well."""
        issue(ca, backend.prepare(ca))
        with _harmed(backend.stall):
            _check_in_time(backend, ca)

    @needs("stall")
    def test_close_does_not_wait_for_a_stalled_part(self, backend: Backend) -> None:
        """`close` is quick although calls are stalled, and they end in time."""
        ca = backend.build()
        issue(ca, backend.prepare(ca))
        with _harmed(backend.stall), ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(_fails_in_time, backend, ca) for _ in range(2)]
            time.sleep(_PERIOD_SECONDS)  # the calls cannot tell when they are stalled
            started = time.monotonic()
            ca.close()
            spent = time.monotonic() - started
            for call in calls:
                call.result()
        assert spent < CLOSE_SECONDS, "closing waits for the part"

    @needs("away")
    def test_a_part_that_is_away_delays_no_start(self, backend: Backend) -> None:
        """The factory returns, calls fail in time, and the part may come later."""
        with _harmed(backend.away):
            started = time.monotonic()
            ca = backend.build()
            spent = time.monotonic() - started
            try:
                assert spent < _BUILD_SECONDS, "building the CA waits for the part"
                _fails_in_time(backend, ca)
                assert _check_in_time(backend, ca), "`check` passes without the part"
            except BaseException:
                ca.close()
                raise
        try:
            self._require_well_again(backend, ca)
        finally:
            ca.close()

    @needs("away")
    def test_a_part_that_goes_away_comes_back(
        self, backend: Backend, ca: IssuingCA
    ) -> None:
        """A CA at work fails in time while its part is away, and then issues again."""
        issue(ca, backend.prepare(ca))
        with _harmed(backend.away):
            _fails_in_time(backend, ca)
            assert _check_in_time(backend, ca), "`check` passes without the part"
        self._require_well_again(backend, ca)

    @needs("restart")
    def test_a_restart_of_the_part_needs_none_of_the_bridge(
        self, backend: Backend, ca: IssuingCA
    ) -> None:
        """The CA issues again by itself after its part restarted."""
        issue(ca, backend.prepare(ca))
        assert backend.restart is not None
        backend.restart()
        self._require_well_again(backend, ca)

    @needs("other_key")
    def test_another_key_signs_nothing_that_passes(
        self, backend: Backend, ca: IssuingCA
    ) -> None:
        """With another key in the part, the plugin refuses or the core's check does."""
        self._require_no_wrong_leaf(backend, ca, backend.other_key)

    @needs("other_version")
    def test_another_version_of_the_key_signs_nothing_that_passes(
        self, backend: Backend, ca: IssuingCA
    ) -> None:
        """With another version of the key, the plugin refuses or the check does."""
        self._require_no_wrong_leaf(backend, ca, backend.other_version)

    def test_what_the_part_cannot_do_is_declared(self, backend: Backend) -> None:
        """`Backend.cannot` names abilities that are not given, each with a reason."""
        backend.require_declared()

    def _require_no_wrong_leaf(
        self, backend: Backend, ca: IssuingCA, harm: Harm | None
    ) -> None:
        issue(ca, backend.prepare(ca))
        with _harmed(harm):
            # This object has proven its key and may hold on to it.
            with suppress(MisissuedError):
                outcome, prepared = _attempt(backend, ca)
                if isinstance(outcome, IssuedChain):
                    require_issued(outcome, prepared, ca.describe())
            assert _is_refused(backend), "a new CA still signs with the right key"
        self._require_well_again(backend, ca)

    def _require_well_again(self, backend: Backend, ca: IssuingCA) -> None:
        deadline = time.monotonic() + self.recovery_seconds
        passed = 0
        while passed < _PROOFS:
            outcome, prepared = _attempt(backend, ca)
            if isinstance(outcome, IssuedChain):
                require_issued(outcome, prepared, ca.describe())
                passed += 1
                continue
            passed = 0
            if time.monotonic() > deadline:
                pytest.fail(
                    f"{self.recovery_seconds:g} s after the part was well again, a "
                    f"call still fails: {outcome!r} {outcome.detail}"
                )
            time.sleep(_PERIOD_SECONDS)


def _harmed(harm: Harm | None) -> AbstractContextManager[object]:
    assert harm is not None  # `needs` has seen to it
    return harm()


def _attempt(
    backend: Backend, ca: IssuingCA
) -> tuple[IssuedChain | BackendError, Prepared]:
    prepared = backend.prepare(ca)
    return backend.attempt(ca, prepared, _DEADLINE_SECONDS), prepared


def _fails_in_time(backend: Backend, ca: IssuingCA) -> None:
    started = time.monotonic()
    outcome, _ = _attempt(backend, ca)
    _require_in_time(started)
    assert isinstance(outcome, BackendError), "a leaf was issued without the part"


def _check_in_time(backend: Backend, ca: IssuingCA) -> BackendError | None:
    started = time.monotonic()
    try:
        ca.check(timeout=_DEADLINE_SECONDS)
    except BackendError as error:
        backend.require_silent("an error of check", str(error), error.detail)
        return error
    finally:
        _require_in_time(started)
    return None


def _require_in_time(started: float) -> None:
    late = time.monotonic() - started - _DEADLINE_SECONDS
    assert late <= _LATE_SECONDS, f"a call ended {late:.2f} s after its deadline"


def _is_refused(backend: Backend) -> bool:
    # By the factory, by `check`, by `issue`, or by the core's check of the leaf.
    try:
        ca = backend.build()
    except ConfigError:
        return True
    try:
        ca.check(timeout=TIMEOUT_SECONDS)
        issue(ca, backend.prepare(ca))
    except BackendError:
        return True
    finally:
        ca.close()
    return False
