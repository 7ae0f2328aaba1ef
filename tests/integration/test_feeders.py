"""The process that feeds the archive of a real `meshca serve`."""

import os
import signal
from pathlib import Path

from tests.support.harness.processes import is_alive
from tests.support.harness.workers import Supervised, await_true


def feeder_of(bridge: Supervised) -> int:
    """Return the feeder, once it has opened the archive and fed every row."""
    await_true(
        lambda: (
            bridge.metric("meshca_archive_lag_rows") == 0
            and len(bridge.feeders) == 1
            and all(map(uses_sqlite, bridge.feeders))
        )
    )
    (feeder,) = bridge.feeders
    return feeder


def uses_sqlite(pid: int) -> bool:
    try:
        return "_sqlite3" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def test_only_the_feeder_has_a_database_in_it(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        bridge.ask()
        feeder_of(bridge)
        assert not any(map(uses_sqlite, (bridge.pid, *bridge.children())))


def test_a_feeder_that_is_killed_holds_nobody_up(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served") as bridge:
        for _ in range(3):
            feeder = feeder_of(bridge)
            os.kill(feeder, signal.SIGKILL)
            bridge.ask()
            await_true(lambda: not is_alive(feeder))  # noqa: B023 - called here
            assert bridge.get("/readyz")[0] == 200
        feeder_of(bridge)
    bridge.require_sound_ledger("--archive")


def test_workers_share_a_feeder_that_ends_with_the_parent(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        feeder = feeder_of(bridge)
        killed = bridge.children()[0]
        os.kill(killed, signal.SIGKILL)
        await_true(lambda: not is_alive(killed))
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        bridge.ask()
        assert feeder_of(bridge) == feeder
        left = [feeder, *bridge.children()]
        os.kill(bridge.pid, signal.SIGKILL)
        bridge.forget()
        await_true(lambda: not any(map(is_alive, left)))
        bridge.__enter__()
        bridge.ask()
    bridge.require_sound_ledger("--archive")


def test_a_reload_moves_the_rows_to_another_archive(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served") as bridge:
        before = feeder_of(bridge)
        bridge.ask()
        bridge.change(ledger__archive="sqlite:///other.db")
        bridge.await_reloads("ok")
        bridge.ask()
        await_true(lambda: before not in bridge.feeders)
        feeder_of(bridge)
    bridge.require_sound_ledger("--archive")
