"""What is durable before the segment is, and what a start makes of it."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import LedgerError
from bridge.ledger.chain import Row
from bridge.ledger.journal import ahead, segments
from bridge.ledger.journal.ahead import AheadFile, Record, open_file
from bridge.ledger.journal.journal import Journal
from bridge.ledger.journal.recovery import require_new
from bridge.ledger.journal.restore import absorb, missing
from bridge.ledger.journal.segments import DiskFile
from bridge.ledger.verify import read_writer, verify
from tests.unit.ledger.support import (
    FaultyDisk,
    FaultyFile,
    abandon,
    all_rows,
    make_ended,
    make_intent,
    open_journal,
    publish,
)

BLOCK = 4096


Damage = Callable[[bytes], bytes]


class Power:
    """Knows what of the segments is on disk, whatever the system's cache holds."""

    def __init__(self) -> None:
        self.synced: dict[str, int] = {}
        """Bytes, by the name of a segment."""

    def cut(self, folder: Path, damage: Damage = lambda _: b"") -> None:
        """Lose what the last segment has in the cache alone.

        Args:
            folder: The writer's.
            damage: Makes what is found later of what was not synced.
        """
        path = segments.segments(folder)[-1][1]
        data, safe = path.read_bytes(), self.synced.get(path.name, 0)
        path.write_bytes(data[:safe] + damage(data[safe:]))


@contextmanager
def watched(blocks: int = 256) -> Iterator[Power]:
    """Watch what is synced, with a file of so many blocks ahead of the segments."""
    power, sync, cut = Power(), DiskFile.sync, DiskFile.cut

    def noted(file: DiskFile) -> None:
        sync(file)
        note(file)

    def noted_cut(file: DiskFile, size: int) -> None:
        cut(file, size)
        note(file)

    def note(file: DiskFile) -> None:
        name = Path(f"/proc/self/fd/{file._fd}").readlink().name
        power.synced[name] = os.fstat(file._fd).st_size

    with (
        mock.patch.object(DiskFile, "sync", noted),
        mock.patch.object(DiskFile, "cut", noted_cut),
        mock.patch.object(ahead, "_BYTES", blocks * BLOCK),
    ):
        yield power


def crash(journal: Journal) -> Path:
    abandon(journal, keep_ahead=True)
    return journal.folder


def attempts(folder: Path, kind: str = "intent") -> list[str]:
    return [row.values["attempt"] for row in all_rows(folder) if row.kind == kind]


def restored(folder: Path) -> list[Row]:
    return [row for row in all_rows(folder) if row.kind == "restored"]


@pytest.fixture
def power() -> Iterator[Power]:
    with watched() as power:
        yield power


DAMAGES: dict[str, Damage] = {
    "nothing is left": lambda _: b"",
    "a part of the first row": lambda data: data[:20],
    "all but the last byte": lambda data: data[:-1],
    "NUL bytes": lambda data: bytes(len(data)),
    "a hole with rows behind it": lambda data: bytes(600) + data[600:],
    "a hole in the last row": lambda data: data[:-50] + bytes(50),
    "longer than it was": lambda data: bytes(len(data) + 5000),
    "another file's block": lambda data: b"%PDF-1.7\n" * (len(data) // 9),
    "one flipped bit": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "everything": lambda data: data,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_power_cut_takes_no_row_that_somebody_was_told_of(
    tmp_path: Path, power: Power, damage: Damage
) -> None:
    journal = open_journal(tmp_path)
    for number in range(5):
        journal.append_durable(make_intent(number))
    before = [row.digest for row in all_rows(journal.folder)]
    power.cut(crash(journal), damage)
    journal = open_journal(tmp_path, published=journal.head)
    assert [row.digest for row in all_rows(journal.folder)][: len(before)] == before
    journal.close()
    assert verify(tmp_path).intact


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    blocks=st.integers(1, 6),
    segment_bytes=st.sampled_from([4_000, 30_000, 1 << 20]),
    part=st.floats(0, 1),
    fill=st.sampled_from([b"", b"\0", b"\n", b"{}\n"]),
)
def test_whatever_was_synced_when(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[int],
    blocks: int,
    segment_bytes: int,
    part: float,
    fill: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    with watched(blocks) as power:
        journal = open_journal(folder, segment_bytes=segment_bytes)
        number = 0
        for rows in batches:
            for _ in range(rows):
                number += 1
                journal.append(make_ended(number))
            journal.flush()
        crash(journal)
        power.cut(journal.folder, lambda data: data[: int(part * len(data))] + fill)
        open_journal(folder).close()
    expected = [f"{each:032x}" for each in range(1, number + 1)]
    assert attempts(folder / "w0", "issued") == expected
    assert verify(folder).intact


def test_what_came_back_is_on_record(tmp_path: Path, power: Power) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent(1))
    journal.append_durable(make_intent(2))
    power.cut(crash(journal))
    open_journal(tmp_path).close()
    (row,) = restored(journal.folder)
    assert row.values["rows"] == 3, "the opening, and two intents"


def test_a_crash_of_the_process_alone_takes_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    folder = crash(journal)
    open_journal(tmp_path).close()
    assert restored(folder) == []
    assert not list(folder.glob("*.torn"))


def test_what_is_found_in_place_of_rows_is_kept(tmp_path: Path, power: Power) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    power.cut(crash(journal), lambda _: b"strange bytes")
    open_journal(tmp_path).close()
    torn = journal.folder / "00000001.jsonl.torn"
    assert torn.read_bytes() == b"strange bytes"


def test_a_start_that_ends_after_putting_back_is_repeated(
    tmp_path: Path, power: Power, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    power.cut(crash(journal), lambda data: data[:99])

    def fail(_path: Path) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("bridge.ledger.journal.restore.sync_folder", fail)
        with pytest.raises(LedgerError, match="the disk is gone"):
            open_journal(tmp_path)
    open_journal(tmp_path).close()
    assert attempts(journal.folder) == [f"{1:032x}"]


def test_rows_in_the_cache_alone_are_synced_at_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Into another file: this one may have failed to get to the disk, and say no more.
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    path = crash(journal) / "00000001.jsonl"
    before, inode = path.read_bytes(), path.stat().st_ino
    fsync, synced = os.fsync, set[int]()

    def noted(fd: int) -> None:
        fsync(fd)
        synced.add(os.fstat(fd).st_ino)

    monkeypatch.setattr("bridge.ledger.journal.restore.os.fsync", noted)
    assert absorb(path.parent) == 0
    assert path.read_bytes() == before
    assert inode != path.stat().st_ino
    assert path.stat().st_ino in synced


def test_a_journal_closed_in_order_needs_no_other_file(
    tmp_path: Path, power: Power
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    assert (journal.folder / "ahead").stat().st_size == 1 << 20
    journal.close()
    path = journal.folder / "00000001.jsonl"
    assert power.synced[path.name] == path.stat().st_size
    assert not (journal.folder / "ahead").exists()


def test_a_full_segment_is_synced_before_the_next_begins(
    tmp_path: Path, power: Power
) -> None:
    journal = open_journal(tmp_path, segment_bytes=1)
    for number in range(3):
        journal.append_durable(make_intent(number))
    *full, _ = segments.segments(journal.folder)
    assert len(full) == 3
    for _, path in full:
        assert power.synced[path.name] == path.stat().st_size
    journal.close()


def test_a_segment_that_cannot_be_synced_shuts_the_journal(tmp_path: Path) -> None:
    disk = FaultyDisk()
    journal = open_journal(tmp_path, open_file=disk.open, segment_bytes=1)
    disk.settle_fault = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(LedgerError, match="cannot be written"):
        journal.append_durable(make_intent())
    disk.settle_fault = None
    with pytest.raises(LedgerError, match="needs an operator"):
        journal.append_durable(make_intent())
    journal.close()


def test_a_segment_that_is_not_synced_at_the_end_keeps_the_file(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    journal = open_journal(tmp_path, open_file=disk.open)
    journal.append_durable(make_intent())
    disk.settle_fault = OSError(errno.EIO, os.strerror(errno.EIO))
    journal.close()
    assert (journal.folder / "ahead").exists()


def refuse(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    "pwrite",
    [
        pytest.param(lambda *_: 512, id="a part of a block"),
        pytest.param(refuse(errno.EINVAL), id="blocks of another size"),
        pytest.param(refuse(errno.ENOSPC), id="no room for a copy of the block"),
        pytest.param(refuse(errno.EIO), id="a bad block"),
    ],
)
def test_what_the_file_does_not_take_is_synced_in_the_segment(
    tmp_path: Path,
    power: Power,
    monkeypatch: pytest.MonkeyPatch,
    pwrite: Callable[..., int],
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent(1))
    with monkeypatch.context() as patch:
        patch.setattr("bridge.ledger.journal.ahead.os.pwrite", pwrite)
        journal.append_durable(make_intent(2))
    # One that failed is not tried again before the next segment.
    journal.append_durable(make_intent(3))
    path = journal.folder / "00000001.jsonl"
    assert power.synced[path.name] == path.stat().st_size
    power.cut(crash(journal))
    open_journal(tmp_path).close()
    assert len(attempts(journal.folder)) == 3


def test_a_batch_that_is_too_large_is_synced_in_its_segment(
    tmp_path: Path, power: Power
) -> None:
    journal = open_journal(tmp_path)
    for number in range(200):
        journal.append(make_intent(number))
    journal.flush()
    path = journal.folder / "00000001.jsonl"
    assert power.synced[path.name] == path.stat().st_size
    journal.append_durable(make_intent(200))
    power.cut(crash(journal))
    open_journal(tmp_path).close()
    assert len(attempts(journal.folder)) == 201


def test_what_a_full_disk_took_a_part_of_is_no_record(
    tmp_path: Path, power: Power
) -> None:
    disk = FaultyDisk()
    journal = open_journal(tmp_path, open_file=disk.open)
    journal.append_durable(make_intent(1))
    disk.room = 100
    with pytest.raises(LedgerError, match="takes no more"):
        journal.append_durable(make_intent(2))
    disk.room = None
    journal._queue.mend()
    journal.append_durable(make_intent(3))
    power.cut(crash(journal))
    open_journal(tmp_path).close()
    assert attempts(journal.folder) == [f"{1:032x}", f"{3:032x}"]


def refuse_direct(path: Path) -> None:
    del path
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def refuse_room(path: Path) -> None:
    path.touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("_DIRECT", 0, id="a system that has no such writes"),
        pytest.param("_lay_out", refuse_direct, id="a disk that takes no such writes"),
        pytest.param("_lay_out", refuse_room, id="a disk without room for it"),
    ],
)
def test_without_such_a_file_segments_are_synced(
    tmp_path: Path,
    power: Power,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
) -> None:
    monkeypatch.setattr(ahead, name, value)
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    assert not (journal.folder / "ahead").exists()
    power.cut(crash(journal))
    open_journal(tmp_path).close()
    assert attempts(journal.folder) == [f"{1:032x}"]


def test_a_segment_that_cannot_be_made_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "00000001.jsonl"
    path.touch()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of this process
    with pytest.raises(FileExistsError, match="File exists"):
        open_file(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - see above


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[: len(data) // 3], id="cut"),
        pytest.param(lambda _: b"", id="emptied"),
        pytest.param(
            lambda data: data.replace(b"payments", b"treasury"), id="other rows"
        ),
    ],
)
def test_a_segment_older_than_the_file_is_refused_until_it_is_attested(
    tmp_path: Path, change: Damage
) -> None:
    with watched(blocks=2):
        journal = open_journal(tmp_path)
        for number in range(4):
            journal.append_durable(make_intent(number))
        path = crash(journal) / "00000001.jsonl"
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(LedgerError, match="the journal went on at byte") as caught:
        open_journal(tmp_path)
    assert caught.value.rule == "ledger.cut"
    assert (journal.folder / "ahead").exists()
    (problem,) = verify(tmp_path).writers[0].problems
    assert "the journal went on at byte" in problem


@pytest.mark.parametrize("left", [0, 1])
def test_a_segment_that_is_gone_is_missed(tmp_path: Path, left: int) -> None:
    journal = open_journal(tmp_path, segment_bytes=1)
    for number in range(2):
        journal.append_durable(make_intent(number))
    folder = crash(journal)
    for _, path in segments.segments(folder)[left:]:
        path.unlink()
    with pytest.raises(LedgerError, match="the journal went on at byte 0"):
        open_journal(tmp_path)


def test_a_segment_that_was_begun_and_has_no_row_is_not_missed(
    tmp_path: Path,
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    folder = crash(journal)
    (folder / "00000002.jsonl").touch()
    open_journal(tmp_path).close()
    assert attempts(folder) == [f"{1:032x}"]
    assert [number for number, _ in segments.segments(folder)] == [1, 2, 3]


@pytest.mark.parametrize("at", [0, 8, 16, 24, 32, 64, 200])
def test_a_record_with_a_changed_byte_is_none(tmp_path: Path, at: int) -> None:
    file = open_file(tmp_path / "00000001.jsonl")
    assert isinstance(file, AheadFile)
    for data in (b"first\n" * 40, b"second\n" * 40):
        file.write(data)
        file.sync()
    file.close()
    assert list(ahead.read(tmp_path)) == [
        Record(1, 0, b"first\n" * 40),
        Record(1, 240, b"second\n" * 40),
    ]
    path = tmp_path / "ahead"
    blocks = bytearray(path.read_bytes())
    blocks[BLOCK + at] ^= 1
    path.write_bytes(blocks)
    assert list(ahead.read(tmp_path)) == [Record(1, 0, b"first\n" * 40)]


def test_after_a_cut_records_go_on_where_it_was_cut(tmp_path: Path) -> None:
    file = open_file(tmp_path / "00000001.jsonl")
    for data in (b"one\n", b"two\n"):
        file.write(data)
        file.sync()
    file.cut(4)
    file.write(b"six\n")
    file.sync()
    file.close()
    assert Record(1, 4, b"six\n") in ahead.read(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3 * BLOCK), st.integers(0, 3))
def test_any_bytes_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, magic_at: int
) -> None:
    folder = tmp_path_factory.mktemp("w0")
    blocks = bytearray(data.ljust(BLOCK * 4, b"\xff"))
    blocks[magic_at * BLOCK : magic_at * BLOCK + 8] = b"mcahead1"
    (folder / "ahead").write_bytes(blocks)
    assert list(ahead.read(folder)) == []
    assert missing(folder) is None


def test_verify_counts_what_the_next_start_puts_back(
    tmp_path: Path, power: Power
) -> None:
    journals = tmp_path / "journal"
    journals.mkdir()
    journal = open_journal(journals)
    journal.append_durable(make_intent())
    publish(tmp_path, journal)
    power.cut(crash(journal), lambda data: data[:99])
    (writer,) = verify(journals, tmp_path / "heads.jsonl").writers
    assert (writer.problems, writer.rows, writer.ahead) == ([], 2, 2)
    assert writer.head == journal.head


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(1 << 20))
    path.symlink_to(other)


STRANGE = [make_folder, make_pipe, make_link]


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: str(make.__name__))
def test_what_cannot_be_read_may_be_rows_and_is_named(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    path = crash(journal) / "ahead"
    path.unlink()
    make(path)
    with pytest.raises(LedgerError, match=f"{path}: cannot be read: .*attest") as found:
        open_journal(tmp_path)
    assert found.value.rule == "ledger.ahead"
    assert f"{path}: cannot be read" in verify(tmp_path).writers[0].problems[0]


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: str(make.__name__))
def test_nothing_else_is_written_to(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "ahead")
    before = {each: each.lstat() for each in tmp_path.iterdir()}
    file = open_file(tmp_path / "00000001.jsonl")
    file.write(b"row\n")
    file.sync()
    file.close()
    assert (tmp_path / "00000001.jsonl").read_bytes() == b"row\n"
    if make is make_link:
        other = tmp_path / "other"
        assert other.lstat() == before[other]
        assert not (tmp_path / "ahead").is_symlink()


def test_a_copy_without_its_zeros_is_laid_out_again(tmp_path: Path) -> None:
    path = tmp_path / "ahead"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    open_file(tmp_path / "00000001.jsonl").close()
    assert path.stat().st_blocks * 512 >= 1 << 20


class FailsOnce(FaultyDisk):
    """Has no room for its first write, or for a part of it."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def open(self, path: Path) -> FaultyFile:
        file = super().open(path)

        def write(data: bytes) -> int:
            try:
                return FaultyFile.write(file, data)
            except OSError:
                self.room = None
                raise

        file.write = write  # type: ignore[method-assign]
        return file


def test_an_end_on_a_disk_that_removes_nothing_is_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_folder: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    with monkeypatch.context() as patch:
        patch.setattr(ahead, "discard", fail)
        journal.close()
    open_journal(tmp_path).close()
    assert verify(tmp_path).intact


@pytest.mark.parametrize("room", [0, 30])
def test_a_start_that_failed_writes_no_last_row(tmp_path: Path, room: int) -> None:
    with pytest.raises(LedgerError, match="takes no more"):
        open_journal(tmp_path, open_file=FailsOnce(room).open)
    open_journal(tmp_path).close()
    assert verify(tmp_path).intact


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_start_that_had_no_room_is_followed_by_one_that_has(
    tmp_path: Path, room: int
) -> None:
    disk = FaultyDisk()
    disk.room = room
    with pytest.raises(LedgerError, match="takes no more"):
        open_journal(tmp_path, open_file=disk.open)
    assert disk.open_files == 0
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    journal.close()
    assert verify(tmp_path).intact


def test_readers_find_what_the_next_start_puts_back(
    tmp_path: Path, power: Power
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    power.cut(crash(journal))
    assert [row.kind for row in read_writer(journal.folder)] == ["opened", "intent"]
    with pytest.raises(LedgerError, match="the journal has entries"):
        require_new(journal.folder, tmp_path / "heads.jsonl")
