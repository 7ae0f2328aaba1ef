"""One served bridge per module of bad input, and how it must look afterwards."""

from collections.abc import Iterator

import pytest

from tests.support.harness import Bridge
from tests.support.wire import MAIN, MAIN_ECDSA, OVERRIDES, Wire, write_keys


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    made = Bridge(
        tmp_path_factory.mktemp("bridge") / "served",
        overrides=OVERRIDES,
        issuers=(MAIN, MAIN_ECDSA),
    )
    write_keys(made)
    with made as served:
        before = served.pid
        yield served
        _require_unharmed(served, before)
    checked = made.run("ledger", "verify")
    assert checked.returncode == 0, checked.stderr


@pytest.fixture(scope="module")
def connected(bridge: Bridge) -> Iterator[Wire]:
    with Wire(bridge) as opened:
        yield opened


@pytest.fixture
def wire(connected: Wire) -> Wire:
    connected.forget()  # what a test that failed left behind
    return connected


def _require_unharmed(bridge: Bridge, pid: int) -> None:
    assert bridge.pid == pid
    with Wire(bridge) as wire:
        wire.require_healthy()
        outcomes = wire.outcomes()
    assert all(row["kind"] == "issued" or row["rule"] for row in outcomes)
    intended = {row["attempt"] for row in bridge.rows(kind="intent", front="istio")}
    ended = [row["attempt"] for row in outcomes if row["attempt"]]
    assert sorted(ended) == sorted(intended)
    assert "Traceback" not in bridge.log()
