"""`meshca check`: find out whether a configuration would serve."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bridge.checks.findings import Finding, check_configuration
from bridge.checks.token_verdict import check_token
from bridge.cli.console import ConfigOption, OutputOption, print_table, warn

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def check(
    *,
    config: ConfigOption,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Check only the token in this file: which cluster would take it, as "
            "which workload and by which rule, or why not. Opens no backend.",
        ),
    ] = None,
    output: OutputOption = "text",
) -> None:
    """Load the configuration, open every backend and prove which names may pass.

    Signs nothing with a real key: names are proven on a throwaway chain of the same
    shape. Exits with 1 if a check fails.
    """
    if token_file is not None:
        findings = check_token(config, token_file)
    else:
        findings = check_configuration(config, warn)
    if output == "json":
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        _print(findings)
    if any(finding.result == "FAILED" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    colours = {
        "ok": "green",
        "note": "cyan",
        "warning": "bold yellow",
        "FAILED": "bold red",
    }
    table = Table("part", "what", "", "detail", box=None, pad_edge=False)
    for finding in findings:
        colour = colours[finding.result]
        table.add_row(
            escape(finding.part),
            escape(finding.what),
            f"[{colour}]{finding.result}[/]",
            escape(finding.detail),
        )
    print_table(table)
