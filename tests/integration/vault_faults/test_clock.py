"""The clocks of bridge and Vault differ.

The server's clock cannot be set off alone, so the bridge's is: only the difference
matters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.vault_faults.support import REFUSED, Ground, ground
from tests.support.parts.clock_shim import ShiftedClock
from tests.support.parts.vault import Server

pytestmark = pytest.mark.xdist_group("vault-clock")


@dataclass(frozen=True)
class Shifted:
    ground: Ground
    clock: ShiftedClock


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shifted]:
    folder = tmp_path_factory.mktemp("bridge")
    clock = ShiftedClock(folder)
    with (
        Server(folder / "server") as server,
        ground(folder / "b", server, prefix=clock.prefix) as made,
    ):
        yield Shifted(made, clock)


@pytest.mark.parametrize("seconds", [20, -20])
def test_a_clock_that_is_a_little_off_changes_nothing(
    shared: Shifted, seconds: int
) -> None:
    shared.ground.is_unmoved(
        f"clock {seconds:+} s off", lambda: shared.clock.set(seconds)
    )
    shared.clock.set(0)


def test_a_clock_that_is_far_off_is_no_mis_issuance(shared: Shifted) -> None:
    shared.ground.survive(
        "clock +90 s off",
        lambda: shared.clock.set(90),
        lambda: shared.clock.set(0),
        front="istio",
        allowed=REFUSED,
    )
    assert not shared.ground.bridge.rows(kind="stopped")
