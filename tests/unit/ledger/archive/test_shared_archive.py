"""One archive for several processes, and one that goes away while it is in use."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.archive import feeding as feeding_module
from bridge.ledger.archive.archive import START, Archive, Position
from bridge.ledger.chain import Head
from bridge.ledger.ledger import Ledger
from bridge.ledger.verify import Comparison, compare, verify
from tests.unit.ledger.support import (
    SetClock,
    archive_url,
    fed,
    make_config,
    make_ended,
    make_intent,
)

URL = "sqlite:///archive.db"
_ROOT = Path(__file__).parents[4]
_WAIT_SECONDS = 20


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.005)


def open_ledger(folder: Path, writer: str = "w0", **changed: object) -> Ledger:
    return Ledger.open(
        make_config(folder, **changed),
        writer=writer,
        version="1",
        clock=SetClock(),
    )


def compared(folder: Path) -> Comparison:
    archive = Archive.open(archive_url(folder), make=False)
    try:
        return compare(folder / "journal", archive)
    finally:
        archive.close()


OPENER = """
import sys
from pathlib import Path
from bridge.ledger.archive.archive import START, Archive, Position
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


WRITER = """
import sys, threading
from pathlib import Path
from tests.unit.ledger.support import SetClock, make_config, make_ended, make_intent
from tests.unit.ledger.support import archive_url
from bridge.ledger.ledger import Ledger

folder, writer, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger.open(
    make_config(folder), writer=writer, version="1", clock=SetClock()
)
troubles = set()
for number in range(rows):
    ledger.intend(make_intent(number))
    ledger.end(make_ended(number))
    troubles.add(ledger._feeder.trouble())
ledger.close()
troubles |= {ledger._feeder.trouble(), str(ledger._feeder.problem())}
print(troubles - {"", "None"})
"""


def test_several_processes_feed_one_archive_each_row_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), f"w{number}", "1500"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "set()\n", "")
    result = compared(tmp_path)
    assert result.agrees, result
    assert result.equal == 3 * (1500 * 2 + 2)
    assert verify(tmp_path / "journal", tmp_path / "heads.jsonl").intact


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(feeding_module, "_RETRY_SECONDS", 0.05)
    ledger = open_ledger(tmp_path, max_lag={"entries": 10})
    for number in range(4):
        ledger.intend(make_intent(number))
        ledger.end(make_ended(number))
    ledger._journal.flush()
    wait_until(lambda: fed(ledger))
    yield ledger
    ledger.close()


def remove(path: Path) -> None:
    path.unlink()


def remove_all(path: Path) -> None:
    for each in path.parent.glob("archive.db*"):
        each.unlink()


def replace_by_empty(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.touch()
    fresh.replace(path)


def damage(path: Path) -> None:
    # As a disk would: the same file with other bytes. Then somebody removes it.
    data = path.read_bytes()
    path.write_bytes(b"\xff" * len(data))
    path.unlink()


@pytest.mark.parametrize("change", [remove, remove_all, replace_by_empty, damage])
def test_an_archive_that_goes_away_in_use_is_made_anew_from_the_journal(
    tmp_path: Path, ledger: Ledger, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "archive.db"
    change(path)
    wait_until(lambda: path.exists() and path.stat().st_size and fed(ledger))
    ledger.intend(make_intent(8))
    ledger.end(make_ended(8))
    ledger.close()
    assert compared(tmp_path).agrees


@pytest.mark.parametrize("change", [remove, remove_all])
def test_two_writers_make_their_deleted_archive_anew_together(
    tmp_path: Path, ledger: Ledger, change: Callable[[Path], None]
) -> None:
    other = open_ledger(tmp_path, "w1")
    wait_until(lambda: fed(other))
    for number in range(3):
        change(tmp_path / "archive.db")
        for each in (ledger, other):
            each.intend(make_intent(60 + number))
        wait_until(lambda: not archive_moved(tmp_path) and fed(ledger) and fed(other))
    other.close()
    ledger.close()
    result = compared(tmp_path)
    assert result.agrees, result


def test_a_second_look_in_the_same_process_keeps_the_log_of_the_first(
    tmp_path: Path,
) -> None:
    ledger = open_ledger(tmp_path, archive=URL)
    wait_until(lambda: fed(ledger))
    log = tmp_path / "archive.db-wal"
    held = log.stat().st_ino
    # As a server looks how far writers were fed that run no more.
    Archive.open(archive_url(tmp_path)).close()
    leave = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
    leave += "c.execute('SELECT COUNT(*) FROM entries').fetchall(); c.close()"
    subprocess.run(
        [sys.executable, "-c", leave, tmp_path / "archive.db"], check=True, timeout=60
    )
    assert log.stat().st_ino == held, "it took itself for the last one"
    ledger.intend(make_intent(1))
    ledger.end(make_ended(1))
    ledger.close()
    assert not compared(tmp_path).behind


def archive_moved(folder: Path) -> bool:
    # Whether the database lacks what both writers have to put into it.
    path = folder / "archive.db"
    if not path.exists():
        return True
    archive = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        found = archive.execute("SELECT count(*) FROM positions").fetchone()
    except sqlite3.OperationalError:
        return True
    finally:
        archive.close()
    return bool(found[0] < 2)


def test_an_archive_that_was_deleted_between_two_starts_is_made_anew(
    tmp_path: Path, ledger: Ledger
) -> None:
    ledger.close()
    (tmp_path / "archive.db").unlink()
    open_ledger(tmp_path).close()
    result = compared(tmp_path)
    assert result.agrees
    assert result.equal == 12


def test_a_locked_archive_stops_issuing_at_the_bound_and_lets_it_go_on(
    tmp_path: Path, ledger: Ledger
) -> None:
    other = sqlite3.connect(tmp_path / "archive.db", isolation_level=None)
    other.execute("PRAGMA busy_timeout = 5000")
    other.execute("BEGIN EXCLUSIVE")
    # The bound, and the row that passes it.
    for number in range(10, 21):
        ledger.intend(make_intent(number))
    with pytest.raises(LedgerError, match="takes no intent") as caught:
        ledger.intend(make_intent(21))
    assert caught.value.rule == "ledger.lag"
    wait_until(lambda: "database is locked" in str(ledger.problem()))
    other.rollback()
    other.close()
    wait_until(lambda: ledger.problem() is None)
    ledger.intend(make_intent(50))
    ledger.close()
    assert compared(tmp_path).agrees


def test_a_damaged_archive_says_what_to_do_and_is_made_anew(
    tmp_path: Path, ledger: Ledger
) -> None:
    ledger.close()
    path = tmp_path / "archive.db"
    path.write_bytes(b"\xff" * path.stat().st_size)
    again = open_ledger(tmp_path)
    wait_until(lambda: "remove the archive" in again._feeder.trouble())
    assert again._feeder.problem() is None
    path.unlink()
    wait_until(lambda: fed(again))
    again.close()
    assert compared(tmp_path).agrees


_ONE_MORE = """
INSERT INTO entries SELECT writer, 10, at, kind, attempt, request, purpose, front,
cluster, caller, issuing_ca, serial, key_sha256, names, not_before, not_after,
tbs_sha256, certificate_sha256, status, rule, detail, body, hash
FROM entries WHERE seq = 9
"""


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
            "the archive has row 10, and the journal ends at row 9",
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
    ledger.close()
    assert compared(tmp_path).agrees
    change_rows(tmp_path, statement)
    result = compared(tmp_path)
    assert not result.agrees
    assert reason in result.problems[0]


def test_rows_that_are_not_fed_yet_are_behind_and_no_difference(
    tmp_path: Path, ledger: Ledger
) -> None:
    other = sqlite3.connect(tmp_path / "archive.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    ledger.intend(make_intent(8))
    ledger.intend(make_intent(9))
    result = compared(tmp_path)
    assert (result.behind, result.problems) == ({"w0": 2}, [])
    assert not result.agrees
    other.rollback()
    other.close()


def test_what_a_deleted_archive_left_beside_it_does_not_spoil_the_next_one(
    tmp_path: Path,
) -> None:
    end = Position(1, Head(1, 1, "a" * 64))
    later = Position(2, Head(1, 2, "b" * 64))
    old = Archive.open(archive_url(tmp_path))
    old.add("w0", START, end, [])
    (tmp_path / "archive.db").unlink()
    new = Archive.open(archive_url(tmp_path))
    assert old.moved()
    assert not new.moved()
    new.add("w1", START, end, [])
    # A worker that does not know yet writes to the file that has no name.
    old.add("w0", end, later, [])
    old.close()
    new.add("w2", START, end, [])
    assert new.writers() == ["w1", "w2"]
    new.close()
    connection = sqlite3.connect(tmp_path / "archive.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
