"""The archive feeder: every row once and in order, whatever happens in between."""

import errno
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.archive.archive import START, Archive, Position
from bridge.ledger.archive.feeder import ArchiveFeeder, BatchSize
from bridge.ledger.chain import Head
from bridge.ledger.journal.journal import Journal
from bridge.ledger.ledger import Ledger
from bridge.ledger.verify import Comparison
from tests.support.harness.archive import FeederThread, compared, feed, make_feeder
from tests.support.harness.workers import await_true
from tests.unit.ledger.support import (
    abandon,
    all_rows,
    archive_url,
    fed,
    make_config,
    make_ended,
    make_intent,
    open_journal,
    open_ledger,
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = open_journal(tmp_path / "journal", segment_bytes=4_000)
    for number in range(10):
        journal.append_durable(make_intent(number))
        journal.append_durable(make_ended(number))
    yield journal
    journal.close()


@pytest.fixture
def feeder(tmp_path: Path) -> Iterator[ArchiveFeeder]:
    feeder = make_feeder(tmp_path / "journal", archive_url(tmp_path), batch_rows=3)
    yield feeder
    feeder.close()


def run(feeder: ArchiveFeeder) -> None:
    while feeder.run_pass(at_once=True):
        pass


def bodies(folder: Path, writer: str = "w0") -> list[bytes]:
    archive = Archive.open(archive_url(folder), make=False)
    found = [row["body"].encode() for row in archive.rows(writer)]
    archive.close()
    return found


def test_every_row_arrives_once_and_unchanged(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    run(feeder)
    assert bodies(tmp_path) == [row.line for row in all_rows(journal.folder)]
    assert journal.progress.fed == journal.head.seq
    run(feeder)
    journal.append_durable(make_intent(11))
    run(feeder)
    assert bodies(tmp_path) == [row.line for row in all_rows(journal.folder)]


def test_a_feeder_that_dies_anywhere_repeats_and_loses_nothing(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = 0
    add = Archive.add

    class DiedError(RuntimeError):
        pass

    def dying(*args: object) -> None:
        # Before every other commit, and after the others.
        nonlocal died
        died += 1
        if died % 2:
            add(*args)  # type: ignore[arg-type]
        raise DiedError

    monkeypatch.setattr(Archive, "add", dying)
    for _ in range(40):
        feeder = make_feeder(tmp_path / "journal", archive_url(tmp_path), 3)
        try:
            run(feeder)
        except DiedError:
            continue
        finally:
            feeder.close()
        break
    assert died > 10
    assert bodies(tmp_path) == [row.line for row in all_rows(journal.folder)]


def remove_archive(folder: Path) -> None:
    for path in folder.glob("archive.db*"):
        path.unlink()


def restore(folder: Path) -> None:
    remove_archive(folder)
    (folder / "copy").rename(folder / "archive.db")


def test_the_first_archive_of_a_journal_is_a_rebuild(
    journal: Journal, feeder: ArchiveFeeder
) -> None:
    assert journal.progress.rebuild_until == -1
    began = journal.head.seq
    feeder.run_pass(at_once=True)
    journal.append_durable(make_intent(11))
    run(feeder)
    assert journal.progress.rebuild_until == began


def test_an_archive_that_is_removed_in_use_is_rebuilt_from_that_moment(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    run(feeder)
    journal.append_durable(make_intent(11))
    remove_archive(tmp_path)
    feeder.run_pass(at_once=True)
    assert journal.progress.rebuild_until == journal.head.seq
    assert journal.progress.fed == 2
    run(feeder)
    assert bodies(tmp_path) == [row.line for row in all_rows(journal.folder)]


@pytest.mark.parametrize(
    ("change", "is_rebuilt"),
    [
        pytest.param(remove_archive, True, id="removed"),
        pytest.param(restore, True, id="older copy"),
        pytest.param(lambda _: None, False, id="as it was"),
    ],
)
def test_a_feeder_that_starts_knows_an_archive_that_lost_rows(
    tmp_path: Path,
    journal: Journal,
    change: Callable[[Path], None],
    *,
    is_rebuilt: bool,
) -> None:
    first = make_feeder(tmp_path / "journal", archive_url(tmp_path), batch_rows=3)
    first.run_pass(at_once=True)
    first.close()
    (tmp_path / "copy").write_bytes((tmp_path / "archive.db").read_bytes())
    feed(tmp_path / "journal", archive_url(tmp_path))
    before = journal.progress.rebuild_until
    journal.append_durable(make_intent(11))
    change(tmp_path)
    feed(tmp_path / "journal", archive_url(tmp_path))
    after = journal.head.seq if is_rebuilt else before
    assert journal.progress.rebuild_until == after
    assert journal.progress.fed == journal.head.seq


def test_a_feeder_that_starts_in_a_rebuild_goes_on_with_it(
    tmp_path: Path, journal: Journal
) -> None:
    feed(tmp_path / "journal", archive_url(tmp_path))
    remove_archive(tmp_path)
    began = journal.head.seq
    for number in range(3):
        feeder = make_feeder(tmp_path / "journal", archive_url(tmp_path), batch_rows=3)
        feeder.run_pass(at_once=True)
        feeder.close()
        journal.append_durable(make_intent(20 + number))
        assert journal.progress.rebuild_until == began


def test_a_rebuild_outlives_the_file_that_names_it(
    journal: Journal, feeder: ArchiveFeeder
) -> None:
    feeder.run_pass(at_once=True)
    until = journal.progress.rebuild_until
    (journal.folder / "progress").unlink()
    journal.progress.keep(journal.folder)
    assert journal.progress.rebuild_until == until > 0


def test_a_row_that_is_not_durable_is_not_fed(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    journal.progress.publish(journal.head._replace(seq=5))
    run(feeder)
    assert len(bodies(tmp_path)) == 6


def test_a_writer_that_has_not_finished_its_start_is_not_fed(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    # What a start finds at the end of a journal may not be on disk.
    journal.progress._begin(None)
    run(feeder)
    assert bodies(tmp_path) == []
    assert journal.progress.fed is None
    journal.progress.publish(journal.head)
    run(feeder)
    assert len(bodies(tmp_path)) == len(all_rows(journal.folder))


def test_a_break_stops_one_writer_until_it_starts_again(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    other = open_journal(tmp_path / "journal", "w1")
    path = journal.folder / "00000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"payments", b"pavments", 1))
    for _ in range(2):
        run(feeder)
        assert journal.progress.is_broken
        assert "00000001.jsonl: at byte" in journal.progress.reason()
        assert "prev is not the hash" in journal.progress.reason()
        path.write_bytes(whole)
    assert journal.progress.fed is not None
    assert journal.progress.fed < journal.head.seq
    assert other.progress.fed == other.head.seq
    assert not other.progress.is_broken
    other.close()
    abandon(journal)
    again = open_journal(tmp_path / "journal")
    run(feeder)
    assert not again.progress.is_broken
    assert bodies(tmp_path) == [row.line for row in all_rows(journal.folder)]
    again.close()


def test_an_archive_that_is_ahead_of_the_journal_is_refused(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    run(feeder)
    journal.close()
    for path in journal.folder.glob("*.jsonl"):
        path.unlink()
    other = open_journal(tmp_path / "journal")
    run(feeder)
    assert "restored from an older copy. Put the newer one" in other.progress.reason()
    assert other.progress.is_broken
    abandon(other)


def test_a_journal_that_lost_what_it_published_is_refused(
    journal: Journal, feeder: ArchiveFeeder
) -> None:
    (journal.folder / "00000003.jsonl").unlink()
    for path in sorted(journal.folder.glob("*.jsonl"))[2:]:
        path.unlink()
    run(feeder)
    assert "before what was written" in journal.progress.reason()
    assert journal.progress.is_broken


def test_two_feeders_of_one_archive_are_found_out(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    # On two machines, which have no lock in common.
    feeder.run_pass(at_once=True)
    archive = Archive.open(archive_url(tmp_path))
    before = archive.position("w0")
    archive.add("w0", before, before._replace(byte_offset=before.byte_offset + 1), [])
    archive.close()
    run(feeder)
    assert "two servers feed one writer" in journal.progress.reason()
    assert journal.progress.is_broken


@pytest.mark.parametrize("batch", [1, 2])
def test_a_commit_of_which_the_answer_is_lost_is_no_second_feeder(
    tmp_path: Path,
    journal: Journal,
    feeder: ArchiveFeeder,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    # The database has the rows, and the connection breaks before it says so.
    add, commits = Archive.add, 0

    def breaking(*args: object) -> None:
        nonlocal commits
        commits += 1
        add(*args)  # type: ignore[arg-type]
        if commits == batch:
            raise LedgerError("the archive does not answer", rule="ledger.archive")

    monkeypatch.setattr(Archive, "add", breaking)
    run(feeder)
    assert feeder.trouble
    run(feeder)
    run(feeder)
    assert not journal.progress.reason()
    assert not journal.progress.is_broken
    assert bodies(tmp_path) == [row.line for row in all_rows(journal.folder)]


def test_a_journal_that_cannot_be_read_for_a_moment_is_tried_again(
    tmp_path: Path,
    journal: Journal,
    feeder: ArchiveFeeder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: object, **_keywords: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        run(feeder)
    assert "Too many open files" in journal.progress.reason()
    assert not journal.progress.is_broken
    run(feeder)
    assert not journal.progress.reason()
    assert bodies(tmp_path) == [row.line for row in all_rows(journal.folder)]


def test_of_one_folder_one_feeder_feeds_at_a_time(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    feeder.run_pass(at_once=True)
    other = make_feeder(tmp_path / "journal", archive_url(tmp_path))
    fed_before = journal.progress.fed
    assert not other.run_pass(at_once=True)
    assert journal.progress.fed == fed_before
    feeder.close()
    run(other)
    assert journal.progress.fed == journal.head.seq
    other.close()


def test_a_feeder_that_has_not_looked_yet_leaves_what_was_known(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    run(feeder)
    feeder.close()
    (tmp_path / "elsewhere").mkdir()
    next_one = make_feeder(tmp_path / "journal", f"sqlite:///{tmp_path}/elsewhere")
    run(next_one)
    assert journal.progress.fed == journal.head.seq
    assert "cannot be opened" in journal.progress.reason()
    next_one.close()


@pytest.mark.parametrize(
    ("url", "is_broken", "reason"),
    [
        ("nosuchdb://x", True, "expected a SQLAlchemy URL"),
        ("sqlite:///absent/archive.db", False, "cannot be opened"),
    ],
)
def test_an_archive_that_cannot_be_opened_is_reported_to_every_writer(
    tmp_path: Path, journal: Journal, url: str, *, is_broken: bool, reason: str
) -> None:
    other = open_journal(tmp_path / "journal", "w1")
    feeder = make_feeder(tmp_path / "journal", url)
    assert not feeder.run_pass()
    for one in (journal, other):
        assert one.progress.is_broken is is_broken
        assert reason in one.progress.reason()
        assert one.progress.fed is None
    feeder.close()
    other.close()


@pytest.mark.parametrize(
    ("batch", "grows", "feeds"),
    [
        (BatchSize(rows=1000, seconds=600), False, True),  # nobody writes
        (BatchSize(rows=1000, seconds=600), True, False),  # under load, others follow
        (BatchSize(rows=5, seconds=600), True, True),  # enough rows
        (BatchSize(rows=1000, seconds=0), True, True),  # they waited long enough
    ],
)
def test_under_load_rows_wait_for_others(
    tmp_path: Path, journal: Journal, batch: BatchSize, *, grows: bool, feeds: bool
) -> None:
    feeder = ArchiveFeeder(
        tmp_path / "journal", lambda: Archive.open(archive_url(tmp_path)), batch
    )
    feeder.run_pass()
    if grows:
        journal.append_durable(make_intent(20))
    before = journal.progress.fed
    feeder.run_pass()
    assert (journal.progress.fed != before) is feeds or batch.seconds == 0
    feeder.close()


def test_a_batch_is_well_below_the_bound_of_the_lag() -> None:
    assert BatchSize.below(100, 1.0) == BatchSize(rows=25, seconds=0.25)
    assert BatchSize.below(100_000, 60.0) == BatchSize()


def test_a_writer_whose_folder_goes_away_is_let_go(
    tmp_path: Path, journal: Journal, feeder: ArchiveFeeder
) -> None:
    run(feeder)
    before = len(list(Path("/proc/self/fd").iterdir()))
    journal.folder.rename(tmp_path / "moved")
    run(feeder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1
    assert feeder.trouble == ""


# The archive goes away, is locked or is damaged while a ledger writes.


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with FeederThread(make_config(tmp_path)):
        ledger = open_ledger(tmp_path, max_lag={"entries": 10})
        for number in range(4):
            ledger.intend(make_intent(number))
            ledger.end(make_ended(number))
        ledger._journal.flush()
        await_true(lambda: fed(ledger))
        yield ledger
        ledger.close()


def end(folder: Path, ledger: Ledger) -> Comparison:
    """Close the ledger, and return what the archive has when all is fed."""
    ledger.close()

    def agrees() -> bool:
        try:
            return compared(folder).agrees
        except LedgerError:
            return False

    await_true(agrees)
    return compared(folder)


def replace_by_empty(folder: Path) -> None:
    fresh = folder / "fresh"
    fresh.touch()
    fresh.replace(folder / "archive.db")


@pytest.mark.parametrize("change", [remove_archive, replace_by_empty])
def test_an_archive_that_goes_away_in_use_is_made_again_from_the_journals(
    tmp_path: Path, ledger: Ledger, change: Callable[[Path], None]
) -> None:
    other = open_ledger(tmp_path, "w1")
    path = tmp_path / "archive.db"
    change(tmp_path)
    await_true(lambda: path.exists() and path.stat().st_size)
    await_true(lambda: fed(ledger) and fed(other))
    ledger.intend(make_intent(8))
    ledger.end(make_ended(8))
    other.close()
    assert end(tmp_path, ledger).agrees


def test_rows_that_are_not_fed_yet_are_behind_and_no_difference(
    tmp_path: Path,
) -> None:
    ledger = open_ledger(tmp_path)
    feed(tmp_path / "journal", archive_url(tmp_path))
    ledger.intend(make_intent(8))
    ledger.intend(make_intent(9))
    result = compared(tmp_path)
    assert (result.behind, result.problems) == ({"w0": 2}, [])
    assert not result.agrees
    ledger.close()


_COLUMNS = """at, kind, attempt, request, purpose, front, cluster, caller, requester,
verified_by, pod_namespace, pod_name, pod_uid, node, issuing_ca, serial, key_sha256,
names, not_before, not_after, tbs_sha256, certificate_sha256, status, rule, detail,
body, hash"""
_ONE_MORE = f"""
INSERT INTO entries (writer, seq, {_COLUMNS})
SELECT writer, 12, {_COLUMNS} FROM entries WHERE seq = 11
"""  # noqa: S608 - constants


def change_rows(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "archive.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DELETE FROM entries WHERE seq = 3", "row 3 of the journal is not in the"),
        ("DELETE FROM entries WHERE seq = 0", "row 0 of the journal is not in the"),
        ("UPDATE entries SET caller = 'x' WHERE seq = 3", "row 3 differs in caller"),
        ("UPDATE entries SET body = '' WHERE seq = 9", "row 9 differs in body"),
        (
            _ONE_MORE,
            "the archive has row 12, and the journal ends at row 11",
        ),
        (
            "INSERT INTO positions VALUES ('w7', 1, 1, 1, '')",
            "w7: the archive has rows, and there is no such journal",
        ),
    ],
)
def test_a_difference_is_found(
    tmp_path: Path, ledger: Ledger, statement: str, reason: str
) -> None:
    assert end(tmp_path, ledger).agrees
    change_rows(tmp_path, statement)
    result = compared(tmp_path)
    assert not result.agrees
    assert reason in result.problems[0]


def test_what_a_deleted_archive_left_beside_it_does_not_spoil_the_next_one(
    tmp_path: Path,
) -> None:
    end_ = Position(1, Head(1, 1, "a" * 64))
    later = Position(2, Head(1, 2, "b" * 64))
    old = Archive.open(archive_url(tmp_path))
    old.add("w0", START, end_, [])
    (tmp_path / "archive.db").unlink()
    new = Archive.open(archive_url(tmp_path))
    assert old.moved()
    assert not new.moved()
    new.add("w1", START, end_, [])
    # A feeder that does not know yet writes to the file that has no name.
    old.add("w0", end_, later, [])
    old.close()
    new.add("w2", START, end_, [])
    assert new.writers() == ["w1", "w2"]
    new.close()
    connection = sqlite3.connect(tmp_path / "archive.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
