"""The archive, the journal or the heads are locked, lost or cut; seen from outside."""

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.ledger_faults.support import (
    await_archive,
    ready,
    segment,
    signed,
    status,
    workload_rows,
)
from tests.support.harness.archive import compared
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true

_LAG = {"ledger": {"max_lag": {"entries": 8}}}


@pytest.fixture
def bridge(tmp_path: Path) -> Bridge:
    return Bridge(tmp_path / "served")


@pytest.fixture
def hurried(tmp_path: Path) -> Bridge:
    # So few rows may wait that the start alone can fill them: the archive comes first.
    return Bridge(tmp_path / "served", overrides=_LAG)


def require_sound(bridge: Bridge) -> None:
    checked = bridge.run("ledger", "verify")
    assert checked.returncode == 0, checked.stderr
    assert compared(bridge.folder).agrees


def test_a_locked_archive_stops_signing_at_the_bound(hurried: Bridge) -> None:
    bridge = hurried
    with bridge:
        await_archive(bridge)
        assert status(bridge) == "OK"
        await_archive(bridge)
        other = sqlite3.connect(bridge.folder / "archive.db", isolation_level=None)
        other.execute("PRAGMA busy_timeout = 5000")
        other.execute("BEGIN EXCLUSIVE")
        asked = 0
        while (found := status(bridge)) == "OK":
            asked += 1
            assert asked < 20, "the bound is 8 rows"
        assert found == "UNAVAILABLE"
        before = signed(bridge)
        assert status(bridge) == "UNAVAILABLE"
        assert signed(bridge) == before
        is_ready, text = ready(bridge)
        assert not is_ready
        assert re.search(r"the archive is \d+ rows and \d+ s behind", text)
        await_true(lambda: "database is locked" in ready(bridge)[1])
        other.rollback()
        other.close()
        await_true(lambda: ready(bridge)[0])
        assert status(bridge) == "OK"
    require_sound(bridge)


def test_an_archive_that_is_deleted_in_use_is_made_again(hurried: Bridge) -> None:
    bridge = hurried
    archive = bridge.folder / "archive.db"
    with bridge:
        await_archive(bridge)
        for _ in range(4):
            assert status(bridge) == "OK"
            await_archive(bridge)
        archive.unlink()
        for _ in range(2):
            assert status(bridge) == "OK", "the rebuild stops nobody"
        await_archive(bridge)
        assert ready(bridge)[0]
        assert status(bridge) == "OK"
    require_sound(bridge)


def test_an_archive_that_was_removed_before_a_start_stops_nobody(
    hurried: Bridge,
) -> None:
    bridge = hurried
    with bridge:
        await_archive(bridge)
        for _ in range(5):
            assert status(bridge) == "OK"
            await_archive(bridge)
    for path in bridge.folder.glob("archive.db*"):
        path.unlink()
    with bridge:
        assert status(bridge) == "OK"
        await_archive(bridge)
        assert status(bridge) == "OK"
    require_sound(bridge)


def test_a_damaged_archive_is_named_and_made_again_when_it_is_removed(
    hurried: Bridge,
) -> None:
    bridge = hurried
    archive = bridge.folder / "archive.db"
    with bridge:
        await_archive(bridge)
        assert status(bridge) == "OK"
    archive.write_bytes(b"\xff" * archive.stat().st_size)
    with bridge:
        while status(bridge) == "OK":
            pass
        await_true(lambda: "remove the archive, and it is made" in ready(bridge)[1])
        archive.unlink()
        await_true(lambda: ready(bridge)[0])
        assert status(bridge) == "OK"
    require_sound(bridge)


def cut(bridge: Bridge) -> None:
    lines = segment(bridge).read_bytes().splitlines(keepends=True)
    segment(bridge).write_bytes(b"".join(lines[:-3]))


def restore(bridge: Bridge) -> None:
    # A backup that was taken when the bridge had just started.
    lines = segment(bridge).read_bytes().splitlines(keepends=True)
    segment(bridge).write_bytes(lines[0])


def edit(bridge: Bridge) -> None:
    data = segment(bridge).read_bytes()
    segment(bridge).write_bytes(data.replace(b'"caller":"spiffe', b'"caller":"spoofe'))


def reorder(bridge: Bridge) -> None:
    first, *rest, last = segment(bridge).read_bytes().splitlines(keepends=True)
    segment(bridge).write_bytes(b"".join((first, *reversed(rest), last)))


def lose_heads(bridge: Bridge) -> None:
    (bridge.folder / "heads.jsonl").unlink()


@pytest.mark.parametrize("fault", [cut, restore, edit, reorder, lose_heads])
def test_a_journal_without_its_published_heads_is_refused_until_it_is_accepted(
    bridge: Bridge, fault: Callable[[Bridge], None]
) -> None:
    with bridge:
        for _ in range(3):
            assert status(bridge) == "OK"
    whole = segment(bridge).read_bytes()
    heads = (bridge.folder / "heads.jsonl").read_bytes()
    fault(bridge)
    with pytest.raises(RuntimeError, match="meshca ledger accept -c FILE"):
        bridge.__enter__()
    # The right journal is put back: the bridge serves.
    spoiled = segment(bridge).read_bytes()
    segment(bridge).write_bytes(whole)
    (bridge.folder / "heads.jsonl").write_bytes(heads)
    with bridge:
        assert status(bridge) == "OK"
    for path in segment(bridge).parent.glob("*.jsonl"):
        if path != segment(bridge):
            path.unlink()
    # The journal is lost: the bridge serves when an operator accepts it.
    segment(bridge).write_bytes(spoiled)
    if fault is lose_heads:
        (bridge.folder / "heads.jsonl").unlink()
    accepted = bridge.run(
        "ledger", "accept", "--writer", "w0", "--reason", "the node was lost"
    )
    assert accepted.returncode == 0, accepted.stderr
    with bridge:
        assert status(bridge) == "OK"
    assert bridge.rows(kind="accepted", detail="the node was lost")
    checked = bridge.run("ledger", "verify", "--archive")
    assert checked.returncode == 0, checked.stderr
    assert "accepted that it ends at row" in checked.stdout


def test_a_power_cut_in_a_write_needs_no_operator(bridge: Bridge) -> None:
    with bridge:
        assert status(bridge) == "OK"
        bridge.kill()
    with segment(bridge).open("ab") as file:
        file.write(bytes(700) + b"\n" + bytes(300))
    with bridge:
        assert status(bridge) == "OK"
    assert len(workload_rows(bridge, "intent")) == 2
    require_sound(bridge)


def test_heads_that_cannot_be_written_are_named_at_the_start(bridge: Bridge) -> None:
    (bridge.folder / "heads.jsonl").mkdir()
    with pytest.raises(RuntimeError, match=r"heads.*Is a directory"):
        bridge.__enter__()
    (bridge.folder / "heads.jsonl").rmdir()
    with bridge:
        assert status(bridge) == "OK"
    require_sound(bridge)


def test_two_workers_feed_one_archive_each_row_once(tmp_path: Path) -> None:
    bridge = Bridge(tmp_path / "served", overrides={"workers": 2})
    with bridge:
        for _ in range(12):
            assert status(bridge) == "OK"
    assert len(workload_rows(bridge, "issued")) == 12
    require_sound(bridge)
