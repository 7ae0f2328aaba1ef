"""`meshca hierarchy plan`: the tree, every check, and what constraints do not hold."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.console import (
    OutputOption,
    print_folded,
    print_json,
    print_rows,
    rfc3339,
)
from bridge.hierarchy.plan import (
    RULES,
    Containment,
    Plan,
    PlanFinding,
    plan_of,
)
from bridge.hierarchy.schema import HierarchyFile, load
from bridge.system.clock import system_clock

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The hierarchy file, in YAML.")
]
_SHOWN_NAMES = 6
_STYLES = {"error": "red", "warning": "yellow", "info": "dim", "accepted": "green"}


def plan(file: FileArgument, *, output: OutputOption = "text") -> None:
    """Show what a hierarchy file would make, and hold it to every rule.

    Touches no key. Exit status 1 if something is found that is not accepted.
    """
    made = plan_of(load(file), now=system_clock())
    if output == "json":
        print_json(_as_json(made))
    else:
        _show(made)
    if not made.passes:
        raise typer.Exit(1)


def _show(plan: Plan) -> None:
    file = plan.loaded.file
    print_folded(f"{file.name} of {file.organisation}, {len(plan.order)} CAs", "")
    print_folded(f"SHA-256 of {plan.loaded.path}:", "")
    typer.echo(plan.loaded.digest)
    typer.echo()
    for name in plan.order:
        _show_ca(plan, name)
    _show_findings(plan.findings)
    for matrix in plan.matrices:
        typer.echo()
        print_folded(f"Name constraints of the chain of {_names(matrix.cas)}:", "")
        rows = [(form, *cells) for form, cells in matrix.rows]
        print_rows(("", *matrix.verifiers), rows)
    typer.echo()
    print_folded("If the key of a CA were compromised:", "")
    for one, anchors in _alike(plan.containment):
        print_folded(
            f"{one.verifier} that trusts {anchors} would accept {one.accepts}",
            f"  [bold]{_names(one.cas)}[/bold]: ",
            "    ",
        )
        if one.narrower:
            print_folded(one.narrower, "    to limit this: ", "      ", style="dim")
    typer.echo()
    verdict = "nothing in the way" if plan.passes else "nothing may be signed"
    failing = sum(one.fails for one in plan.findings)
    print_folded(f"{len(RULES)} rules, {failing} findings that fail: {verdict}", "")


def _alike(given: Sequence[Containment]) -> Iterator[tuple[Containment, str]]:
    """Join what is told of CAs that are their own anchor, as of each control plane."""
    own: dict[tuple[str, str], list[str]] = {}
    for one in given:
        if one.cas == (one.anchor,):
            own.setdefault((one.verifier, one.accepts), []).append(one.anchor)
    for one in given:
        names = own.get((one.verifier, one.accepts), [])
        if one.cas != (one.anchor,):
            yield one, one.anchor
        elif one.anchor == names[0]:
            joined = replace(one, cas=tuple(names))
            yield joined, "that CA alone" if len(names) > 1 else one.anchor


def _show_ca(plan: Plan, name: str) -> None:
    file, entry = plan.loaded.file, plan.loaded.file.cas[name]
    depth = len(file.chain(name)) - 1
    branch = f"{'    ' * (depth - 1)}\u2514\u2500\u2500 " if depth else ""
    indent = "    " * depth + "  "
    print_folded(_subject(file, name), f"{branch}[bold]{name}[/bold] ", indent)
    start, end = plan.windows[name]
    purpose = entry.purpose or "signs CAs"
    what = (
        f"{purpose}, {entry.key.algorithm} ({entry.key.backend}), valid "
        f"{start:%Y-%m-%d} to {end:%Y-%m-%d}, path_len {entry.path_len}"
    )
    for line in (what, *_constraints(file, name)):
        print_folded(line, indent, f"{indent}  ")


def _subject(file: HierarchyFile, name: str) -> str:
    return file.subject(name).rfc4514_string()


def _constraints(file: HierarchyFile, name: str) -> list[str]:
    given = file.cas[name].name_constraints
    if given is None:
        return ["no name constraints"]
    return [
        f"{word} "
        + ", ".join(
            f"{form}:{host}"
            for form, hosts in trees.model_dump().items()
            for host in hosts
        )
        for word, trees in (("permits", given.permitted), ("excludes", given.excluded))
        if any(trees.names())
    ]


def _show_findings(findings: Sequence[PlanFinding]) -> None:
    typer.echo()
    for one in findings:
        word = "accepted" if one.accepted else one.severity
        style = _STYLES[word]
        print_folded(
            f"{one.path}: {one.text} ({one.rule})",
            f"[{style}]{word}[/{style}] ",
            "  ",
        )
        if one.accepted:
            print_folded(one.accepted, "  because: ", "    ", style="dim")
    typer.echo()
    found = {one.rule for one in findings}
    held = ", ".join(rule for rule in RULES if rule not in found)
    print_folded(held, "Nothing found against: ", "  ", style="dim")


def _names(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    shown = ", ".join(names[:_SHOWN_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown


def _as_json(plan: Plan) -> dict[str, Any]:
    file = plan.loaded.file
    return {
        "file": str(plan.loaded.path),
        "sha256": plan.loaded.digest,
        "passes": plan.passes,
        "cas": [_ca_as_json(plan, name) for name in plan.order],
        "rules": dict(RULES),
        "findings": [
            {
                "rule": one.rule,
                "severity": one.severity,
                "ca": one.ca,
                "path": one.path,
                "text": one.text,
                "accepted": one.accepted or None,
                "fails": one.fails,
            }
            for one in plan.findings
        ],
        "matrices": [
            {
                "cas": matrix.cas,
                "forms": {
                    form: dict(zip(matrix.verifiers, cells, strict=True))
                    for form, cells in matrix.rows
                },
            }
            for matrix in plan.matrices
        ],
        "containment": [
            {
                "cas": one.cas,
                "verifier": one.verifier,
                "anchor": one.anchor,
                "accepts": one.accepts,
                "narrower": one.narrower or None,
            }
            for one in plan.containment
        ],
        "hierarchy": {"name": file.name, "organisation": file.organisation},
    }


def _ca_as_json(plan: Plan, name: str) -> dict[str, Any]:
    file, entry = plan.loaded.file, plan.loaded.file.cas[name]
    start, end = plan.windows[name]
    constraints = entry.name_constraints
    return {
        "name": name,
        "parent": entry.parent,
        "purpose": entry.purpose,
        "subject": _subject(file, name),
        "key": {"backend": entry.key.backend, "algorithm": entry.key.algorithm},
        "not_before": rfc3339(start.timestamp()),
        "not_after": rfc3339(end.timestamp()),
        "path_len": entry.path_len,
        "name_constraints": constraints.model_dump() if constraints else None,
        "anchor": file.anchor_of(name) if entry.purpose else None,
    }
