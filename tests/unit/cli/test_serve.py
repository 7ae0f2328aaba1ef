import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bridge.cli.demo_setup import scenario as demo_scenario
from bridge.system.clock import system_clock

PATIENCE_SECONDS = 60


def serve(folder: Path, **changed: Any) -> list[str]:
    """Change sections of a good configuration; return what `serve` says of it."""
    path = demo_scenario.prepare(folder, system_clock).configuration
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | changed))
    done = subprocess.run(
        [sys.executable, "-m", "bridge.cli", "serve", "-c", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line.removeprefix(f"{path}: ") for line in done.stderr.splitlines()]
    return [
        line.split(": ")[0] for line in lines if not re.search("Z (INFO|ERROR) ", line)
    ]


NOWHERE = {
    "journal": "/proc/x",
    "archive": "sqlite:///no/a.db",
    "heads": {"sink": "no/heads"},
}


def test_a_wrong_key_hides_no_file_and_no_place(tmp_path: Path) -> None:
    told = serve(tmp_path, trust_anchors="no.pem", ledger=NOWHERE, limits={"x": 1})
    assert told == [
        "limits.x",
        "trust_anchors",
        "ledger.journal",
        "ledger.archive",
        "ledger.heads.sink",
    ]


def test_the_places_of_the_ledger_are_told_by_key_and_at_once(tmp_path: Path) -> None:
    told = serve(tmp_path, ledger=NOWHERE)
    assert [line for line in told if line.startswith("ledger.")] == [
        "ledger.journal",
        "ledger.archive",
        "ledger.heads.sink",
    ]
