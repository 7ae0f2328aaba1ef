"""`meshca plugins`: list the installed backends. Imports none of them."""

from dataclasses import asdict

import typer

from bridge.cli.console import OutputOption, print_json, print_rows
from bridge.registry import installed

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def plugins(*, output: OutputOption = "text") -> None:
    """List the installed backends by name, distribution and version."""
    found = installed()
    if output == "json":
        print_json({"plugins": [asdict(plugin) for plugin in found]})
        return
    rows = [(one.name, one.module, one.distribution, one.version) for one in found]
    print_rows(("name", "module", "distribution", "version"), rows)
