import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.errors import (
    BackendCredentialError,
    BackendRefusedError,
    BackendTimeoutError,
    BackendUnavailableError,
    LedgerError,
)
from bridge.snapshot import prober as module
from bridge.snapshot.model import Issuer, Snapshot
from bridge.snapshot.prober import AGAIN_SECONDS, IDLE_SECONDS, PERSON_SECONDS, Prober
from tests.support.harness.core import World
from tests.support.harness.workers import WAIT_SECONDS, await_true

DOWN = BackendUnavailableError("down")


class Probed:
    """A prober whose clock stands until it is moved; `look` is called by the test."""

    def __init__(self, world: World) -> None:
        self.now = 1000.0
        self.world = world
        self.asked: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.holds: dict[str, threading.Event] = {}
        self.guards = world.guards
        self.guards._now = lambda: self.now
        self.prober = Prober(self.guards, lambda: world.snapshot, lambda: self.now)

    def probe(self, issuer: Issuer, snapshot: Snapshot, seconds: float) -> None:
        self.asked.append(issuer.name)
        if (hold := self.holds.get(issuer.name)) is not None:
            assert hold.wait(WAIT_SECONDS)
        if (error := self.errors.get(issuer.name)) is not None:
            raise error

    def start(self) -> None:
        self.prober._loop.start = lambda: None  # type: ignore[method-assign]
        self.prober.start(self.probe)

    def look(self, after: float = 0.0) -> list[str]:
        """Return whom a look after some seconds has probed."""
        self.now += after
        before = len(self.asked)
        self.prober.look()
        await_true(
            lambda: all(
                one.probe is None or one.probe.done() or name in self.holds
                for name, one in self.prober._states.items()
            )
        )
        return sorted(self.asked[before:])

    def is_open(self, name: str) -> bool:
        issuer = self.world.snapshot.issuers[name]
        return self.guards.of(issuer).breaker.cause is not None


@pytest.fixture
def probed(tmp_path: Path) -> Iterator[Probed]:
    with World(tmp_path) as world:
        one = Probed(world)
        yield one
        for hold in one.holds.values():
            hold.set()
        one.prober.close()


def test_all_are_probed_at_the_start_side_by_side(probed: Probed) -> None:
    # Each waits for the other: one after the other would not end.
    both = threading.Barrier(2)

    probed.prober.start(lambda *_: both.wait(WAIT_SECONDS))
    assert probed.prober.problems() == {}
    assert probed.prober.ready()


def test_one_that_hangs_does_not_delay_the_start(probed: Probed) -> None:
    probed.holds["a"] = threading.Event()
    began = time.monotonic()
    probed.start()
    assert time.monotonic() - began < module.FIRST_SECONDS / 2
    assert probed.prober.ready()
    assert probed.prober.unproven() == ("a",)
    assert probed.is_open("a"), "it gets no calls before it has signed"
    assert probed.look(100) == ["b"], "no second probe while one is out"
    probed.holds.pop("a").set()
    await_true(lambda: not probed.is_open("a"))
    assert probed.prober.unproven() == ()


def test_none_that_signs_is_not_ready_and_is_tried_again(
    probed: Probed,
) -> None:
    probed.errors = {"a": DOWN, "b": LedgerError("full")}
    probed.start()
    assert not probed.prober.ready()
    assert probed.prober.problems() == {
        "a": "has not signed yet: down",
        "b": "has not signed yet: full",
    }
    assert probed.look(AGAIN_SECONDS - 0.1) == []
    assert probed.look(0.2) == ["a", "b"]
    probed.errors = {}
    assert probed.look(AGAIN_SECONDS) == ["a", "b"]
    assert probed.prober.ready()
    assert probed.prober.problems() == {}


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (DOWN, True),
        (BackendTimeoutError("late"), True),
        (BackendCredentialError("wrong PIN"), True),
        # The CA works, and its role refuses the probe's name.
        (BackendRefusedError("no"), False),
        # The ledger's failure is not the CA's.
        (LedgerError("full"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_probe_opens_the_breaker(
    probed: Probed, error: BaseException, *, opens: bool
) -> None:
    probed.start()
    probed.errors = {"a": error}
    assert probed.look(IDLE_SECONDS) == ["a", "b"]
    assert probed.is_open("a") is opens
    assert probed.prober.ready(), "readiness stays"
    if opens:
        told = probed.prober.problems()["a"]
        assert told == f"fails, and gets no calls until a probe: {error}"


def test_a_signed_probe_closes_the_breaker(probed: Probed) -> None:
    probed.start()
    issuer = probed.world.snapshot.issuers["a"]
    probed.guards.of(issuer).breaker.open(DOWN)
    assert probed.look(AGAIN_SECONDS - 0.1) == []
    assert probed.look(0.2) == ["a"]
    assert not probed.is_open("a")


def test_one_that_needs_a_person_is_looked_at_every_five_seconds(
    probed: Probed,
) -> None:
    # The latch answers until it is cleared, or another credential is there.
    probed.errors = {"a": BackendCredentialError("wrong PIN")}
    probed.start()
    assert "a" not in probed.look(PERSON_SECONDS - 0.1)
    probed.errors = {}
    assert "a" in probed.look(0.2)
    assert not probed.is_open("a")


def test_one_that_nobody_called_for_a_minute_is_probed(probed: Probed) -> None:
    probed.start()
    breaker = probed.guards.of(probed.world.snapshot.issuers["a"]).breaker
    probed.now += 30
    breaker.ended(breaker.began(2.0))
    assert probed.look(IDLE_SECONDS - 30) == ["b"]
    assert probed.look(30) == ["a"]


def test_late_calls_are_counted_without_their_return(probed: Probed) -> None:
    probed.start()
    breaker = probed.guards.of(probed.world.snapshot.issuers["a"]).breaker
    calls = [breaker.began(2.0) for _ in range(5)]
    probed.errors = {"a": DOWN}
    probed.look(3)
    assert probed.is_open("a")
    for call in calls:
        breaker.ended(call)


def test_a_bug_in_a_probe_is_a_problem_in_words(probed: Probed) -> None:
    probed.errors = {"a": ZeroDivisionError("x"), "b": SystemExit(1)}
    probed.start()
    assert probed.prober.problems() == {
        "a": "has not signed yet: the probe failed: ZeroDivisionError",
        "b": "has not signed yet: the probe failed: SystemExit",
    }


def test_a_successor_that_does_not_sign_is_told_to_its_builder(probed: Probed) -> None:
    probed.start()
    issuer = probed.world.snapshot.issuers["a"]
    probed.errors = {"a": DOWN}
    with pytest.raises(BackendUnavailableError, match="down"):
        probed.prober.prove(issuer, probed.world.snapshot)
    assert not probed.is_open("a"), "the one in service signs"
    probed.errors = {}
    probed.prober.prove(issuer, probed.world.snapshot)
