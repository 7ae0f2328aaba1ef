"""`meshca plugins`: list the installed backends. Imports none of them."""

import json
from dataclasses import asdict

import typer
from rich.table import Table

from bridge.cli.console import OutputOption, print_table
from bridge.registry import installed

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def plugins(*, output: OutputOption = "text") -> None:
    """List the installed backends by name, distribution and version."""
    found = installed()
    if output == "json":
        typer.echo(json.dumps([asdict(plugin) for plugin in found]))
        return
    table = Table("name", "module", "distribution", "version", box=None)
    for plugin in found:
        table.add_row(plugin.name, plugin.module, plugin.distribution, plugin.version)
    print_table(table)
