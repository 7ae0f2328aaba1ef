"""The archive: its tables, its rows and what a search finds."""

import json
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from bridge.errors import BridgeError, ConfigError, LedgerError
from bridge.ledger.archive.archive import START, Archive, Position
from bridge.ledger.archive.queries import Query, select
from bridge.ledger.archive.schema import INDEXED, metadata
from bridge.ledger.events import CertificateEnding, Ending
from bridge.ledger.journal.journal import Journal
from bridge.ledger.verify import compare
from tests.support.harness.archive import feed as feed_all
from tests.unit.ledger.support import (
    CALLER,
    all_rows,
    archive_url,
    make_ended,
    make_intent,
    open_journal,
)

_ROOT = Path(__file__).parents[4]


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


def feed(journal: Journal, archive: Archive) -> None:
    feed_all(journal.folder.parent, str(archive._engine.url))


def bodies(archive: Archive) -> list[bytes]:
    return [row["body"].encode() for row in archive.search(Query())]


def test_an_outcome_with_its_certificate_is_found_as_it_was_written(
    tmp_path: Path, archive: Archive
) -> None:
    ending = make_ended(1)
    shown = {each.name: getattr(ending, each.name) for each in fields(Ending)}
    with closing(open_journal(tmp_path)) as journal:
        journal.append_durable(make_intent(1, serial="", tbs_sha256=""))
        journal.append_durable(
            CertificateEnding(
                **shown, not_before=1, not_after=1 << 34, certificate="MIIB"
            )
        )
        feed(journal, archive)
    digest = ending.certificate_sha256
    _, found = archive.search(Query(certificate=digest))
    assert (found["not_before"], found["not_after"]) == (1, 1 << 34)
    assert json.loads(found["body"])["certificate"] == "MIIB"
    assert compare(tmp_path, archive).problems == []


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
    assert len(indexes(fresh)) == len(INDEXED) + 3
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


OPENER = """
import sys
from pathlib import Path
from bridge.ledger.archive.archive import Archive
from tests.unit.ledger.support import archive_url
sys.stdout.write("up\\n")
sys.stdout.flush()
for name in sys.stdin:
    Archive.open(archive_url(Path(sys.argv[1]), name.strip())).close()
    sys.stdout.write("ok\\n")
    sys.stdout.flush()
"""


def test_processes_that_start_together_make_one_archive(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENER, str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    names = "".join(f"archive-{round_}.db\n" for round_ in range(12))
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(names)
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out == "ok\n" * 12


@pytest.mark.usefixtures("archive")
def test_a_second_look_in_the_same_process_keeps_the_log_of_the_first(
    tmp_path: Path,
) -> None:
    log = tmp_path / "archive.db-wal"
    held = log.stat().st_ino
    Archive.open(archive_url(tmp_path)).close()
    leave = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
    leave += "c.execute('SELECT COUNT(*) FROM entries').fetchall(); c.close()"
    subprocess.run(
        [sys.executable, "-c", leave, tmp_path / "archive.db"], check=True, timeout=60
    )
    assert log.stat().st_ino == held, "it took itself for the last one"
