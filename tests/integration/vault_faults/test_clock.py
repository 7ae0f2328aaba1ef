"""The clocks of bridge and Vault differ.

The server's clock cannot be set off alone, so the bridge's is: only the difference
matters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.integration.vault_faults.support import (
    REFUSED,
    Ground,
    ground,
    on_each_product,
)
from tests.support.harness.workers import await_true
from tests.support.parts.clock_shim import ShiftedClock
from tests.support.parts.vault import VAULT, Product, Server

pytestmark = on_each_product("vault-clock")
_IN_A_ROW = 20
"""Certificates after which no call of before is out."""


@dataclass(frozen=True)
class Shifted:
    ground: Ground
    clock: ShiftedClock


@pytest.fixture(scope="module")
def shared(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shifted]:
    folder = tmp_path_factory.mktemp("bridge")
    clock = ShiftedClock(folder)
    with (
        Server(folder / "server", vault_product) as server,
        ground(folder / "b", server, prefix=clock.prefix) as made,
    ):
        yield Shifted(made, clock)


@pytest.mark.parametrize("seconds", [20, -20])
def test_a_clock_that_is_a_little_off_changes_nothing(
    shared: Shifted, seconds: int
) -> None:
    ground, clock = shared.ground, shared.clock
    name = f"clock {seconds:+} s off"
    if ground.server.product is VAULT:
        # It counts a lifetime from its own clock: the calls that are out in the moment
        # in which a clock jumps show by how much, and are asked again.
        set_and_await_seen(ground, name, lambda: clock.set(seconds))
        ground.is_unmoved(name, lambda: None)
    else:
        ground.is_unmoved(name, lambda: clock.set(seconds))
    clock.set(0)


def set_and_await_seen(
    ground: Ground, name: str, set_clock: Callable[[], None]
) -> None:
    began = ground.faults.survive(
        f"{ground.named(name)}, as it is set",
        set_clock,
        until=lambda: True,
        end=lambda: None,
    )

    def is_seen() -> bool:
        codes = [one.code for one in ground.callers.results(began)]
        return codes[-_IN_A_ROW:] == ["OK"] * _IN_A_ROW

    await_true(is_seen)


def test_a_clock_that_is_far_off_is_no_mis_issuance(shared: Shifted) -> None:
    shared.ground.survive(
        "clock +90 s off",
        lambda: shared.clock.set(90),
        lambda: shared.clock.set(0),
        front="istio",
        allowed=REFUSED,
    )
    assert not shared.ground.bridge.rows(kind="stopped")
