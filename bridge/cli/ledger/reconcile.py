"""`meshca ledger reconcile`: settle attempts that ended `unknown`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge import config
from bridge.cli.console import (
    ConfigOption,
    OutputOption,
    complain,
    operator,
    print_json,
)
from bridge.cli.ledger.output import with_times
from bridge.system.clock import system_clock

if TYPE_CHECKING:
    # It imports SQLAlchemy, which takes half a second.
    from bridge.ledger.events import Settled
    from bridge.ledger.reconcile import Reconciliation

_TOLD = 100
"""The most lines of each sort in the text; JSON has all."""


def reconcile(
    *,
    vault_audit: Annotated[
        list[Path],
        typer.Option(
            "--vault-audit",
            metavar="FILE",
            help="An audit log of Vault or OpenBao, also packed as `.gz`. Repeat the "
            "option for the logs of all servers and of earlier days.",
        ),
    ],
    config_file: ConfigOption,
    output: OutputOption = "text",
) -> None:
    """Settle attempts that ended `unknown`, by the audit log of Vault or OpenBao.

    The log has the attempt's ID, if the server audits the header `X-Meshca-Attempt`
    unhashed. An attempt whose call was answered with a certificate or a signature is
    settled as issued, and one whose call was refused as not issued. Others stay
    `unknown`. Each settled attempt gets a row `settled` in a journal of its own. A
    second run writes nothing new. The server may be running; run this as its user.

    Exits with 1 if a certificate of the log is not in the ledger, or is not what was
    asked for; if the ledger says otherwise; or if a line of the log cannot be read.
    """
    from bridge.ledger.reconcile import reconcile as run  # noqa: PLC0415 - see above

    section = config.read(config_file).ledger
    report = run(section, vault_audit, operator=operator(), clock=system_clock)
    if output == "json":
        print_json(_public(report))
    else:
        _print(report)
    for note in report.notes:
        complain(note, style="yellow")
    for problem in _shortened(report.problems):
        complain(problem)
    if report.problems:
        raise typer.Exit(1)


def _public(report: "Reconciliation") -> dict[str, Any]:
    settled = [{"kind": row.kind, **with_times(asdict(row))} for row in report.settled]
    return asdict(report) | {"settled": settled}


def _print(report: "Reconciliation") -> None:
    for row in report.settled:
        typer.echo(_line(row))
    stay = [f"{name}: stays unknown: {why}" for name, why in report.unknown.items()]
    for line in _shortened(stay):
        typer.echo(line)
    typer.echo(
        f"{report.lines} lines, {report.calls} of attempts: {len(report.settled)} "
        f"attempts settled, {report.settled_before} settled before, "
        f"{len(report.unknown)} stay unknown"
    )


def _line(row: "Settled") -> str:
    if row.result != "issued":
        return f"{row.attempt}: not issued: {row.detail or 'the reason is hashed'}"
    serial = f"serial number {row.serial}"
    if not row.serial:
        serial = "the log hides the serial number"
    return f"{row.attempt}: issued, {serial}{row.detail and ': '}{row.detail}"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _TOLD:
        return lines
    return [*lines[:_TOLD], f"and {len(lines) - _TOLD} more, see -o json"]
