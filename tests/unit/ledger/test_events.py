"""Segments of format 1, which earlier versions wrote, beside those of format 2.

The fixture is what a bridge of the last version with format 1 left: its journal, its
published heads and its archive.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.queries import Query
from bridge.ledger.chain import canonical, parse
from bridge.ledger.sink import newest_head
from bridge.ledger.verify import compare, verify
from tests.support.harness.archive import feed
from tests.unit.ledger.support import (
    abandon,
    all_rows,
    archive_url,
    make_ended,
    make_intent,
    open_journal,
)

VECTOR = Path(__file__).parents[2] / "vectors/ledger_format_1"
POD = "shop/web-0"
NEW_FIELDS = {
    *("requester", "verified_by"),
    *("pod_namespace", "pod_name", "pod_uid", "node"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of journals with one segment of format 1."""
    shutil.copytree(VECTOR / "journal", tmp_path / "journal")
    with closing(sqlite3.connect(tmp_path / "archive.db")) as database:
        database.executescript((VECTOR / "archive.sql").read_text())
    return tmp_path / "journal"


def first_segment(folder: Path) -> Path:
    return folder / "w0/00000001.jsonl"


def formats(folder: Path) -> list[int]:
    rows = all_rows(folder / "w0")
    return [row.values["format"] for row in rows if row.kind == "opened"]


def test_a_journal_of_format_1_goes_on_in_format_2(folder: Path) -> None:
    sink = VECTOR / "heads.jsonl"
    published = newest_head(sink, "w0")
    assert published is not None
    journal = open_journal(folder, published=published.tip)
    journal.append_durable(make_intent(1))
    journal.append_durable(make_ended(1))
    journal.close()
    assert formats(folder) == [1, 2]
    report = verify(folder, sink)
    assert report.intact, report
    (writer,) = report.writers
    assert (writer.heads, writer.open_intents) == (2, [])
    # A version of before, to which an operator goes back for a while, writes format 1.
    segment = folder / "w0/00000002.jsonl"
    lines = [json.loads(line) for line in segment.read_bytes().splitlines()]
    assert lines[1].keys() >= NEW_FIELDS
    assert "pod" not in lines[1]


def test_formats_may_come_in_any_order(folder: Path, tmp_path: Path) -> None:
    # As after a downgrade, and an upgrade after that.
    open_journal(folder).close()
    last = all_rows(folder / "w0")[-1]
    opened = {
        **all_rows(folder / "w0")[0].values,
        "segment": 3,
        "seq": last.seq + 1,
        "prev": last.digest,
        "at": last.at + 1,
    }
    (folder / "w0/00000003.jsonl").write_bytes(canonical(opened) + b"\n")
    open_journal(folder).close()
    assert formats(folder) == [1, 2, 1, 2]
    assert verify(folder).intact
    feed(folder, archive_url(tmp_path))
    with closing(Archive.open(archive_url(tmp_path))) as archive:
        assert compare(folder, archive).agrees


def test_an_attempt_of_format_1_without_an_outcome_gets_one(folder: Path) -> None:
    segment = first_segment(folder)
    lines = segment.read_bytes().splitlines(keepends=True)
    of_callers = [n for n, line in enumerate(lines) if b"shop/web-0" in line]
    segment.write_bytes(b"".join(lines[: of_callers[0] + 1]))
    intent = parse(lines[of_callers[0]][:-1])
    open_journal(folder).close()
    (unknown,) = [row for row in all_rows(folder / "w0") if row.kind == "unknown"]
    for name in ("attempt", "request", "caller", "cluster", "serial", "issuing_ca"):
        assert unknown.values[name] == intent.values[name] != ""
    assert unknown.values["requester"] == ""
    assert verify(folder).intact


def test_an_archive_of_before_is_brought_up_to_date_and_fed(
    folder: Path, tmp_path: Path
) -> None:
    journal = open_journal(folder)
    journal.append_durable(make_intent(1, pod_namespace="shop", pod_name="web-0"))
    journal.close()
    feed(folder, archive_url(tmp_path))
    with closing(Archive.open(archive_url(tmp_path))) as archive:
        result = compare(folder, archive)
        found = [*archive.search(Query(pod=POD))]
        others = [*archive.search(Query(pod="shop/web"))]
    assert result.agrees, result
    # Of both formats: a row that is not found reads as one that is not there.
    assert {("pod" in json.loads(row["body"])) for row in found} == {True, False}
    assert others == []
    (new,) = [row for row in found if row["pod_name"]]
    assert (new["verified_by"], new["node"]) == ("token_review", "worker-1")


@pytest.mark.usefixtures("folder")
def test_a_bridge_of_before_feeds_the_archive_after_its_migration(
    tmp_path: Path,
) -> None:
    # In a rolling upgrade the first new bridge migrates the database that all share.
    Archive.open(archive_url(tmp_path)).close()
    script = (VECTOR / "archive.sql").read_text()
    table = script[script.index("CREATE TABLE entries") :].partition("PRIMARY KEY")[0]
    named = ", ".join(line.split()[0] for line in table.splitlines()[1:-1])
    rows = script.replace(
        """INSERT INTO "entries" VALUES('w0',""",
        f"""INSERT INTO "entries" ({named}) VALUES('w9',""",
    )
    with closing(sqlite3.connect(tmp_path / "archive.db")) as database:
        for line in rows.splitlines():
            if "'w9'" in line:
                database.execute(line)
        database.commit()
    with closing(Archive.open(archive_url(tmp_path))) as archive:
        found = [*archive.rows("w9")]
    assert len(found) == 15
    assert {row[name] for row in found for name in NEW_FIELDS} == {""}


@pytest.mark.parametrize("found", [3, 0, "2", None])
def test_a_format_that_is_not_known_is_refused_and_nothing_is_moved(
    folder: Path, found: object
) -> None:
    journal = open_journal(folder)
    abandon(journal)
    segment = folder / "w0/00000002.jsonl"
    (opened,) = segment.read_bytes().splitlines()
    changed = {**json.loads(opened), "format": found, "version": "7.0"}
    segment.write_bytes(canonical(changed) + b"\n")
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl*")}
    told = (
        rf"the journal of w0: segment 2 has rows of format {found}, and this version "
        r"of meshca-bridge reads the formats 1 and 2. Start version 7.0, which wrote "
        r"it, or a newer one$"
    )
    with pytest.raises(LedgerError, match=told) as refused:
        open_journal(folder)
    assert refused.value.rule == "ledger.format"
    report = verify(folder)
    assert "Start version 7.0" in report.writers[0].problems[0]
    assert {path: path.read_bytes() for path in folder.rglob("*.jsonl*")} == before
