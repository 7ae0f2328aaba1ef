"""`meshca check`: find out whether a configuration would serve."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bridge.checks.findings import Finding, check_configuration
from bridge.checks.token_verdict import check_token
from bridge.cli.console import ConfigOption, OutputOption, print_json, print_rows, warn

app = typer.Typer(add_completion=False, rich_markup_mode=None)


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
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if any(finding.result == "FAILED" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    styles = {"note": "cyan", "warning": "bold yellow", "FAILED": "bold red"}
    print_rows(
        ("part", "what", "result", "detail"),
        [(one.part, one.what, one.result, one.detail) for one in findings],
        [styles.get(one.result, "") for one in findings],
    )
