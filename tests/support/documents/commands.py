"""The commands of `meshca`, from the program's own help."""

import html
from collections.abc import Iterator

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from bridge.cli.command_line import PluginCommand, app
from bridge.registry import plugin_commands


def lines() -> Iterator[str]:
    """Yield the document: each command with its options, as Typer writes them."""
    yield "Results go to stdout and messages to stderr. The exit status is 0, 1 if"
    yield "something is wrong, and 2 if the command line is. A plan of changes has 3 if"
    yield "there are any."
    yield ""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="meshca")
    for name in plugin_commands():
        own = PluginCommand(name).load()
        context = typer.Context(command, info_name="meshca")
        text += get_docs_for_click(
            obj=own, ctx=context, name=f"meshca {name}", indent=1
        )
    # Below the title of the document, and without the escapes that only HTML needs.
    yield from (
        f"#{line}" if line.startswith("#") else line
        for line in html.unescape(text).splitlines()
    )
