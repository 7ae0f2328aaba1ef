"""The tests of faults fail a CA that its part's faults harm: each way by its test."""

import time

import pytest

from bridge.errors import BackendRefusedError, BackendUnavailableError
from bridge.spi import IssuedChain, PluginContext, Prepared
from bridge.testing.faults import FaultTests
from tests.support.harness.conforming import HonestCA, Kind, Part, backend_of, run
from tests.support.parts.pki import new_chain

FAILURES = (
    AssertionError,
    OSError,
    BackendUnavailableError,
    pytest.fail.Exception,
)
STALLED = "test_a_stalled_part_holds_no_call_beyond_its_deadline"
STALLED_CHECK = "test_a_stalled_part_holds_no_check_beyond_its_deadline"
STALLED_CLOSE = "test_close_does_not_wait_for_a_stalled_part"
AWAY_AT_BUILD = "test_a_part_that_is_away_delays_no_start"
AWAY = "test_a_part_that_goes_away_comes_back"
RESTART = "test_a_restart_of_the_part_needs_none_of_the_bridge"
OTHER_KEY = "test_another_key_signs_nothing_that_passes"
OTHER_VERSION = "test_another_version_of_the_key_signs_nothing_that_passes"


class Waiting(HonestCA):
    """Waits for its part, whatever the caller's deadline."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        return super().issue(prepared, timeout=timeout + 0.7)

    def check(self, *, timeout: float) -> None:
        super().check(timeout=timeout + 0.7)


class Serial(HonestCA):
    """Lets calls wait in line for a part that answers none."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        with self.signer.part.line:
            return super().issue(prepared, timeout=timeout)


class Raw(HonestCA):
    """Raises what its library raises."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        part = self.signer.part
        if part.is_away or not part.well.is_set():
            raise ConnectionRefusedError("no part")
        return super().issue(prepared, timeout=timeout)


class Deaf(HonestCA):
    """Signs with what it has when its part is not there."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        self.signer.part.is_away = False
        self.signer.part.well.set()
        return super().issue(prepared, timeout=timeout)


class Cheerful(HonestCA):
    """Says that all is well without its part."""

    def check(self, *, timeout: float) -> None:
        pass


class Eager(HonestCA):
    """Asks its part while it is built, and waits for it."""

    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        if part.is_away:
            time.sleep(1.1)


class Resentful(HonestCA):
    """Never comes back from a fault of its part."""

    harmed = False

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        part = self.signer.part
        self.harmed |= part.is_away or not part.well.is_set() or part.restarts > 0
        if self.harmed:
            raise BackendUnavailableError("it was away once")
        return super().issue(prepared, timeout=timeout)


class WaitingToClose(HonestCA):
    def close(self) -> None:
        self.signer.part.well.wait(5.1)
        super().close()


class KeepingItsKey(HonestCA):
    """Signs with the key that it saw first, which the fault did not change."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        part = self.signer.part
        part.key = part.authority.key
        return super().issue(prepared, timeout=timeout)


class Refusing(HonestCA):
    """Refuses the part's other key by an error that is the contract's."""

    def check(self, *, timeout: float) -> None:
        if self.signer.part.key is not self.signer.part.authority.key:
            raise BackendRefusedError("another key")
        super().check(timeout=timeout)


@pytest.fixture
def part() -> Part:
    return Part(new_chain())


@pytest.mark.parametrize("honest", [HonestCA, Refusing])
@pytest.mark.parametrize(
    "name", [name for name in vars(FaultTests) if name.startswith("test_")]
)
def test_an_honest_ca_passes(
    part: Part, name: str, honest: Kind, request: pytest.FixtureRequest
) -> None:
    run(name, backend_of(honest, part), request)


@pytest.mark.parametrize(
    ("liar", "name", "complaint"),
    [
        (Waiting, STALLED, "s after its deadline"),
        (Serial, STALLED, "s after its deadline"),
        (Raw, STALLED, "no part"),
        (Deaf, STALLED, "was issued without the part"),
        (Resentful, STALLED, "a call still fails: .*away once"),
        (Waiting, STALLED_CHECK, "s after its deadline"),
        (Waiting, STALLED_CLOSE, "s after its deadline"),
        (WaitingToClose, STALLED_CLOSE, "closing waits for the part"),
        (Eager, AWAY_AT_BUILD, "building the CA waits for the part"),
        (Raw, AWAY_AT_BUILD, "no part"),
        (Deaf, AWAY_AT_BUILD, "was issued without the part"),
        (Cheerful, AWAY_AT_BUILD, "passes without the part"),
        (Resentful, AWAY_AT_BUILD, "a call still fails"),
        (Raw, AWAY, "no part"),
        (Deaf, AWAY, "was issued without the part"),
        (Cheerful, AWAY, "passes without the part"),
        (Resentful, AWAY, "a call still fails"),
        (Resentful, RESTART, "a call still fails"),
        (KeepingItsKey, OTHER_KEY, "still signs with the right key"),
        (KeepingItsKey, OTHER_VERSION, "still signs with the right key"),
    ],
)
def test_a_ca_that_a_fault_harms_is_caught(
    part: Part,
    liar: Kind,
    name: str,
    complaint: str,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(FAILURES, match=complaint):
        run(name, backend_of(liar, part), request)
