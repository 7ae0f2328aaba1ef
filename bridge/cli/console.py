"""The output of commands: results to stdout, errors and warnings to stderr."""

import getpass
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration, in YAML."),
]
Output = Literal["text", "json"]
OUTPUT_HELP = "For people, or for programs."
OutputOption = Annotated[Output, typer.Option("--output", "-o", help=OUTPUT_HELP)]


_WIDE = 240


def results() -> Console:
    """Return the console for results: stdout; in a pipe plain, without a width."""
    plain = not Console().is_terminal
    return Console(soft_wrap=True, highlight=False, width=_WIDE if plain else None)


def print_table(table: Table) -> None:
    """Print a table to stdout; in a pipe, without blanks at the ends of lines."""
    console = results()
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def complain(text: str, *, style: str = "red") -> None:
    """Print `text` to stderr as it is: no markup, no wrapping."""
    Console(stderr=True).print(
        text, style=style, markup=False, soft_wrap=True, highlight=False
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
