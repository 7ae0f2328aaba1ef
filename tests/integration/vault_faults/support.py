"""A bridge with its keys in OpenBao or Vault, and clients that ask while that fails."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.callers import RETRYABLE, Callers
from tests.support.harness.faults import PATIENCE_SECONDS, Faults, keep
from tests.support.harness.vault import Login, VaultBridge
from tests.support.harness.workers import WAIT_SECONDS, await_true
from tests.support.parts.vault import PRODUCTS, Server

ENOUGH = 5
"""Calls that fail in a row: so many open the breaker."""
_EACH = 3
"""Clients of each front: enough for a breaker to open within one timeout."""
_UNMOVED = 40
"""Calls that show that nothing has moved."""
REFUSED = RETRYABLE | {"FAILED_PRECONDITION"}
"""What clients see while a person is needed, who then acts."""


def on_each_product(group: str) -> pytest.MarkDecorator:
    """Return the mark of a module whose tests run on each product, one after the other.

    Args:
        group: So begin the names of the two groups of xdist.
    """
    marks = pytest.mark.xdist_group
    products = [
        pytest.param(one, id=str(one), marks=marks(f"{group}-{one}"))
        for one in PRODUCTS
    ]
    return pytest.mark.parametrize(
        "vault_product", products, indirect=True, scope="module"
    )


@dataclass(frozen=True, slots=True)
class Ground:
    """A bridge that all rows of a module share, and the clients that ask it."""

    bridge: VaultBridge
    callers: Callers

    @property
    def server(self) -> Server:
        """Behind the bridge."""
        return self.bridge.server

    @property
    def faults(self) -> Faults:
        """The rows."""
        return Faults(self.callers)

    def named(self, name: str) -> str:
        """Return the name of a row, with the product."""
        return f"{self.server.product}: {name}"

    def survive(  # noqa: PLR0913 - what differs between rows, each by name
        self,
        name: str,
        begin: Callable[[], object],
        end: Callable[[], object],
        *,
        allowed: Collection[str] = RETRYABLE,
        front: str = "",
        failures: int = ENOUGH,
        patience: float = WAIT_SECONDS,
    ) -> float:
        """See `Faults.survive`. The fault lasts until `failures` calls failed."""
        since = time.monotonic()
        return self.faults.survive(
            self.named(name),
            begin,
            until=lambda: self.faults.failures(since, front) >= failures,
            end=end,
            allowed=allowed,
            patience=patience,
        )

    def is_unmoved(self, name: str, change: Callable[[], object]) -> None:
        """Require that a change of Vault moves nothing: calls get certificates.

        Raises:
            AssertionError: A call failed.
        """
        began = time.monotonic()
        change()
        changed = time.monotonic()
        await_true(lambda: len(self.callers.results(changed)) >= _UNMOVED)
        took = self.callers.await_served(changed, PATIENCE_SECONDS)
        codes = self.callers.codes(began)
        slowest = max(one.seconds for one in self.callers.results(began))
        keep(self.named(name), changed - began, took, slowest, dict(codes))
        assert set(codes) == {"OK"}, self.callers.texts(began)


@contextmanager
def ground(
    folder: Path, server: Server, login: Login | None = None, **more: Any
) -> Iterator[Ground]:
    """Serve and ask; at the end hold the ledger against clients and audit log.

    Args:
        folder: Of the bridge.
        server: Running.
        login: How the bridge logs in.
        more: See `VaultBridge`.
    """
    bridge = VaultBridge(folder, server, login, **more)
    try:
        with bridge, Callers(bridge, _EACH) as callers:
            callers.await_served(time.monotonic(), PATIENCE_SECONDS)
            yield Ground(bridge, callers)
        bridge.require_all_on_record(callers)
    except BaseException as error:
        error.add_note(bridge.log())
        raise
