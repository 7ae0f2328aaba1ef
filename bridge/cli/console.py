"""The output of commands: results to stdout, errors and warnings to stderr.

Nothing is cut off: a table that is wider than the terminal is shown as blocks, one for
each row. In a pipe, every row is one line.
"""

import getpass
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

JSON_FORMAT = 1
"""The version of the JSON output of all commands. Changed when a field that there was
changes or goes, and not when one is added."""

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration, in YAML."),
]
Output = Literal["text", "json"]
OUTPUT_HELP = "For people, or for programs."
OutputOption = Annotated[Output, typer.Option("--output", "-o", help=OUTPUT_HELP)]

_GAP = "  "


class CommandGroup(TyperGroup):
    """A command with subcommands, whose help says whole what each of them does."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each subcommand with the first paragraph of its help."""
        found = [
            (name, self.get_command(ctx, name)) for name in self.list_commands(ctx)
        ]
        rows = [
            (name, " ".join((one.help or "").partition("\n\n")[0].split()))
            for name, one in found
            if one is not None and not one.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(help_text: str) -> typer.Typer:
    """Return a command that has subcommands.

    Args:
        help_text: What they do, in a sentence.
    """
    return typer.Typer(
        cls=CommandGroup,
        add_completion=False,
        rich_markup_mode=None,
        help=help_text,
        no_args_is_help=True,
    )


def print_json(content: Mapping[str, Any]) -> None:
    """Print an object to stdout as one line of JSON, with `format` first."""
    typer.echo(json.dumps({"format": JSON_FORMAT, **content}, ensure_ascii=False))


def rfc3339(seconds: float) -> str:
    """Return a time as JSON has it, such as `2026-11-23T08:00:00Z`.

    Args:
        seconds: Since 1970-01-01 UTC. Microseconds are shown where there are any.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def printable(text: str) -> str:
    """Return `text` without what would control a terminal: it may come from a peer."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def print_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str] = (),
) -> None:
    """Print rows to stdout: as a table, or as blocks where the terminal is narrower.

    Args:
        columns: The name of each column; may be empty.
        rows: The cells of each row. A line break in a cell is shown as a blank.
        styles: A style of rich for each row; empty for none.
    """
    flat = [[printable(" ".join(cell.splitlines())) for cell in row] for row in rows]
    table = [*_table([columns, *flat])]
    if not sys.stdout.isatty():
        for line in table:
            typer.echo(line)
        return
    console = Console(soft_wrap=True, highlight=False)
    plain = styles or [""] * len(flat)
    if max(map(len, table)) <= console.width:
        for line, style in zip(table, ["bold", *plain], strict=True):
            console.print(line, style=style, markup=False)
        return
    for number, (row, style) in enumerate(zip(flat, plain, strict=True)):
        if number:
            console.print()
        for line in _block(columns, row, console.width):
            console.print(line, style=style, markup=False)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield _GAP.join(cells).rstrip()


def _block(columns: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    label = max(map(len, columns)) + len(_GAP)
    for name, cell in zip(columns, row, strict=True):
        if cell:
            yield from _folded(cell, name.ljust(label), " " * label, width)


def print_folded(text: str, first: str, rest: str = "", *, style: str = "") -> None:
    """Print a text to stdout; on a terminal, in lines that break between words.

    Args:
        text: What to print. A line break in it is shown as a blank.
        first: What the first line begins with; it may have markup of rich.
        rest: What every other line begins with.
        style: A style of rich for the whole text.
    """
    console = results()
    width = console.width if console.is_terminal else sys.maxsize
    start = Text.from_markup(first)
    head, *others = _folded(text, start.plain, rest, width) or [start.plain]
    start.append(head[len(start.plain) :])
    for line in (start, *map(Text, others)):
        console.print(line, style=style)


def _folded(text: str, first: str, rest: str, width: int) -> list[str]:
    # A word that is longer than a line stays whole, so that it can be copied: the
    # terminal breaks it.
    return textwrap.wrap(
        text,
        max(width, len(first) + 1, len(rest) + 1),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def results() -> Console:
    """Return the console for results: stdout, as it is, without wrapping."""
    return Console(soft_wrap=True, highlight=False)


def complain(text: str, *, style: str = "red") -> None:
    """Print the lines of `text` to stderr: no markup, no wrapping."""
    Console(stderr=True).print(
        "\n".join(map(printable, text.split("\n"))),
        style=style,
        markup=False,
        soft_wrap=True,
        highlight=False,
    )


def operator() -> str:
    """Return the name in the operating system of who runs the command."""
    name = os.environ.get("SUDO_USER", "")
    with suppress(OSError, KeyError):
        name = name or getpass.getuser()
    return name or f"uid {os.getuid()}"


def warn(text: str) -> None:
    """Print a warning to stderr."""
    complain(f"warning: {text}", style="yellow")
