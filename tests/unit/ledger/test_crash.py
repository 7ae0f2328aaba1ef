"""A process that is killed at any moment: each acknowledged row stays on disk."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.queries import Query
from bridge.ledger.ledger import Ledger
from bridge.ledger.verify import verify
from tests.support.harness.archive import feed
from tests.unit.ledger.support import (
    NOW,
    SetClock,
    all_rows,
    archive_url,
    make_config,
)

WRITER = """
import sys, threading
from pathlib import Path
from tests.unit.ledger.support import SetClock, make_config, make_ended, make_intent
from tests.unit.ledger.support import archive_url
from bridge.ledger.ledger import Ledger

folder, first = Path(sys.argv[1]), int(sys.argv[2])
ledger = Ledger.open(
    make_config(folder), writer="w0", clock=SetClock()
)

def work(start):
    for number in range(start, start + 100_000):
        ledger.intend(make_intent(number))
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
        ledger.end(make_ended(number))

threads = [
    threading.Thread(target=work, args=(first + index * 100_000,)) for index in range(4)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def run_and_kill(folder: Path, first: int, rows: int) -> set[str]:
    """Run a writer and kill it; return the attempts that it was told are on disk."""
    command = [sys.executable, "-c", WRITER, str(folder), str(first)]
    told: set[str] = set()
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        if process.stdout is None:
            raise AssertionError("no pipe")
        for _ in range(rows):
            told.add(f"{int(process.stdout.readline()):032x}")
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines(keepends=True)
    told.update(f"{int(line):032x}" for line in rest if line.endswith(b"\n"))
    return told


@pytest.mark.parametrize("rows", [40, 700])
def test_no_acknowledged_intent_is_lost_and_each_gets_one_outcome(
    tmp_path: Path, rows: int
) -> None:
    told: set[str] = set()
    for life in range(2):
        told |= run_and_kill(tmp_path, life * 1_000_000, rows)
    ledger = Ledger.open(
        make_config(tmp_path),
        writer="w0",
        clock=SetClock(NOW),
    )
    ledger.close()
    feed(tmp_path / "journal", archive_url(tmp_path))

    found = all_rows(tmp_path / "journal" / "w0")
    intents = [row.values["attempt"] for row in found if row.kind == "intent"]
    outcomes = [
        row.values["attempt"] for row in found if row.kind in {"issued", "unknown"}
    ]
    assert told <= set(intents)
    assert sorted(intents) == sorted(outcomes)
    report = verify(tmp_path / "journal", tmp_path / "heads.jsonl")
    assert report.intact, report
    archive = Archive.open(archive_url(tmp_path), make=False)
    archived = [row["hash"] for row in archive.search(Query())]
    archive.close()
    assert sorted(archived) == sorted(row.digest for row in found)
