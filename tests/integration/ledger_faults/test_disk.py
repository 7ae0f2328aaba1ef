"""The disk of the ledger is full, or read-only, while certificates are asked for."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.integration.ledger_faults.support import (
    ready,
    signed,
    status,
    workload_rows,
)
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true
from tests.support.parts.disks import FileLimit, SmallDisk, Tmpfs, mounted

_FIRST, _REFUSED, _LAST = 3, 10, 4


class Served:
    """A bridge whose journal, or whole ledger, is on a small disk."""

    def __init__(self, bridge: Bridge, disk: SmallDisk, says: str) -> None:
        self.bridge = bridge
        self.disk = disk
        self.says = says


def _without_a_disk(instead: str) -> NoReturn:
    # Only root may mount one. CI is root, and there nothing may be left out.
    if os.environ.get("CI"):
        pytest.fail(f"no disk can be mounted; {instead}")
    pytest.skip(f"no disk can be mounted, {instead}")


@pytest.fixture(params=["tmpfs", "tmpfs for all", "file limit"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        if request.param == "file limit":
            yield Served(Bridge(tmp_path / "served"), FileLimit(), "File too large")
            return
        bridge = Bridge(tmp_path / "served", overrides=_ledger_of(request.param))
        try:
            disk = stack.enter_context(mounted(bridge.folder / "journal"))
        except PermissionError as error:
            _without_a_disk(f"the file limit stands in: {error}")
        yield Served(bridge, disk, "No space left on device")


def _ledger_of(kind: str) -> dict[str, object]:
    if kind == "tmpfs":
        return {}
    return {
        "ledger": {
            "archive": "sqlite:///journal/archive.db",
            "heads": {"sink": "journal/heads.log"},
        }
    }


def test_a_full_disk_stops_signing_and_a_free_one_lets_it_go_on(served: Served) -> None:
    bridge, disk = served.bridge, served.disk
    with bridge:
        pid, granted = bridge.worker, 0
        for _ in range(_FIRST):
            assert status(bridge) == "OK"
            granted += 1
        disk.fill(bridge)
        # The last page of the journal may still take some rows.
        while (found := status(bridge)) == "OK":
            granted += 1
            assert granted < 100
        assert found == "UNAVAILABLE"
        before = signed(bridge)
        for _ in range(_REFUSED):
            assert status(bridge) == "UNAVAILABLE"
        assert signed(bridge) == before, "nothing is signed that is not on record"
        assert ready(bridge)[0] is False
        assert served.says in ready(bridge)[1]
        assert bridge.get("/healthz")[0] == 200

        disk.free(bridge)
        await_true(lambda: ready(bridge)[0])
        for _ in range(_LAST):
            assert status(bridge) == "OK"
            granted += 1
        assert bridge.worker == pid
    assert len(workload_rows(bridge, "intent")) == granted
    assert len(workload_rows(bridge, "issued")) == granted
    assert bridge.rows(kind="resumed")
    _require_sound(bridge)


def test_a_bridge_that_is_restarted_on_a_full_disk_serves_after_that(
    served: Served,
) -> None:
    bridge, disk = served.bridge, served.disk
    with bridge:
        assert status(bridge) == "OK"
        disk.fill(bridge)
        while status(bridge) == "OK":
            pass
        bridge.kill()
    if isinstance(disk, Tmpfs):
        with pytest.raises(RuntimeError, match="did not start"):
            bridge.__enter__()
        assert served.says in bridge.log()
        disk.free(bridge)
    with bridge:
        assert status(bridge) == "OK"
    intents = [row["attempt"] for row in workload_rows(bridge, "intent")]
    ended = [
        row["attempt"]
        for kind in ("issued", "unknown", "failed")
        for row in workload_rows(bridge, kind)
        if row["attempt"]
    ]
    assert sorted(ended) == sorted(intents)
    _require_sound(bridge)


def test_a_read_only_disk_is_named_at_the_start(tmp_path: Path) -> None:
    bridge = Bridge(tmp_path / "served")
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(mounted(bridge.folder / "journal"))
        except PermissionError as error:
            _without_a_disk(f"a seam's test stands in: {error}")
        with bridge:
            assert status(bridge) == "OK"
        disk.remount("ro")
        with pytest.raises(RuntimeError, match="Read-only file system"):
            bridge.__enter__()
        disk.remount("rw")
        with bridge:
            assert status(bridge) == "OK"
        assert len(workload_rows(bridge, "issued")) == 2
        _require_sound(bridge)


def _require_sound(bridge: Bridge) -> None:
    checked = bridge.run("ledger", "verify", "--archive")
    assert checked.returncode == 0, checked.stderr
    assert "to come" not in checked.stdout
