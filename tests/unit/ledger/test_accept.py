"""A journal that a start refuses: the message, the acceptance, and the next start."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bridge.cli.ledger import app
from bridge.errors import BridgeError, LedgerError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.queries import Query
from bridge.ledger.chain import Head, canonical
from bridge.ledger.heads import HeadKey, parse_head
from bridge.ledger.journal.progress import Progress
from bridge.ledger.ledger import Ledger
from bridge.ledger.verify import compare, verify
from tests.support.harness.archive import feed
from tests.support.harness.configuration import text
from tests.unit.ledger.support import (
    SetClock,
    all_rows,
    archive_url,
    make_config,
    make_ended,
    make_intent,
    open_ledger,
)

COMMAND = re.escape("`meshca ledger accept -c FILE --writer w0 --reason TEXT`")


def close(folder: Path, ledger: Ledger) -> None:
    """End a server in order: the archive gets its last rows."""
    ledger.close()
    feed(folder / "journal", archive_url(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The ledger of a stopped server: rows 0 to 9 archived, heads 0 and 7 published."""
    (tmp_path / "bridge.yaml").write_text(text())
    ledger = open_ledger(tmp_path)
    for number in range(3):
        ledger.intend(make_intent(number))
        ledger.end(make_ended(number))
    close(tmp_path, ledger)
    return tmp_path


def segment(folder: Path, number: int = 1) -> Path:
    return folder / f"journal/w0/{number:08d}.jsonl"


def keep_lines(path: Path, count: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:count]))


def cut(folder: Path) -> None:
    keep_lines(segment(folder), 4)


def kill_an_earlier_version(folder: Path) -> None:
    (segment(folder).parent / "ahead").write_bytes(bytes(1 << 20))


def cut_in_a_row(folder: Path) -> None:
    keep_lines(segment(folder), 5)
    data = segment(folder).read_bytes()
    segment(folder).write_bytes(data[:-9])


def edit(folder: Path) -> None:
    path = segment(folder)
    path.write_bytes(path.read_bytes().replace(f"{1:032x}".encode(), b"f" * 32, 1))


def lose_journal(folder: Path) -> None:
    segment(folder).unlink()


def lose_heads(folder: Path) -> None:
    (folder / "heads.jsonl").unlink()


def lose_key(folder: Path) -> None:
    for name in ("heads.key", "heads.pub"):
        (folder / "journal" / name).unlink()


def lose_volume(folder: Path) -> None:
    lose_journal(folder)
    lose_key(folder)


FAULTS: list[tuple[Callable[[Path], None], str, int]] = [
    (cut, "ends at row 3 and its published head is row 7", 3),
    (kill_an_earlier_version, "ahead: an earlier version .* wrote this file", 9),
    (cut_in_a_row, "ends at row 3 and its published head is row 7", 3),
    (edit, r"00000001.jsonl:6: the chain breaks here", 3),
    (lose_journal, "ends at row -1 and its published head is row 7", -1),
    (lose_heads, "the journal has entries, and .* has no head of it", 9),
    (lose_key, "signed by a key that is not this journal's", 9),
    (lose_volume, "signed by a key that is not this journal's", -1),
]


def accept(
    folder: Path,
    reason: str = "the node's disk died",
    writer: str = "w0",
    **env: str,
) -> Result:
    return CliRunner(env=env).invoke(
        app,
        [
            "accept",
            *("-c", str(folder / "bridge.yaml")),
            *("--writer", writer, "--reason", reason),
        ],
    )


def test_the_file_of_an_earlier_version_is_kept_and_shows_in_verify(
    folder: Path,
) -> None:
    kill_an_earlier_version(folder)
    report = verify(folder / "journal", folder / "heads.jsonl")
    assert "ahead: an earlier version" in report.writers[0].problems[0]
    assert accept(folder).exit_code == 0
    (kept,) = segment(folder).parent.glob("ahead.*.torn")
    assert kept.stat().st_size == 1 << 20


@pytest.mark.parametrize(
    ("fault", "reason", "last"), FAULTS, ids=lambda value: getattr(value, "__name__", 0)
)
def test_a_journal_with_a_loss_is_refused_until_an_operator_accepts_it(
    folder: Path, fault: Callable[[Path], None], reason: str, last: int
) -> None:
    whole = [row.digest for row in all_rows(folder / "journal/w0")]
    fault(folder)
    with pytest.raises(LedgerError, match=rf"{reason}.*{COMMAND}"):
        open_ledger(folder)

    result = accept(folder, SUDO_USER="kim")
    assert result.exit_code == 0, result.output
    assert f"accepted up to row {last}; " in result.stdout

    ledger = open_ledger(folder)
    ledger.intend(make_intent(20))
    ledger.end(make_ended(20))
    close(folder, ledger)
    rows = all_rows(folder / "journal/w0")
    (row,) = (row for row in rows if row.kind == "accepted")
    assert (row.values["by"], row.values["detail"]) == ("kim", "the node's disk died")
    report = verify(folder / "journal", folder / "heads.jsonl")
    assert report.intact, report
    (told,) = report.writers[0].accepted
    assert told.startswith(f"kim accepted that it ends at row {last} on")

    # The archive keeps every row.
    archive = Archive.open(archive_url(folder), make=False)
    compared = compare(folder / "journal", archive)
    archived = {found["hash"] for found in archive.search(Query())}
    archive.close()
    assert compared.agrees, compared
    assert archived >= set(whole)
    assert bool(compared.aside) is (last < 9)
    # The next start needs no operator.
    close(folder, open_ledger(folder))


def test_an_edit_is_kept_beside_the_journal(folder: Path) -> None:
    edit(folder)
    spoiled = segment(folder).read_bytes().splitlines(keepends=True)
    result = accept(folder)
    torn = segment(folder).with_name("00000001.jsonl.torn")
    assert f"the rows that do not chain are in {torn}" in result.stdout
    assert torn.read_bytes() == b"".join(spoiled[4:])


def test_a_journal_that_is_in_order_needs_no_operator(folder: Path) -> None:
    before = (folder / "heads.jsonl").read_bytes()
    result = accept(folder)
    assert "there is nothing to accept" in str(result.exception)
    assert (folder / "heads.jsonl").read_bytes() == before


def test_an_unknown_name_does_not_become_a_journal(folder: Path) -> None:
    result = accept(folder, writer="w00")
    assert "there is no journal 'w00'; the journals are: w0" in str(result.exception)
    assert [path.name for path in (folder / "journal").glob("*/")] == ["w0"]


def test_a_journal_that_only_the_archive_has_is_accepted(folder: Path) -> None:
    shutil.rmtree(folder / "journal/w0")
    (folder / "heads.jsonl").unlink()
    result = accept(folder)
    assert "the archive keeps 10 rows that the journal lost" in result.stdout


def test_a_journal_that_is_being_written_is_left_alone(folder: Path) -> None:
    ledger = open_ledger(folder)
    result = accept(folder)
    told = str(result.exception)
    assert (
        f"another process writes this journal: pid {os.getpid()}; stop it, or" in told
    )
    close(folder, ledger)


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_reason_is_required(folder: Path, reason: str) -> None:
    cut(folder)
    result = accept(folder, reason)
    assert isinstance(result.exception, BridgeError)
    assert "expected a reason" in str(result.exception)


def test_another_journal_is_not_accepted(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    clock = SetClock()
    clock.forward(1)
    Ledger.open(make_config(other), writer="w0", clock=clock).close()
    segment(folder).write_bytes(segment(other).read_bytes())
    result = accept(folder)
    assert "this is another journal" in str(result.exception)
    segment(folder).unlink()
    assert accept(folder).exit_code == 0


def test_a_break_before_the_last_segment_is_not_accepted(folder: Path) -> None:
    close(folder, open_ledger(folder))
    edit(folder)
    result = accept(folder)
    assert "not only the end of the last segment" in str(result.exception)
    assert segment(folder, 2).exists()


def test_an_acceptance_is_signed(folder: Path) -> None:
    cut(folder)
    accept(folder)
    sink = folder / "heads.jsonl"
    sink.write_bytes(sink.read_bytes().replace(b"disk died", b"disk lied"))
    with pytest.raises(LedgerError, match="the signature of the head is wrong"):
        open_ledger(folder)
    report = verify(folder / "journal", sink)
    assert "the signature of the head is wrong" in report.problems[0]


def test_the_former_name_of_the_command_names_the_new_one(folder: Path) -> None:
    options = ["-c", str(folder / "bridge.yaml"), "--writer", "w0", "--reason", "x"]
    result = CliRunner().invoke(app, ["attest", *options])
    assert result.exit_code == 2
    assert "meshca ledger accept" in result.stderr
    assert "attest " not in CliRunner().invoke(app, ["--help"]).stdout


def test_a_ledger_that_an_earlier_version_accepted_is_read(folder: Path) -> None:
    cut(folder)
    # Only the first row stays, and its head, as an earlier version has them.
    keep_lines(segment(folder), 1)
    (folder / "heads.jsonl").unlink()
    key = HeadKey.load(folder / "journal/heads.key")
    last = all_rows(folder / "journal/w0")[-1]
    head = key.sign(
        "w0", Head(1, last.seq, last.digest), 1, attested_by="kim", reason="lost"
    )
    with (folder / "heads.jsonl").open("ab") as file:
        file.write(canonical(head.values()) + b"\n")
    close(folder, open_ledger(folder))
    report = verify(folder / "journal", folder / "heads.jsonl")
    assert report.intact
    assert report.writers[0].accepted[0].startswith("kim accepted that it ends")


def test_a_second_acceptance_may_follow_the_first(folder: Path) -> None:
    cut(folder)
    accept(folder)
    keep_lines(segment(folder), 2)
    with pytest.raises(LedgerError, match="ends at row 1"):
        open_ledger(folder)
    result = accept(folder)
    assert result.exit_code == 0, result.exception
    close(folder, open_ledger(folder))
    assert verify(folder / "journal", folder / "heads.jsonl").intact


def test_the_other_writers_are_not_touched(folder: Path) -> None:
    ledger = open_ledger(folder, "w1")
    ledger.intend(make_intent(30))
    close(folder, ledger)
    cut(folder)
    accept(folder)
    close(folder, open_ledger(folder, "w1"))
    archive = Archive.open(archive_url(folder), make=False)
    assert "w1" in archive.writers()
    archive.close()
    lines = (folder / "heads.jsonl").read_bytes().splitlines()
    writers = [head.writer for head in map(parse_head, lines) if head]
    assert writers.count("w1") == 3


def test_a_start_that_published_no_head_needs_no_operator(
    tmp_path: Path,
) -> None:
    sink = tmp_path / "heads.jsonl"
    sink.mkdir()
    for _ in range(3):
        with pytest.raises(LedgerError, match=r"cannot be (published|read)"):
            open_ledger(tmp_path)
    sink.rmdir()
    close(tmp_path, open_ledger(tmp_path))
    assert verify(tmp_path / "journal", sink).intact


@pytest.mark.usefixtures("folder")
def test_verify_compares_with_the_archive_on_request(folder: Path) -> None:
    command = ["verify", "-c", str(folder / "bridge.yaml"), "--archive"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "archive: 10 rows agree" in result.stdout
    (folder / "archive.db").unlink()
    Archive.open(archive_url(folder)).close()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "10 of w0 to come" in result.stdout
    close(folder, open_ledger(folder))
    cut(folder)
    keep_lines(segment(folder), 1)
    keep_lines(folder / "heads.jsonl", 1)
    segment(folder, 2).unlink()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "the archive has row 1, and the journal ends at row 0" in result.stderr
    command[1:3] = ["--journal", str(folder / "journal")]
    assert CliRunner().invoke(app, [*command[:3], "--archive"]).exit_code == 2


def test_a_feeder_takes_no_rows_of_a_journal_that_is_being_accepted(
    folder: Path,
) -> None:
    progress = Progress.find(folder / "journal/w0")
    assert progress is not None
    before = progress.durable()
    assert before is not None
    assert before.head.seq == 9
    keep_lines(segment(folder), 4)
    assert accept(folder).exit_code == 0
    after = progress.durable()
    assert after is not None
    assert after.head.seq == -1
    progress.close()
