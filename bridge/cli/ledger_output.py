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
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.ledger.events import COLUMNS, Settled
from bridge.ledger.verify import Comparison, Report


class SearchOutput(StrEnum):
    """The output formats of `search`."""

    TEXT = "text"
    JSON = "json"


class ExportOutput(StrEnum):
    """The output formats of `export`."""

    JSONL = "jsonl"
    CSV = "csv"


_COLUMNS = (
    *("time", "kind", "caller", "issuing CA", "serial", "not after", "rule"),
    "settled",
)
_CSV_COLUMNS = tuple(name for name in COLUMNS if name != "body")


def public(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an entry for JSON output."""
    values = json.loads(row["body"])
    if "settled" in row:
        values["settled"] = row["settled"]
    return {"writer": row["writer"], "hash": row["hash"], **values}


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
    """Print entries: as a table on a terminal, and as lines in a pipe."""
    lines = [_cells(row) for row in found]
    if not sys.stdout.isatty():
        for line in lines:
            typer.echo("\t".join(line))
        return
    table = Table(*_COLUMNS)
    for line in lines:
        style = "red" if line[1] in {"refused", "failed", "unknown"} else ""
        table.add_row(*(Text(cell, overflow="fold") for cell in line), style=style)
    Console().print(table)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    at = datetime.fromtimestamp(row["at"] / 1e6, UTC)
    end = row["not_after"]
    settled = row.get("settled", "")
    if row["kind"] == Settled.kind:
        settled = json.loads(row["body"])["result"]
    return tuple(
        # A value comes from a peer: it must not control the terminal.
        "".join(
            char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cell
        )
        or "-"
        for cell in (
            at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            row["kind"],
            row["caller"],
            row["issuing_ca"],
            row["serial"],
            "" if not end else f"{datetime.fromtimestamp(end, UTC):%FT%TZ}",
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


def _cell(value: object) -> object:
    # A spreadsheet would evaluate a value that begins like a formula.
    risky = isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}
    return f"'{value}" if risky else value
