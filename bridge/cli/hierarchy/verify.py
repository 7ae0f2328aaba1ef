"""`meshca hierarchy verify`: the certificates on disk, against the hierarchy file."""

from typing import Annotated

import typer

from bridge.cli.console import complain
from bridge.cli.hierarchy.sign import HierarchyArgument, OutOption
from bridge.hierarchy.ceremony import verified
from bridge.hierarchy.output import Output
from bridge.hierarchy.schema import load
from bridge.system.clock import system_clock


def verify(
    hierarchy: HierarchyArgument,
    *,
    out: OutOption,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this CA, and those above."),
    ] = None,
) -> None:
    """Hold the certificates in a folder against the hierarchy file.

    Each has to be what the file says, pass both linters, be valid now with its chain,
    and not be revoked by a CRL of the folder. Then leaves are tried below a copy of the
    chain with throwaway keys: allowed and forbidden ones, by this program and by
    `openssl verify` where it is installed. A CA that has no certificate yet is told,
    and is no failure.
    """
    loaded = load(hierarchy)
    failed = False
    for result in verified(loaded.file, Output(out), system_clock(), only or ()):
        problems = [*result.problems, *filter(None, [result.revoked])]
        for problem in problems:
            complain(problem)
        failed = failed or bool(problems)
        if not problems:
            typer.echo(f"{result.name}: {result.summary}")
    if failed:
        raise typer.Exit(1)
