"""The journal: what is on disk after each event, and after each fault."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from bridge.errors import LedgerError
from bridge.ledger.journal import segment_writer as writer_module
from bridge.ledger.journal.journal import Journal
from bridge.ledger.journal.segments import JournalFile
from bridge.ledger.verify import verify
from tests.unit.ledger.support import (
    NOW,
    FaultyDisk,
    abandon,
    all_rows,
    make_ended,
    make_intent,
    open_journal,
)


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    disk = FaultyDisk()
    yield disk
    assert disk.open_files == 0, "a file was left open"


def kinds(folder: Path) -> list[str]:
    return [row.kind for row in all_rows(folder / "w0")]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """How many bytes of each file have been synced, by the number of its inode."""
    sizes: dict[int, int] = {}
    for name in ("fsync", "fdatasync"):
        sync = getattr(os, name)

        def noted(fd: int, sync: Callable[[int], None] = sync) -> None:
            found = os.fstat(fd)
            sync(fd)
            sizes[found.st_ino] = found.st_size

        monkeypatch.setattr(os, name, noted)
    return sizes


def unsynced(folder: Path, synced: dict[int, int]) -> list[str]:
    found = ((path.name, path.stat()) for path in folder.glob("*.jsonl"))
    return [name for name, stat in found if synced.get(stat.st_ino) != stat.st_size]


@pytest.mark.parametrize("segment_bytes", [1, 3_000, 1 << 20])
def test_a_power_cut_takes_no_row_that_a_caller_was_told_of(
    tmp_path: Path, synced: dict[int, int], segment_bytes: int
) -> None:
    journal = open_journal(tmp_path, segment_bytes=segment_bytes)
    assert unsynced(journal.folder, synced) == []
    for number in range(20):
        journal.append_durable(make_intent(number))
        assert unsynced(journal.folder, synced) == []
        journal.append(make_ended(number))
        journal.flush()
        assert unsynced(journal.folder, synced) == []
    journal.close()
    assert unsynced(journal.folder, synced) == []


def test_rows_in_the_page_cache_alone_are_written_again_at_a_start(
    tmp_path: Path, synced: dict[int, int]
) -> None:
    # The sync failed: a later one of the same file need not write these rows.
    disk = FaultyDisk()
    journal = open_journal(tmp_path, open_file=disk.open)
    disk.sync_fault = OSError(5, "Input/output error")
    with pytest.raises(LedgerError, match="cannot be written"):
        journal.append_durable(make_intent())
    abandon(journal)
    path = journal.folder / "00000001.jsonl"
    before, inode = path.read_bytes(), path.stat().st_ino
    open_journal(tmp_path).close()
    assert path.read_bytes() == before
    assert path.stat().st_ino != inode
    assert unsynced(journal.folder, synced) == []
    assert verify(tmp_path).intact


def test_a_start_without_room_leaves_the_last_segment_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    abandon(journal)
    path = journal.folder / "00000001.jsonl"
    before = path.read_bytes()

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bridge.ledger.journal.segments.os.fsync", fail)
        with pytest.raises(LedgerError, match="No space left"):
            open_journal(tmp_path)
    assert path.read_bytes() == before
    assert not list(journal.folder.glob("*.new"))
    open_journal(tmp_path).close()
    assert verify(tmp_path).intact


def test_a_journal_closed_in_order_is_not_written_again(tmp_path: Path) -> None:
    open_journal(tmp_path).close()
    path = tmp_path / "w0" / "00000001.jsonl"
    inode = path.stat().st_ino
    open_journal(tmp_path).close()
    assert path.stat().st_ino == inode


def test_a_queued_row_goes_with_the_next_durable_one(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append(make_ended(1, "failed"))
    assert kinds(tmp_path) == ["opened"]
    journal.append_durable(make_intent(2))
    assert kinds(tmp_path) == ["opened", "failed", "intent"]
    journal.close()


def test_a_queued_row_does_not_wait_for_another_for_ever(tmp_path: Path) -> None:
    disk = FaultyDisk()
    journal = open_journal(tmp_path, flush_seconds=0.01, open_file=disk.open)
    disk.in_sync.clear()
    journal.append(make_ended())
    assert disk.in_sync.wait(20)
    journal.flush()
    assert kinds(tmp_path) == ["opened", "issued"]
    journal.close()


def test_files_and_folders_are_for_the_owner_alone(tmp_path: Path) -> None:
    open_journal(tmp_path / "journal").close()
    folder = tmp_path / "journal" / "w0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "00000001.jsonl").stat().st_mode) == 0o600


def test_sixteen_threads_share_syncs_and_every_row_is_there_once(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open, segment_bytes=200_000)
    threads, each = 16, 60

    def work(first: int) -> None:
        for number in range(first, first + each):
            journal.append_durable(make_intent(number))
            journal.append(make_ended(number))

    workers = [
        threading.Thread(target=work, args=(index * each,)) for index in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    journal.close()

    rows = all_rows(tmp_path / "w0")
    for kind in ("intent", "issued"):
        attempts = [row.values["attempt"] for row in rows if row.kind == kind]
        expected = [f"{number:032x}" for number in range(threads * each)]
        assert sorted(attempts) == expected
    report = verify(tmp_path)
    assert report.intact
    assert report.writers[0].segments > 1
    assert report.writers[0].open_intents == []
    assert disk.syncs < threads * each


def test_a_second_writer_is_told_who_has_the_folder(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    with pytest.raises(LedgerError, match=f"pid {os.getpid()}"):
        open_journal(tmp_path)
    journal.close()
    open_journal(tmp_path).close()


@pytest.mark.parametrize("writer", ["", ".", "..", "a/b", "-x", "x" * 64])
def test_a_writer_that_cannot_name_a_folder_is_refused(
    tmp_path: Path, writer: str
) -> None:
    with pytest.raises(LedgerError, match="cannot name a writer"):
        open_journal(tmp_path, writer)


FAULTS = [
    ("sync_fault", OSError(28, "No space left on device")),
    ("write_fault", OSError(5, "Input/output error")),
    ("sync_fault", OSError(5, "Input/output error")),
]


@pytest.mark.parametrize(("fault", "error"), FAULTS)
def test_after_a_failed_commit_the_journal_stays_shut(
    tmp_path: Path, disk: FaultyDisk, fault: str, error: OSError
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    setattr(disk, fault, error)
    with pytest.raises(LedgerError, match="cannot be written"):
        journal.append_durable(make_intent())
    setattr(disk, fault, None)
    with pytest.raises(LedgerError, match="failed earlier"):
        journal.append_durable(make_intent())
    with pytest.raises(LedgerError, match="failed earlier"):
        journal.append(make_ended())
    assert str(error.strerror) in str(journal.refusal())
    journal.close()


class Callers:
    """Callers that ask for a durable row each, all behind the sync of the first."""

    def __init__(self, journal: Journal, disk: FaultyDisk, count: int) -> None:
        self.refused: list[str] = []
        """The rule of each refusal."""
        self._disk = disk
        disk.in_sync.clear()
        disk.may_sync.clear()
        self._threads = [
            threading.Thread(target=self._ask, args=(journal, number))
            for number in range(count)
        ]
        self._threads[0].start()
        assert disk.in_sync.wait(20)
        for thread in self._threads[1:]:
            thread.start()
        while len(journal._queue._pending) < count - 1:
            pass

    def finish(self) -> None:
        """Let the sync end, and wait for all callers."""
        self._disk.may_sync.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, journal: Journal, number: int) -> None:
        try:
            journal.append_durable(make_intent(number))
        except LedgerError as error:
            self.refused.append(error.rule)


def test_callers_behind_a_slow_sync_are_written_in_one_go(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    commits: list[int] = []
    journal = open_journal(
        tmp_path,
        open_file=disk.open,
        observe_commit=lambda _seconds, rows: commits.append(rows),
    )
    Callers(journal, disk, 6).finish()
    assert commits == [1, 1, 5]
    journal.close()


def test_every_caller_in_a_failed_batch_is_refused(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    callers = Callers(journal, disk, 5)
    disk.sync_fault = OSError(5, "Input/output error")
    callers.finish()
    assert sorted(callers.refused) == ["ledger.shut"] * 4 + ["ledger.write"]
    journal.close()


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    disk.at_most = 7
    journal.append_durable(make_intent())
    journal.close()
    assert verify(tmp_path).intact
    assert kinds(tmp_path) == ["opened", "intent", "closed"]


NO_ROOM = [
    OSError(28, "No space left on device"),
    OSError(122, "Disk quota exceeded"),
    OSError(27, "File too large"),
    OSError(30, "Read-only file system"),
    OSError(24, "Too many open files"),
    OSError(23, "Too many open files in system"),
    OSError(12, "Cannot allocate memory"),
    OSError(11, "Resource temporarily unavailable"),
]


@pytest.mark.parametrize("room", [0, 1, 100, 900], ids=str)
@pytest.mark.parametrize("error", NO_ROOM, ids=lambda error: str(error.strerror))
def test_a_disk_without_room_refuses_intents_until_it_has_room(
    tmp_path: Path, disk: FaultyDisk, error: OSError, room: int
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    journal.append_durable(make_intent(1))
    journal.append(make_ended(1))
    disk.room, disk.no_room = room, error
    with pytest.raises(LedgerError, match="has no room") as caught:
        journal.append_durable(make_intent(2))
    assert caught.value.rule == "ledger.room"
    assert journal.refusal() == ("ledger.room", f"{journal.folder}: {error.strerror}")
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(3))
    # The outcome of an attempt under way; no caller waits for it.
    journal.append(make_ended(4, "failed"))
    with pytest.raises(LedgerError, match="has no room"):
        journal._queue.mend()
    disk.room = None
    journal._queue.mend()
    assert journal.refusal() is None
    journal.append_durable(make_intent(5))
    expected = ["opened", "intent", "resumed", "issued", "failed", "intent"]
    assert kinds(tmp_path) == expected
    journal.close()
    report = verify(tmp_path)
    assert report.intact
    assert report.writers[0].torn == []
    found = [row.values.get("attempt") for row in all_rows(tmp_path / "w0")]
    assert f"{2:032x}" not in found
    assert f"{3:032x}" not in found


def test_the_flusher_ends_a_stall_by_itself(tmp_path: Path, disk: FaultyDisk) -> None:
    journal = open_journal(tmp_path, open_file=disk.open, flush_seconds=0.01)
    disk.room = 50
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(1))
    disk.room = None
    while journal.refusal():
        pass
    journal.append_durable(make_intent(2))
    journal.close()
    row = all_rows(tmp_path / "w0")[1]
    assert (row.kind, row.values["since"]) == ("resumed", int(NOW.timestamp()))
    assert "No space left" in row.values["detail"]


@pytest.mark.parametrize("error", NO_ROOM[4:], ids=lambda error: str(error.strerror))
def test_a_new_segment_waits_for_a_descriptor(
    tmp_path: Path, disk: FaultyDisk, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = False

    def open_file(path: Path) -> JournalFile:
        if lacks:
            raise error
        return disk.open(path)

    journal = open_journal(tmp_path, open_file=open_file, segment_bytes=1)
    journal.append_durable(make_intent(1))
    lacks = True
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(2))
    with pytest.raises(LedgerError, match="has no room"):
        journal._queue.mend()
    assert journal.refusal() == ("ledger.room", f"{journal.folder}: {error.strerror}")
    lacks = False
    journal._queue.mend()
    journal.append_durable(make_intent(3))
    # Also where the file is to be looked at before it is mended.
    disk.room = 10
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(4))
    disk.room = None
    with monkeypatch.context() as patch:
        look = Mock(side_effect=error)
        patch.setattr("bridge.ledger.journal.segments.require_ends_in", look)
        with pytest.raises(LedgerError, match="has no room"):
            journal._queue.mend()
    journal._queue.mend()
    journal.append_durable(make_intent(5))
    journal.close()
    assert verify(tmp_path).intact
    found = [row.values.get("attempt") for row in all_rows(tmp_path / "w0")]
    assert [f"{one:032x}" in found for one in range(1, 6)] == [
        *(True, False, True, False, True)
    ]


def test_a_disk_with_hardly_any_room_is_still_full(
    tmp_path: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    disk.room = 0
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(1))
    disk.room = None
    monkeypatch.setattr(writer_module, "_ROOM_BYTES", 1 << 60)
    with pytest.raises(LedgerError, match="has no room"):
        journal._queue.mend()
    assert "No space left" in str(journal.refusal())
    monkeypatch.undo()
    journal.close()
    assert kinds(tmp_path) == ["opened", "resumed", "closed"]


def shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def beheaded(path: Path) -> None:
    whole = path.read_bytes().rpartition(b"\n")[0]
    path.write_bytes(whole.partition(b"\n")[2] + b"\n")


def altered(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"payments", b"pavments"))


@pytest.mark.parametrize("change", [shortened, emptied, beheaded, altered])
def test_a_journal_that_was_changed_while_its_disk_was_full_stays_shut(
    tmp_path: Path, disk: FaultyDisk, change: Callable[[Path], None]
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    journal.append_durable(make_intent(1))
    disk.room = 10
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(2))
    disk.room = None
    change(tmp_path / "w0" / "00000001.jsonl")
    with pytest.raises(LedgerError, match="does not end in the row"):
        journal._queue.mend()
    with pytest.raises(LedgerError, match="failed earlier"):
        journal.append_durable(make_intent(3))
    assert "was changed" in str(journal.refusal())
    journal.close()


def test_a_sync_that_fails_in_mending_shuts_the_journal(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    disk.room = 10
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(1))
    disk.room, disk.sync_fault = None, OSError(5, "Input/output error")
    with pytest.raises(LedgerError, match="cannot be written"):
        journal._queue.mend()
    disk.sync_fault = None
    assert journal.refusal() == (
        "ledger.shut",
        f"{journal.folder}: Input/output error",
    )
    journal.close()


def test_every_caller_behind_a_full_disk_is_refused_and_outcomes_are_kept(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    callers = Callers(journal, disk, 6)
    journal.append(make_ended(9))
    disk.room = 1500
    callers.finish()
    assert callers.refused == ["ledger.room"] * 5, "all but the first, already written"
    disk.room = None
    journal._queue.mend()
    journal.flush()
    assert kinds(tmp_path) == ["opened", "intent", "resumed", "issued"]
    journal.close()


def test_no_segment_can_be_made(tmp_path: Path, disk: FaultyDisk) -> None:
    disk.open_fault = OSError(30, "Read-only file system")
    with pytest.raises(LedgerError, match="has no room"):
        open_journal(tmp_path, open_file=disk.open)
    disk.open_fault = OSError(5, "Input/output error")
    with pytest.raises(LedgerError, match="cannot be written"):
        open_journal(tmp_path, open_file=disk.open)
    disk.open_fault = None
    open_journal(tmp_path, open_file=disk.open).close()


@pytest.mark.parametrize("room", [None, 0, 150])
def test_the_disk_is_full_at_a_rollover(
    tmp_path: Path, disk: FaultyDisk, room: int | None
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open, segment_bytes=1)
    fault = OSError(28, "No space left on device")
    # The next segment cannot be made; or the last row of the one before, or the first
    # of the next one, cannot be written.
    disk.room, disk.open_fault = room, None if room else fault
    for _ in range(3):
        with pytest.raises(LedgerError, match="has no room"):
            journal.append_durable(make_intent())
        with pytest.raises(LedgerError, match="has no room"):
            journal._queue.mend()
    disk.room = disk.open_fault = None
    journal._queue.mend()
    journal.append_durable(make_intent())
    journal.close()
    report = verify(tmp_path)
    assert report.intact, report
    assert "resumed" in kinds(tmp_path)
    assert all(path.stat().st_size for path in (tmp_path / "w0").glob("*.jsonl"))


@pytest.mark.parametrize("full_once", [False, True])
@pytest.mark.parametrize("room", [0, 1, 30, 100])
def test_a_start_that_had_no_room_is_followed_by_one_that_has(
    tmp_path: Path, disk: FaultyDisk, room: int, *, full_once: bool
) -> None:
    # With room again at once: a segment without a whole first row gets no last one.
    disk.room, disk.full_once = room, full_once
    with pytest.raises(LedgerError, match="has no room"):
        open_journal(tmp_path, open_file=disk.open)
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    journal.close()
    assert verify(tmp_path).intact


def test_a_full_disk_at_the_end_leaves_a_tail_that_a_start_moves_aside(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open)
    disk.room = 100
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent())
    disk.room = 0
    journal.close()
    again = open_journal(tmp_path)
    again.close()
    assert kinds(tmp_path) == ["opened", "opened", "closed"]
    assert verify(tmp_path).intact


def test_intents_before_a_stall_get_their_outcome_after_a_crash(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open, segment_bytes=1)
    journal.append_durable(make_intent(1))
    disk.open_fault = OSError(28, "No space left on device")
    with pytest.raises(LedgerError, match="has no room"):
        journal.append_durable(make_intent(2))
    disk.open_fault = None
    journal._queue.mend()
    journal.append_durable(make_intent(3))
    abandon(journal)
    open_journal(tmp_path).close()
    unknown = [
        row.values["attempt"]
        for row in all_rows(tmp_path / "w0")
        if row.kind == "unknown"
    ]
    assert unknown == [f"{1:032x}", f"{3:032x}"]


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, pending_rows=3)
    for number in range(3):
        journal.append(make_ended(number))
    with pytest.raises(LedgerError, match="queue is full"):
        journal.append(make_ended(4))
    journal.append_durable(make_intent())
    journal.append(make_ended(4))
    journal.close()


def test_a_disk_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    journal = open_journal(tmp_path, open_file=disk.open, patience_seconds=0.05)
    disk.in_sync.clear()
    disk.may_sync.clear()
    first = threading.Thread(target=journal.append_durable, args=(make_intent(1),))
    first.start()
    assert disk.in_sync.wait(20)
    with pytest.raises(LedgerError, match="does not answer"):
        journal.append_durable(make_intent(2))
    assert "does not answer" in str(journal.refusal())
    disk.may_sync.set()
    first.join()
    journal.append_durable(make_intent(3))
    assert journal.refusal() is None
    journal.close()
    assert verify(tmp_path).intact


def test_a_closed_journal_refuses_rows(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.close()
    with pytest.raises(LedgerError, match="closed"):
        journal.append_durable(make_intent())
    with pytest.raises(LedgerError, match="closed"):
        journal.append(make_ended())
    assert kinds(tmp_path) == ["opened", "closed"]


def reopened(folder: Path) -> list[str]:
    journal = open_journal(folder)
    journal.close()
    rows = all_rows(folder / "w0")
    return [row.values["attempt"] for row in rows if row.kind == "unknown"]


def crashed_with(folder: Path, journal: Journal) -> list[str]:
    abandon(journal)
    return reopened(folder)


def test_an_intent_without_outcome_gets_unknown_after_a_crash(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent(1))
    journal.append_durable(make_intent(2))
    journal.append_durable(make_ended(1))
    assert crashed_with(tmp_path, journal) == [f"{2:032x}"]
    row = next(row for row in all_rows(tmp_path / "w0") if row.kind == "unknown")
    assert row.values["rule"] == "ledger.restart"
    assert row.values["serial"] == make_intent(2).serial
    assert row.values["caller"] == make_intent(2).caller
    # Settled once: the next start adds nothing.
    assert reopened(tmp_path) == [f"{2:032x}"]
    assert verify(tmp_path).writers[0].open_intents == []


def test_an_intent_in_the_segment_before_the_last_is_settled(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, segment_bytes=1_500)
    for number in range(4):
        journal.append_durable(make_intent(number))
    journal.append_durable(make_ended(0))
    expected = [f"{number:032x}" for number in (1, 2, 3)]
    assert sorted(crashed_with(tmp_path, journal)) == expected


def test_a_crash_in_the_middle_of_a_start_settles_the_rest_later(
    tmp_path: Path,
) -> None:
    journal = open_journal(tmp_path)
    for number in range(3):
        journal.append_durable(make_intent(number))
    abandon(journal)
    abandon(open_journal(tmp_path))
    # The second start got as far as its first outcome.
    second = tmp_path / "w0" / "00000002.jsonl"
    lines = second.read_bytes().splitlines(keepends=True)
    second.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    assert sorted(reopened(tmp_path)) == [f"{number:032x}" for number in range(3)]
    assert verify(tmp_path).intact
