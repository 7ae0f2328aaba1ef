"""One bridge with both fronts per module, and how it must look afterwards."""

from collections.abc import Iterator

import pytest

from tests.support.clients.istio_raw import Wire
from tests.support.clients.linkerd_raw import Certify
from tests.support.harness.real_process import Bridge
from tests.support.harness.unharmed import unharmed, with_both_fronts


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    made = with_both_fronts(tmp_path_factory.mktemp("bridge") / "served")
    with unharmed(made, Certify, Wire) as served:
        yield served
    assert "Warning" not in made.log()


@pytest.fixture(scope="module")
def connected(bridge: Bridge) -> Iterator[Certify]:
    with Certify(bridge) as opened:
        yield opened


@pytest.fixture
def certify(connected: Certify) -> Certify:
    connected.require_healthy()  # rows of the test before may be on their way still
    return connected
