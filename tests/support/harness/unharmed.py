"""A bridge to which a test does its worst, and how it must look afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.clients.istio_raw import (
    MAIN,
    MAIN_ECDSA,
    OVERRIDES,
    Wire,
    write_keys,
)
from tests.support.clients.linkerd_raw import Certify
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true


def with_both_fronts(folder: Path) -> Bridge:
    """Make a bridge with the clusters of `wire.OVERRIDES`, for `unharmed`."""
    clusters = [{**one} for one in OVERRIDES["clusters"]]
    # Of the first, whose callers come to Linkerd's front.
    clusters[0]["namespaces"] = ["shop", "payments", "default"]
    return Bridge(
        folder,
        overrides=OVERRIDES | {"clusters": clusters},
        issuers=(MAIN, MAIN_ECDSA),
        fronts=("istio", "linkerd"),
    )


@contextmanager
def unharmed(made: Bridge, *clients: type[Certify | Wire]) -> Iterator[Bridge]:
    """Serve inside the block; then the process, its answers and its record are good.

    Args:
        made: With the clusters of `wire.OVERRIDES`.
        clients: One for each front that was talked to.

    Raises:
        AssertionError: They are not.
    """
    write_keys(made)
    with made as served:
        before = served.worker
        yield served
        assert served.worker == before, "the process is another one"
        for client in clients:
            _require_unharmed(served, client)
        assert "Traceback" not in served.log(), served.log()
    checked = made.run("ledger", "verify")
    assert checked.returncode == 0, checked.stderr


@contextmanager
def nothing_left(bridge: Bridge) -> Iterator[None]:
    """Serve inside the block; then no call, descriptor or thread of it is left.

    Raises:
        TimeoutError: One is.
    """
    files, threads = _count(bridge, "fd"), _count(bridge, "task")
    yield
    await_true(lambda: bridge.metric("meshca_in_flight") == 0)
    await_true(lambda: _count(bridge, "fd") <= files + 3)
    # grpc has some of its own, by the load.
    await_true(lambda: _count(bridge, "task") <= threads + 8)


def _count(bridge: Bridge, kind: str) -> int:
    return len(list(Path(f"/proc/{bridge.worker}/{kind}").iterdir()))


def _require_unharmed(bridge: Bridge, client: type[Certify | Wire]) -> None:
    with client(bridge) as opened:
        opened.require_healthy()
        outcomes = opened.outcomes()
    silent = [row for row in outcomes if row["kind"] != "issued" and not row["rule"]]
    assert not silent, silent
    intents = bridge.rows(kind="intent", front=opened.front)
    intended = sorted({row["attempt"] for row in intents})
    ended = sorted(row["attempt"] for row in outcomes if row["attempt"])
    assert ended == intended, (ended, intended)
