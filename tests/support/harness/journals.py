"""Reads journals while a bridge writes them."""

import json
from pathlib import Path
from typing import Any


def journaled(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all journals below a folder, in order of the file names."""
    return [
        json.loads(line)
        for segment in sorted(folder.rglob("*.jsonl"))
        for line in segment.read_text("utf-8").splitlines(keepends=True)
        if line.endswith("\n")  # else it is being written
    ]
