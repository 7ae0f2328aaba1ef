"""What a backend can be given, must declare, and may not show."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from bridge.errors import BackendUnavailableError
from bridge.spi import IssuedChain, LeafRequest, Prepared
from bridge.testing import ABILITIES, Backend
from tests.support.harness.conforming import (
    NAMES,
    PIN,
    HonestCA,
    Part,
    backend_of,
    run,
)
from tests.support.parts.pki import new_chain

FAILED = pytest.fail.Exception
REASON = "the part cannot do this"
GIVEN = ("stall", "away", "restart", "other_key", "other_version")


@pytest.fixture
def backend() -> Backend:
    return backend_of(HonestCA, Part(new_chain()))


def without(backend: Backend, *, cannot: Mapping[str, str]) -> Backend:
    return replace(
        backend,
        stall=None,
        away=None,
        restart=None,
        other_key=None,
        other_version=None,
        secrets={},
        cannot=cannot,
    )


@pytest.mark.parametrize("name", NAMES)
def test_without_abilities_nothing_fails(
    backend: Backend, name: str, request: pytest.FixtureRequest
) -> None:
    declared = without(backend, cannot=dict.fromkeys(ABILITIES, REASON))
    run(name, declared, request)


@pytest.mark.parametrize(
    ("name", "ability"),
    [
        ("test_a_stalled_part_holds_no_call_beyond_its_deadline", "stall"),
        ("test_a_stalled_part_holds_no_check_beyond_its_deadline", "stall"),
        ("test_close_does_not_wait_for_a_stalled_part", "stall"),
        ("test_a_part_that_is_away_delays_no_start", "away"),
        ("test_a_part_that_goes_away_comes_back", "away"),
        ("test_a_restart_of_the_part_needs_none_of_the_bridge", "restart"),
        ("test_another_key_signs_nothing_that_passes", "other_key"),
        ("test_another_version_of_the_key_signs_nothing_that_passes", "other_version"),
        ("test_no_secret_is_in_the_memory_of_the_serving_process", "memory"),
    ],
)
def test_an_ability_that_is_not_given_is_asked_for(
    backend: Backend, name: str, ability: str, request: pytest.FixtureRequest
) -> None:
    field = "secrets" if ability == "memory" else ability
    with pytest.raises(
        pytest.skip.Exception, match=f"not shown, since Backend.{field} is not given"
    ):
        run(name, without(backend, cannot={}), request)


def test_a_declared_reason_is_printed(
    backend: Backend,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    declared = without(backend, cannot={"restart": REASON})
    run("test_a_restart_of_the_part_needs_none_of_the_bridge", declared, request)
    assert capsys.readouterr().out == f"not possible here: restart: {REASON}\n"


@pytest.mark.parametrize(
    ("cannot", "complaint"),
    [
        ({"explode": REASON}, "'explode' is none of stall, away"),
        ({"stall": REASON}, "'stall' is given, and declared as impossible"),
        ({"memory": "no"}, "say why the part cannot do 'memory'"),
    ],
)
def test_what_is_declared_is_an_ability_that_is_not_given(
    backend: Backend,
    cannot: Mapping[str, str],
    complaint: str,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(FAILED, match=complaint):
        run(
            "test_what_the_part_cannot_do_is_declared",
            replace(backend, cannot=cannot),
            request,
        )


@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailableError(f"refused {PIN.decode()}"),
        BackendUnavailableError("refused", detail=f"with {PIN.decode()}"),
    ],
)
def test_an_error_that_tells_a_secret_fails_every_test(
    error: BackendUnavailableError,
) -> None:
    class Telling(HonestCA):
        def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
            raise error

    telling = backend_of(Telling, Part(new_chain()))
    ca = telling.build()
    with pytest.raises(FAILED, match="an error tells the secret 'pin'"):
        telling.attempt(ca, telling.prepare(ca), 1.0)


def test_the_cause_of_an_error_tells_no_secret_either() -> None:
    class Telling(HonestCA):
        def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
            raise BackendUnavailableError("refused") from OSError(PIN.decode())

    telling = backend_of(Telling, Part(new_chain()))
    ca = telling.build()
    with pytest.raises(FAILED, match="an error tells the secret 'pin'"):
        telling.attempt(ca, telling.prepare(ca), 1.0)


def test_each_request_is_the_one_that_is_prepared() -> None:
    class Reusing(HonestCA):
        first: Prepared | None = None

        def prepare(self, request: LeafRequest) -> Prepared:
            self.first = self.first or super().prepare(request)
            return self.first

    reusing = backend_of(Reusing, Part(new_chain()))
    ca = reusing.build()
    reusing.prepare(ca)
    with pytest.raises(FAILED, match="another request was prepared"):
        reusing.prepare(ca)
