"""One served bridge per module of bad input, and how it must look afterwards."""

from collections.abc import Iterator

import pytest

from tests.support.clients.istio_raw import MAIN, MAIN_ECDSA, OVERRIDES, Wire
from tests.support.harness.real_process import Bridge
from tests.support.harness.unharmed import unharmed


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    made = Bridge(
        tmp_path_factory.mktemp("bridge") / "served",
        overrides=OVERRIDES,
        issuers=(MAIN, MAIN_ECDSA),
    )
    with unharmed(made, Wire) as served:
        yield served


@pytest.fixture(scope="module")
def connected(bridge: Bridge) -> Iterator[Wire]:
    with Wire(bridge) as opened:
        yield opened


@pytest.fixture
def wire(connected: Wire) -> Wire:
    connected.forget()  # what a test that failed left behind
    return connected
