"""Prints entries of the ledger for people, programs and spreadsheets."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import typer

from bridge.cli.console import print_rows, printable, rfc3339
from bridge.ledger.events import COLUMNS, Settled
from bridge.ledger.verify import Comparison, Report


class ExportOutput(StrEnum):
    """The output formats of `export`."""

    JSONL = "jsonl"
    CSV = "csv"


_COLUMNS = (
    *("time", "kind", "caller", "issuing CA", "serial", "not after", "rule"),
    "settled",
)
_SECONDS = {"not_before", "not_after", "since", "until", "log_at", "proven_at"}
"""The fields of rows that are times in whole seconds."""
_CSV_COLUMNS = tuple(name for name in COLUMNS if name != "body")


def public(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an entry for JSON output. Of an entry `issued`, `not_after` is whole."""
    values = json.loads(row["body"])
    if row["not_after"] and not values.get("not_after"):
        values["not_after"] = row["not_after"]
    if "settled" in row:
        values["settled"] = row["settled"]
    return {"writer": row["writer"], "hash": row["hash"], **with_times(values)}


def with_times(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row with its times in RFC 3339; None for unknown ones."""
    times = {name: values[name] for name in _SECONDS & values.keys()}
    if "at" in values:
        times["at"] = values["at"] / 1e6
    shown = {name: rfc3339(time) if time else None for name, time in times.items()}
    return {**values, **shown}


def verified(report: Report, compared: Comparison | None) -> Mapping[str, Any]:
    """Return the result of `verify` for JSON output; `archive` if it was compared."""
    writers = [
        asdict(writer) | {"head": writer.head._asdict() if writer.head else None}
        for writer in report.writers
    ]
    return {
        "intact": report.intact and not (compared and compared.problems),
        "writers": writers,
        "problems": report.problems,
        "archive": None if compared is None else asdict(compared),
    }


def show(found: list[dict[str, Any]]) -> None:
    """Print entries: as a table or as blocks on a terminal, and as lines in a pipe."""
    lines = [_cells(row) for row in found]
    if not sys.stdout.isatty():
        for line in lines:
            typer.echo("\t".join(cell or "-" for cell in line))
        return
    bad = {"refused", "failed", "unknown"}
    print_rows(_COLUMNS, lines, ["red" if line[1] in bad else "" for line in lines])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    at = datetime.fromtimestamp(row["at"] / 1e6, UTC)
    end = row["not_after"]
    settled = row.get("settled", "")
    if row["kind"] == Settled.kind:
        settled = json.loads(row["body"])["result"]
    return tuple(
        printable(cell)
        for cell in (
            at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            row["kind"],
            row["caller"],
            row["issuing_ca"],
            row["serial"],
            rfc3339(end) if end else "",
            row["rule"],
            settled,
        )
    )


def write_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print entries for a spreadsheet."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in _CSV_COLUMNS])


_FORMULA = frozenset("=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}") | {
    "\N{FULLWIDTH HYPHEN-MINUS}",
    "\N{FULLWIDTH COMMERCIAL AT}",
}
"""What a formula begins with, in the spreadsheets of some countries too."""


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    # A spreadsheet would evaluate a value that begins like a formula.
    return f"'{text}" if value.lstrip()[:1] in _FORMULA else text
