"""Journals that nobody would open again."""

from pathlib import Path

import pytest

from bridge.ledger.archive.archive import Archive
from bridge.ledger.orphans import OrphanWatch, settle
from bridge.ledger.verify import verify
from tests.support.harness.archive import feed
from tests.unit.ledger.support import (
    SetClock,
    abandon,
    all_rows,
    archive_url,
    make_config,
    make_ended,
    make_intent,
    open_journal,
    open_ledger,
    publish,
)


def watch_of(folder: Path, grace_seconds: float = 0.0) -> OrphanWatch:
    config = make_config(folder)
    return OrphanWatch(
        config.journal,
        lambda writer: settle(config, writer, SetClock()),
        grace_seconds,
    )


def settled(folder: Path) -> list[str]:
    return watch_of(folder).look(0.0)


def kinds(folder: Path, writer: str) -> list[str]:
    return [row.kind for row in all_rows(folder / "journal" / writer)]


def test_a_writer_that_was_killed_gets_its_outcomes_and_reaches_the_archive(
    tmp_path: Path,
) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    journal.append_durable(make_intent(1))
    abandon(journal)
    assert settled(tmp_path) == ["w3"]
    assert kinds(tmp_path, "w3")[-3:] == ["unknown", "published", "closed"]
    feed(tmp_path / "journal", archive_url(tmp_path))
    archive = Archive.open(archive_url(tmp_path), make=False)
    assert archive.position("w3").head.seq == len(kinds(tmp_path, "w3")) - 1
    archive.close()
    report = verify(tmp_path / "journal", tmp_path / "heads.jsonl")
    assert report.intact
    assert [each.open_intents for each in report.writers] == [[]]


def test_a_writer_whose_last_row_is_torn_is_settled(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    journal.append_durable(make_intent(1))
    abandon(journal)
    with (journal.folder / "00000001.jsonl").open("ab") as file:
        file.write(b'{"seq":2')
    assert settled(tmp_path) == ["w3"]
    assert kinds(tmp_path, "w3")[-3:] == ["unknown", "published", "closed"]


def test_a_writer_that_left_in_order_is_left_alone(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "w3")
    ledger.intend(make_intent(1))
    ledger.end(make_ended(1))
    ledger.close()
    before = kinds(tmp_path, "w3")
    assert settled(tmp_path) == []
    assert kinds(tmp_path, "w3") == before


def test_rows_that_were_not_published_to_the_feeder_are_brought_to_it(
    tmp_path: Path,
) -> None:
    # As after a power cut, or after an update from a version without the file.
    ledger = open_ledger(tmp_path, "w3")
    ledger.intend(make_intent(1))
    ledger.end(make_ended(1))
    ledger.close()
    (tmp_path / "journal/w3/progress").unlink()
    assert settled(tmp_path) == ["w3"]
    assert settled(tmp_path) == []
    feed(tmp_path / "journal", archive_url(tmp_path))
    archive = Archive.open(archive_url(tmp_path), make=False)
    assert archive.position("w3").head.seq == len(kinds(tmp_path, "w3")) - 1
    archive.close()


def test_a_writer_that_is_alive_or_may_start_again_is_left_alone(
    tmp_path: Path,
) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    journal.append_durable(make_intent(1))
    watch = watch_of(tmp_path, grace_seconds=40.0)
    for now in (0.0, 100.0):
        assert watch.look(now, at_once=True) == []
    abandon(journal)
    assert watch.look(200.0) == []
    assert watch.look(239.0) == []
    journal = open_journal(tmp_path / "journal", writer="w3")
    assert watch.look(241.0) == []
    abandon(journal)
    assert watch.look(250.0) == []
    assert watch.look(290.0) == ["w3"]


def test_at_the_end_no_writer_is_waited_for(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    abandon(journal)
    assert watch_of(tmp_path, grace_seconds=40.0).look(0.0, at_once=True) == ["w3"]


def test_a_folder_without_a_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "journal/backup").mkdir(parents=True)
    assert settled(tmp_path) == []
    assert list((tmp_path / "journal/backup").iterdir()) == []


def test_a_journal_that_does_not_verify_is_told_and_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for writer in ("w3", "w4"):
        journal = open_journal(tmp_path / "journal", writer=writer)
        publish(tmp_path, journal)
        journal.append_durable(make_intent(1))
        abandon(journal)
    (segment,) = (tmp_path / "journal" / "w3").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"version"', b'"Version"', 1))
    watch = watch_of(tmp_path)
    assert watch.look(0.0) == ["w4"]
    assert watch.look(1.0) == []
    assert caplog.text.count("w3 is not settled") == 1
