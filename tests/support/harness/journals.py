"""Reads journals and logs while a process writes them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def journaled(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all journals below a folder, in order of the file names."""
    return [
        json.loads(line)
        for segment in sorted(folder.rglob("*.jsonl"))
        for line in whole_lines(segment)
    ]


def whole_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a file but the last one if it is being written."""
    for line in file.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield line
