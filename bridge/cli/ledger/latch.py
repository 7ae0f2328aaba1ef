"""`meshca ledger latch`: show what waits for an operator, and clear it."""

from typing import Annotated, Any

import typer

from bridge import config
from bridge.cli.console import (
    ConfigOption,
    OutputOption,
    complain,
    group,
    operator,
    print_json,
    print_rows,
    rfc3339,
)
from bridge.errors import ConfigError, LedgerError
from bridge.resilience.latch_file import Content, Entry, Kind, LatchFile, State

app = group("Show and clear refused credentials and stopped issuing CAs.")

_COLUMNS = ("name", "what", "state", "since", "scope", "reason")
_WHAT = {Kind.CREDENTIAL.value: "credential", Kind.ISSUING_CA.value: "issuing CA"}


@app.command("list")
def show(*, config_file: ConfigOption, output: OutputOption = "text") -> None:
    """List the credentials that are not tried again, and the stopped issuing CAs.

    A credential in state `refused` was refused by the backend. One in state
    `unanswered` had no answer to its first login, and may have been refused. One in
    state `trying` is in its first login, or the process died in it. The server may be
    running.
    """
    content = LatchFile(config.read(config_file).ledger.latch).read()
    entries = _waiting(content)
    if output == "json":
        print_json({"latched": [_public(entry) for entry in entries]})
        return
    if not entries:
        typer.echo("nothing is latched")
        return
    print_rows(_COLUMNS, [_cells(entry) for entry in entries])


@app.command("clear")
def clear(
    *,
    name: Annotated[
        str,
        typer.Argument(
            help="An issuing CA, a scope, or an ID, as `list` shows it.",
            show_default=False,
        ),
    ],
    config_file: ConfigOption,
    reason: Annotated[str, typer.Option(help="The reason. It is recorded.")],
) -> None:
    """Let a credential be tried once more, or an issuing CA be used again.

    Look at the backend first: for a PIN, how many tries the token has left; for an
    issuing CA, why it signed something else. Everything with this name is cleared on
    this host at once, and on hosts that share its archive after some seconds. A worker
    writes a row `cleared` with your name and the reason, now or at the next start.
    Exits with 1 when nothing has this name.
    """
    who = operator()
    if not reason.strip():
        raise ConfigError("--reason: expected a reason")
    file = LatchFile(config.read(config_file).ledger.latch)
    waiting = _waiting(file.read())
    if not any(entry.is_named(name) for entry in waiting):
        names = sorted({entry.name for entry in waiting})
        raise LedgerError(
            f"nothing is latched under the name {name!r}; latched are: "
            f"{', '.join(names) or 'none'}",
            rule="ledger.latch",
        )
    with file.change() as content:
        found = content.clear(name, by=who, reason=reason)
    for entry in found:
        typer.echo(f"cleared: {_WHAT[entry.kind]} {entry.name} ({entry.state})")
    complain(
        "a worker writes the row into the ledger, now or at the next start", style="dim"
    )


def _waiting(content: Content) -> list[Entry]:
    found = (each for each in content.entries.values() if each.state != State.PROVEN)
    return sorted(found, key=lambda entry: entry.at)


def _public(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "kind": entry.kind,
        "scope": entry.scope,
        "issuing_ca": entry.issuing_ca,
        "state": entry.state,
        "since": _since(entry),
        "reason": entry.reason,
    }


def _cells(entry: Entry) -> tuple[str, ...]:
    what = _WHAT[entry.kind]
    return entry.name, what, entry.state, _since(entry), entry.scope, entry.reason


def _since(entry: Entry) -> str:
    return rfc3339(int(entry.at))
