"""The archive and its feeder: every row once, whatever dies in between."""

import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from bridge.config import LagConfig
from bridge.errors import BridgeError, ConfigError, LedgerError
from bridge.ledger.archive import feeding as feeding_module
from bridge.ledger.archive.archive import START, Archive, Position
from bridge.ledger.archive.feeder import Feeder
from bridge.ledger.archive.feedlock import RETRY_RULE
from bridge.ledger.archive.queries import Query, select
from bridge.ledger.archive.schema import INDEXED, metadata
from bridge.ledger.chain import Head
from bridge.ledger.journal.journal import Journal
from tests.unit.ledger.support import (
    CALLER,
    SetClock,
    abandon,
    all_rows,
    archive_url,
    make_ended,
    make_intent,
    make_task,
    open_journal,
)

URL = "sqlite:///archive.db"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    archive = Archive.open(archive_url(tmp_path))
    yield archive
    archive.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = open_journal(tmp_path, segment_bytes=4_000)
    for number in range(10):
        journal.append_durable(make_intent(number))
        journal.append_durable(make_ended(number))
    yield journal
    journal.close()


def feed(journal: Journal, archive: Archive) -> Feeder:
    """Feed to the end, on this thread."""
    return feed_by(journal, archive)


def feed_by(journal: Journal, archive: Archive, **changed: Any) -> Feeder:
    task = make_task(journal, journal.folder.parent, **changed)
    feeder = Feeder(task, lambda: archive)
    feeder._feeding._position = archive.position("w0")
    feeder._feeding._feed(archive)
    feeder._desk.take(feeder._feeding.report())
    return feeder


def bodies(archive: Archive) -> list[bytes]:
    return [row["body"].encode() for row in archive.search(Query())]


def test_every_row_arrives_once_and_unchanged(
    journal: Journal, archive: Archive
) -> None:
    feeder = feed(journal, archive)
    assert bodies(archive) == [row.line for row in all_rows(journal.folder)]
    assert feeder.lag() == (0, 0.0)
    feed(journal, archive)
    journal.append_durable(make_intent(11))
    feed(journal, archive)
    assert bodies(archive) == [row.line for row in all_rows(journal.folder)]


def test_a_feeder_that_dies_anywhere_repeats_and_loses_nothing(
    journal: Journal, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding_module, "_BATCH_ROWS", 3)
    died = 0
    add = archive.add

    class DiedError(RuntimeError):
        pass

    def dying(*args: object) -> None:
        # Before every other commit, and after the others.
        nonlocal died
        died += 1
        if died % 2:
            add(*args)  # type: ignore[arg-type]
        raise DiedError

    for _ in range(40):
        monkeypatch.setattr(archive, "add", dying)
        try:
            feed(journal, archive)
        except DiedError:
            continue
        break
    assert died > 10
    assert bodies(archive) == [row.line for row in all_rows(journal.folder)]


def test_rows_and_position_move_together_or_not_at_all(
    journal: Journal, archive: Archive
) -> None:
    feed(journal, archive)
    before = archive.position("w0")
    double = dict(next(iter(archive.search(Query(limit=1)))))
    after = Position(before.byte_offset + 1, before.head)
    with pytest.raises(LedgerError, match="does not answer"):
        archive.add("w0", before, after, [double])
    assert archive.position("w0") == before


def test_two_feeders_of_one_writer_are_found_out(
    journal: Journal, archive: Archive
) -> None:
    feed(journal, archive)
    stale = Position(1, Head(1, 3, "00" * 32))
    with pytest.raises(LedgerError, match="two servers feed one writer"):
        archive.add("w0", stale, stale, [])


def test_a_row_that_is_not_durable_is_not_fed(
    journal: Journal, archive: Archive
) -> None:
    head = journal.head._replace(seq=5)
    feed_by(journal, archive, durable=lambda: head)
    assert len(bodies(archive)) == 6


def test_the_feeder_stops_at_a_break(journal: Journal, archive: Archive) -> None:
    path = journal.folder / "00000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"payments", b"pavments", 1))
    with pytest.raises(LedgerError, match="prev is not the hash"):
        feed(journal, archive)


def test_an_archive_that_is_ahead_of_the_journal_is_refused(
    tmp_path: Path, journal: Journal, archive: Archive
) -> None:
    feed(journal, archive)
    journal.close()
    for path in journal.folder.glob("*.jsonl"):
        path.unlink()
    other = open_journal(tmp_path)
    with pytest.raises(LedgerError, match="restored from an older copy"):
        feed(other, archive)
    abandon(other)


def test_a_feeder_thread_reports_a_break_and_ends(
    journal: Journal, tmp_path: Path
) -> None:
    path = journal.folder / "00000002.jsonl"
    path.write_bytes(path.read_bytes().replace(b"payments", b"pavments", 1))
    feeder = Feeder(make_task(journal, tmp_path))
    feeder.start()
    feeder._thread.join(20)
    assert "00000002.jsonl: at byte" in str(feeder.problem())
    assert feeder.lag()[0] > 0
    feeder.stop(0)


def test_an_archive_that_cannot_be_opened_yet_is_tried_again(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding_module, "_RETRY_SECONDS", 0.01)
    later = tmp_path / "later"
    failed = threading.Event()

    def open_archive() -> Archive:
        try:
            return Archive.open(archive_url(later))
        except LedgerError:
            failed.set()
            raise

    clock = SetClock()
    feeder = Feeder(make_task(journal, tmp_path, clock=clock), open_archive)
    feeder.start()
    assert failed.wait(20)
    clock.forward(61)
    assert feeder.lag() == (0, 61.0)
    journal.append_durable(make_intent(20))
    assert feeder.lag() == (1, 61.0), "what the archive cannot have is known"
    later.mkdir()
    while feeder.lag() != (0, 0.0):
        pass
    feeder.stop(20)
    assert feeder.problem() is None
    archive = Archive.open(archive_url(later), make=False)
    assert len(bodies(archive)) == len(all_rows(journal.folder))
    archive.close()


def test_a_feeder_that_ends_tries_again_until_its_time_is_over(
    journal: Journal, tmp_path: Path
) -> None:
    # Another worker that ends at the same time holds the archive for a moment.
    tries = []

    def open_archive() -> Archive:
        tries.append(1)
        if len(tries) < 3:
            raise LedgerError("it is locked", rule=RETRY_RULE)
        return Archive.open(archive_url(tmp_path))

    feeder = Feeder(make_task(journal, tmp_path), open_archive)
    feeder._desk.stop(20)
    feeder.start()
    feeder.stop(20)
    archive = Archive.open(archive_url(tmp_path), make=False)
    assert bodies(archive) == [row.line for row in all_rows(journal.folder)]
    archive.close()


def test_a_feeder_that_ends_does_not_try_for_ever(
    journal: Journal, tmp_path: Path
) -> None:
    def open_archive() -> Archive:
        raise LedgerError("it is locked", rule=RETRY_RULE)

    feeder = Feeder(make_task(journal, tmp_path), open_archive)
    feeder.start()
    feeder.stop(0)
    assert feeder.trouble() == "it is locked"


@pytest.mark.parametrize(
    ("rows", "grows", "is_time"),
    [
        (1, False, True),  # nobody writes: nothing comes that it could wait for
        (1, True, False),  # under load, others follow
        (25, True, True),  # a quarter of the bound
    ],
)
def test_under_load_rows_wait_for_others(
    journal: Journal, rows: int, *, grows: bool, is_time: bool
) -> None:
    few = LagConfig(entries=100, seconds=3600)
    feeder = Feeder(make_task(journal, journal.folder, max_lag=few))
    tip = journal.head.seq
    assert feeder._feeding._is_time(rows, tip + 1 if grows else tip) is is_time


# Indexes over expressions cannot be reflected; the next test compares them as text.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
@pytest.mark.filterwarnings("ignore:autogenerate skipping")
def test_the_migrations_make_what_the_schema_says(
    tmp_path: Path, archive: Archive
) -> None:
    with archive._engine.connect() as connection:
        context = MigrationContext.configure(connection)
        differences = [
            each
            for each in compare_metadata(context, metadata)
            if each[0] not in {"add_index", "remove_index"}
        ]
    assert differences == []
    assert stat.S_IMODE((tmp_path / "archive.db").stat().st_mode) == 0o600


def indexes(engine: sa.Engine) -> set[str]:
    wanted = sa.text("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql <> ''")
    with engine.connect() as connection:
        found = connection.execute(wanted).scalars()
        return {" ".join(sql.replace('"', "").split()) for sql in found}


def test_the_migrations_make_the_indexes_of_the_schema(
    tmp_path: Path, archive: Archive
) -> None:
    fresh = sa.create_engine(f"sqlite:///{tmp_path / 'fresh.db'}")
    metadata.create_all(fresh)
    assert indexes(archive._engine) == indexes(fresh)
    assert len(indexes(fresh)) == len(INDEXED) + 2
    fresh.dispose()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(serial="abc001"), "entries_serial"),
        (Query(certificate="0" * 64), "entries_certificate_sha256"),
        (Query(key="0" * 64), "entries_key_sha256"),
        (Query(caller=CALLER), "entries_caller"),
        (Query(since=5), "entries_at"),
    ],
)
def test_a_search_uses_its_index(archive: Archive, query: Query, index: str) -> None:
    compiled = select(query, ["1" * 32] if not query.caller else []).compile(
        archive._engine, compile_kwargs={"literal_binds": True}
    )
    with archive._engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all()
    steps = [step[3] for step in plan]
    assert any(index in step for step in steps), steps
    assert not any(step.startswith("SCAN entries") for step in steps), steps


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (Query(serial="abc003"), ["intent", "issued"]),
        (Query(serial="0abc003"), ["intent", "issued"]),
        (Query(certificate=f"{3 + 9:064x}"), ["intent", "issued"]),
        (Query(key=f"{3 + 7:064x}"), ["intent", "issued"]),
        (Query(serial="abc003", kind="issued"), ["issued"]),
        (Query(caller=CALLER, limit=3), ["issued", "intent", "issued"]),
        (Query(kind="opened", limit=1), ["opened"]),
        (Query(serial="abc0"), []),
        (Query(serial="ffff"), []),
        (Query(caller="spiffe://corp.example/ns/payments/sa/ap"), []),
        (Query(since=2_000_000_000_000_000), []),
        (Query(until=1), []),
    ],
)
def test_search(
    journal: Journal, archive: Archive, query: Query, found: list[str]
) -> None:
    feed(journal, archive)
    assert [row["kind"] for row in archive.search(query)] == found


@pytest.mark.parametrize(
    ("url", "error", "reason"),
    [
        ("nonsense", ConfigError, "expected a SQLAlchemy URL"),
        ("nosuchdb://x", ConfigError, "expected a SQLAlchemy URL"),
        ("sqlite://", ConfigError, "expected a file"),
        ("sqlite:///:memory:", ConfigError, "expected a file"),
        ("sqlite:///absent/archive.db", LedgerError, "No such file"),
    ],
)
def test_an_archive_that_cannot_be(
    url: str, error: type[BridgeError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        Archive.open(url)


def test_a_reader_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        Archive.open(archive_url(tmp_path), make=False)
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(tmp_path / "archive.db").close()
    with pytest.raises(LedgerError, match="start the server once"):
        Archive.open(archive_url(tmp_path), make=False)


_DIES_IN_THE_MIDDLE = """
import os, sys
from pathlib import Path
from typing import Any
import sqlalchemy as sa
from bridge.ledger.archive.archive import Archive

statements = []

@sa.event.listens_for(sa.Engine, "after_cursor_execute")
def count(connection, cursor, statement, *_):
    if statement.lstrip().startswith(("CREATE", "INSERT")):
        statements.append(statement)
        if len(statements) == int(sys.argv[1]):
            os.kill(os.getpid(), 9)

Archive.open(f"sqlite:///{Path.cwd()}/archive.db")
"""


@pytest.mark.parametrize("statement", [1, 2, 3, 5])
def test_a_process_that_dies_while_it_makes_the_tables_spoils_nothing(
    tmp_path: Path, statement: int
) -> None:
    died = subprocess.run(
        [sys.executable, "-c", _DIES_IN_THE_MIDDLE, str(statement)],
        cwd=tmp_path,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    archive = Archive.open(archive_url(tmp_path))
    assert archive.position("w0") == START
    archive.close()


def test_an_archive_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Archive.open(archive_url(tmp_path)).close()
    connection = sqlite3.connect(tmp_path / "archive.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="another version"):
        Archive.open(archive_url(tmp_path))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "archive.db").write_text("this is a text, and a rather long one" * 99)
    with pytest.raises(LedgerError, match="does not answer"):
        Archive.open(archive_url(tmp_path))


def test_a_search_that_takes_its_time_does_not_hold_up_the_feeder(
    tmp_path: Path, journal: Journal, archive: Archive
) -> None:
    feed(journal, archive)
    reader = Archive.open(archive_url(tmp_path), make=False)
    found = iter(reader.search(Query()))
    next(found)
    journal.append_durable(make_intent(11))
    feed(journal, archive)
    for _ in found:
        pass
    reader.close()
    assert len(bodies(archive)) == len(all_rows(journal.folder))
