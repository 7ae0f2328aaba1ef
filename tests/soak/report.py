"""Writes what a run found into the documents, between markers."""

import os
import platform
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.soak.result import Result

_ROOT = Path(__file__).resolve().parents[2]
FAULTS = _ROOT / "docs/faults.md"
FIGURES = _ROOT / "docs/benchmarks.md"


def surroundings(command: str, ca_key: str) -> str:
    """Return when and where this is, as one line."""
    cores, load = os.cpu_count(), os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores, Python "
        f"{platform.python_version()}, CA {ca_key}, load average {load:.1f} before the "
        f"start: `{command}`"
    )


def write(results: Iterable[Result], where: str) -> None:
    """Put the results of each part that ran in place of its older ones.

    Raises:
        LookupError: A document has no place for them.
    """
    for result in results:
        if result.faults:
            _put(FAULTS, result.part, _faults(result, where))
        _put(FIGURES, result.part, _figures(result, where))


def _faults(result: Result, where: str) -> Iterator[str]:
    yield "| Fault | What the client saw | What was on record | Time to recover |"
    yield "|---|---|---|---|"
    for one in result.faults:
        yield f"| {one.fault} | {one.saw} | {one.on_record} | {one.recovery} |"
    yield ""
    yield where


def _figures(result: Result, where: str) -> Iterator[str]:
    yield where
    yield ""
    yield from (f"* {line}" for line in result.lines())


def _put(path: Path, part: str, lines: Iterable[str]) -> None:
    begin, end = f"<!-- soak {part} -->", f"<!-- end of soak {part} -->"
    body = "\n".join((begin, *lines, end))
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text, found = pattern.subn(lambda _: body, path.read_text("utf-8"))
    if found != 1:
        raise LookupError(f"{path}: expected '{begin}' and '{end}' once each")
    path.write_text(text, "utf-8")
