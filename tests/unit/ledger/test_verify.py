"""A changed journal: what a start and `verify` say of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.chain import canonical
from bridge.ledger.verify import read_journal, verify
from tests.unit.ledger.support import (
    abandon,
    make_ended,
    make_intent,
    open_journal,
)

Change = Callable[[list[bytes]], list[bytes]]


def edited(lines: list[bytes]) -> list[bytes]:
    row = json.loads(lines[2])
    return [*lines[:2], canonical({**row, "caller": "mallory"}), *lines[3:]]


def rechained(lines: list[bytes]) -> list[bytes]:
    # An edit that does not renumber.
    row = json.loads(lines[3])
    return [*lines[:3], canonical({**row, "seq": 9}), *lines[4:]]


CHANGES: list[tuple[str, Change, int, str]] = [
    ("edited", edited, 4, "prev is not the hash"),
    ("removed", lambda lines: [*lines[:2], *lines[3:]], 3, "expected seq 2"),
    ("swapped", lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 3, "seq"),
    ("doubled", lambda lines: [*lines[:3], *lines[2:]], 4, "expected seq 3"),
    ("not json", lambda lines: [*lines[:2], b"{", *lines[3:]], 3, "not a row"),
    ("blank", lambda lines: [*lines[:2], b"", *lines[2:]], 3, "not a row"),
    ("renumbered", rechained, 4, "expected seq 3"),
    ("beheaded", lambda lines: lines[1:], 1, "expected seq 0"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    journal = open_journal(tmp_path)
    for number in range(3):
        journal.append_durable(make_intent(number))
        journal.append_durable(make_ended(number))
    journal.close()
    return tmp_path


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [case[1:] for case in CHANGES],
    ids=[case[0] for case in CHANGES],
)
def test_a_changed_journal_is_refused_with_file_and_line(
    folder: Path, change: Change, line: int, reason: str
) -> None:
    path = folder / "w0" / "00000001.jsonl"
    lines = change(path.read_bytes().splitlines())
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    report = verify(folder)
    assert not report.intact
    assert f"{path}:{line}: " in report.writers[0].problems[0]
    assert reason in report.writers[0].problems[0]
    with pytest.raises(LedgerError, match=f"{path}:"):
        open_journal(folder)


def test_what_a_host_keeps_beside_the_journals_is_no_journal(folder: Path) -> None:
    (folder / "state").mkdir()
    report = verify(folder)
    assert report.intact
    assert [writer.writer for writer in report.writers] == ["w0"]
    with pytest.raises(LedgerError, match="'state' cannot name a writer"):
        open_journal(folder, writer="state")


# A start reads the last segment whole, and first and last row of the others.
@pytest.mark.parametrize("later", [1, 3])
def test_a_start_verifies_the_links_between_segments(folder: Path, later: int) -> None:
    for _ in range(later + 1):
        open_journal(folder).close()
    (folder / "w0" / "00000002.jsonl").unlink()
    with pytest.raises(LedgerError, match=r"00000003.jsonl:1: expected seq"):
        open_journal(folder)
    assert "00000003.jsonl:1" in verify(folder).writers[0].problems[0]


def test_a_journal_of_another_writer_is_refused(folder: Path) -> None:
    (folder / "w0").rename(folder / "w1")
    with pytest.raises(LedgerError, match="expected the opening of segment 1"):
        open_journal(folder, "w1")
    assert not verify(folder).intact


def test_a_segment_that_a_crash_left_empty_is_no_break(folder: Path) -> None:
    (folder / "w0" / "00000002.jsonl").touch()
    assert verify(folder).intact
    open_journal(folder).close()
    assert (folder / "w0" / "00000003.jsonl").exists()
    assert verify(folder).intact


def test_the_segment_before_an_empty_one_is_read_whole(folder: Path) -> None:
    (folder / "w0" / "00000002.jsonl").touch()
    path = folder / "w0" / "00000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"payments", b"pavments", 1))
    with pytest.raises(LedgerError, match=r"00000001.jsonl:3: the chain breaks"):
        open_journal(folder)


def test_a_journal_that_is_being_written_verifies(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent())
    path = tmp_path / "w0" / "00000001.jsonl"
    with path.open("ab") as file:
        file.write(b'{"at":')
    report = verify(tmp_path)
    assert report.intact
    assert report.writers[0].live
    assert report.writers[0].open_intents == [make_intent().attempt]
    assert len(list(read_journal(tmp_path))) == 2
    abandon(journal)


def test_nothing_to_verify_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no journal"):
        verify(tmp_path)
    (tmp_path / "w0").mkdir()
    assert "no segment" in verify(tmp_path).writers[0].problems[0]
