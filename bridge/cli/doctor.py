"""`meshca doctor`: find what is wrong with a configuration, and what to do."""

from dataclasses import asdict

import typer

from bridge.checks.doctor import Diagnosis, diagnose
from bridge.cli.console import ConfigOption, OutputOption, print_json, print_rows

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_WARNING_STATUS = 3
"""Of the shell; 2 is a command line that cannot be understood."""


@app.command()
def doctor(*, config: ConfigOption, output: OutputOption = "text") -> None:
    """Find what is wrong with a configuration: by rule, with what to do about it.

    Makes the checks of `meshca check`, also of a configuration that is refused, and
    signs nothing with a real key. Exits with 1 if there is an error, with 3 if there is
    a warning, else with 0.
    """
    found, fine = diagnose(config)
    if output == "json":
        print_json({"findings": [asdict(one) for one in found], "passed": fine})
    else:
        _print(found)
        typer.echo(f"{fine} checks found nothing")
    severities = {one.severity for one in found}
    if "error" in severities:
        raise typer.Exit(1)
    if "warning" in severities:
        raise typer.Exit(_WARNING_STATUS)


def _print(found: list[Diagnosis]) -> None:
    styles = {"info": "cyan", "warning": "bold yellow", "error": "bold red"}
    if found:
        print_rows(
            ("severity", "rule", "where", "found", "what to do"),
            [
                (one.severity, one.rule, one.where, one.found, one.remedy)
                for one in found
            ],
            [styles[one.severity] for one in found],
        )
