"""Journals that nobody would open again."""

from pathlib import Path

import pytest

from bridge.ledger.archive.archive import Archive
from bridge.ledger.ledger import Ledger
from bridge.ledger.orphans import settle
from bridge.ledger.verify import verify
from tests.unit.ledger.support import (
    SetClock,
    abandon,
    all_rows,
    archive_url,
    make_config,
    make_ended,
    make_intent,
    open_journal,
    publish,
)


def settled(folder: Path, *ours: str) -> list[str]:
    return settle(make_config(folder), ours=ours, version="1.2.3", clock=SetClock())


def opened(folder: Path, writer: str) -> Ledger:
    return Ledger.open(
        make_config(folder), writer=writer, version="1.2.3", clock=SetClock()
    )


def kinds(folder: Path, writer: str) -> list[str]:
    return [row.kind for row in all_rows(folder / "journal" / writer)]


def test_a_writer_that_was_killed_gets_its_outcomes_and_reaches_the_archive(
    tmp_path: Path,
) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    journal.append_durable(make_intent(1))
    abandon(journal)
    assert settled(tmp_path, "w0", "w1") == ["w3"]
    assert kinds(tmp_path, "w3")[-2:] == ["unknown", "closed"]
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
    assert kinds(tmp_path, "w3")[-2:] == ["unknown", "closed"]


def test_a_writer_that_left_in_order_is_left_alone(tmp_path: Path) -> None:
    ledger = opened(tmp_path, "w3")
    ledger.intend(make_intent(1))
    ledger.end(make_ended(1))
    ledger.close()
    before = kinds(tmp_path, "w3")
    assert settled(tmp_path) == []
    assert kinds(tmp_path, "w3") == before


def test_rows_that_the_archive_never_got_are_brought_to_it(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    journal.append_durable(make_intent(1))
    journal.append_durable(make_ended(1))
    journal.close()
    assert settled(tmp_path) == ["w3"]
    assert settled(tmp_path) == []


@pytest.mark.parametrize("ours", [(), ("w3",)], ids=["at work", "ours"])
def test_a_writer_that_is_at_work_or_ours_is_left_alone(
    tmp_path: Path, ours: tuple[str, ...]
) -> None:
    journal = open_journal(tmp_path / "journal", writer="w3")
    publish(tmp_path, journal)
    journal.append_durable(make_intent(1))
    if ours:
        abandon(journal)
    assert settled(tmp_path, *ours) == []
    assert kinds(tmp_path, "w3")[-1] == "intent"
    if not ours:
        journal.close()


def test_a_journal_that_does_not_verify_is_told_and_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for writer in ("w3", "w4"):
        journal = open_journal(tmp_path / "journal", writer=writer)
        publish(tmp_path, journal)
        journal.append_durable(make_intent(1))
        abandon(journal)
    (segment,) = (tmp_path / "journal" / "w3").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b"1.2.3", b"1.2.4", 1))
    assert settled(tmp_path) == ["w4"]
    assert "w3 is not settled" in caplog.text
