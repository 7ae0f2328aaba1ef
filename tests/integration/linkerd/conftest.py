"""One bridge with both fronts per module, and how it must look afterwards."""

from collections.abc import Iterator

import pytest

from tests.support.certify import Certify
from tests.support.harness import Bridge
from tests.support.wire import MAIN, MAIN_ECDSA, OVERRIDES, Wire, write_keys


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    clusters = [{**one} for one in OVERRIDES["clusters"]]
    # Of the first, whose callers come to Linkerd's front.
    clusters[0]["namespaces"] = ["shop", "payments", "default"]
    made = Bridge(
        tmp_path_factory.mktemp("bridge") / "served",
        overrides=OVERRIDES | {"clusters": clusters},
        issuers=(MAIN, MAIN_ECDSA),
        fronts=("istio", "linkerd"),
    )
    write_keys(made)
    with made as served:
        before = served.pid
        yield served
        _require_unharmed(served, before)
    checked = made.run("ledger", "verify")
    assert checked.returncode == 0, checked.stderr


@pytest.fixture(scope="module")
def connected(bridge: Bridge) -> Iterator[Certify]:
    with Certify(bridge) as opened:
        yield opened


@pytest.fixture
def certify(connected: Certify) -> Certify:
    connected.require_healthy()  # rows of the test before may be on their way still
    return connected


def _require_unharmed(bridge: Bridge, pid: int) -> None:
    assert bridge.pid == pid
    with Certify(bridge) as certify, Wire(bridge) as wire:
        certify.require_healthy()
        wire.require_healthy()
        outcomes = certify.outcomes()
    assert all(row["kind"] == "issued" or row["rule"] for row in outcomes)
    intended = {row["attempt"] for row in bridge.rows(kind="intent", front="linkerd")}
    ended = [row["attempt"] for row in outcomes if row["attempt"]]
    assert sorted(ended) == sorted(intended)
    assert "Traceback" not in bridge.log()
    assert "Warning" not in bridge.log()
