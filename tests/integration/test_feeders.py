"""The processes that feed the archive of a real `meshca serve`."""

import os
import signal
from pathlib import Path

from tests.support.harness.processes import is_alive
from tests.support.harness.workers import Supervised, await_true


def feeders(bridge: Supervised, count: int = 1) -> list[int]:
    """Return those that have opened the archive: they stay."""
    await_true(
        lambda: (
            bridge.metric("meshca_archive_lag_rows") == 0
            and len(bridge.feeders) == count
            and all(map(uses_sqlite, bridge.feeders))
        )
    )
    return bridge.feeders


def uses_sqlite(pid: int) -> bool:
    try:
        return "_sqlite3" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def test_the_process_that_signs_has_no_database_in_it(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served") as bridge:
        bridge.ask()
        assert feeders(bridge)
        assert not any(map(uses_sqlite, [bridge.pid, *bridge.children()]))


def test_a_feeder_that_is_killed_holds_nobody_up(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served") as bridge:
        for _ in range(3):
            (feeder,) = feeders(bridge)
            os.kill(feeder, signal.SIGKILL)
            bridge.ask()
            await_true(lambda: not is_alive(feeder))  # noqa: B023 - called here
            assert bridge.get("/readyz")[0] == 200
        feeders(bridge)
    bridge.require_sound_ledger("--archive")


def test_each_worker_has_a_feeder_that_goes_with_it(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        before = feeders(bridge, 2)
        cores = {frozenset(os.sched_getaffinity(pid)) for pid in bridge.children()}
        assert {frozenset(os.sched_getaffinity(pid)) for pid in before} == cores
        os.kill(bridge.children()[0], signal.SIGKILL)
        await_true(lambda: sum(map(is_alive, before)) == 1)
        await_true(lambda: len(bridge.feeders) == 2)
        bridge.ask()
        left = [*bridge.feeders, *bridge.children()]
        os.kill(bridge.pid, signal.SIGKILL)
        bridge.forget()
        await_true(lambda: not any(map(is_alive, left)))
        bridge.__enter__()
        bridge.ask()
    bridge.require_sound_ledger("--archive")


def test_a_stop_that_is_told_to_all_feeds_what_is_left(tmp_path: Path) -> None:
    # As systemd does it, and some container runtimes.
    with Supervised(tmp_path / "served") as bridge:
        (feeder,) = feeders(bridge)
        bridge.ask()
        os.kill(feeder, signal.SIGTERM)
        bridge.stop()
        assert not is_alive(feeder)
    bridge.require_sound_ledger("--archive")
