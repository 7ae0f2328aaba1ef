"""A bridge to which a test does its worst, and how it must look afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.clients.istio_raw import Wire, write_keys
from tests.support.clients.linkerd_raw import Certify
from tests.support.harness.real_process import Bridge


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
