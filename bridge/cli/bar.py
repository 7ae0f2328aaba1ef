"""`meshca bar`: list, add and remove what gets no certificate any more."""

from typing import Annotated

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
from bridge.policy.bars import BarKind, new_entry
from bridge.resilience.latch_file import Entry, Kind, LatchFile
from bridge.system.clock import system_clock

app = group("Bar certificates, keys and identities: they get nothing more.")
_COLUMNS = ("id", "barred", "since", "reason")
_ROW = "a worker writes the row into the ledger, now or at the next start"
ReasonOption = Annotated[str, typer.Option(help="The reason. It is recorded.")]


@app.command("list")
def show(*, config_file: ConfigOption, output: OutputOption = "text") -> None:
    """List what is barred. The server may be running."""
    entries = _bars(_file(config_file))
    if output == "json":
        print_json({"barred": [_public(entry) for entry in entries]})
        return
    if not entries:
        typer.echo("nothing is barred")
        return
    print_rows(_COLUMNS, [tuple(_public(entry).values()) for entry in entries])


@app.command("add")
def add(
    *,
    kind: Annotated[BarKind, typer.Argument(help="What is barred.")],
    value: Annotated[
        str,
        typer.Argument(
            help="A serial number in hex; the SHA-256 of a certificate, or of a key's "
            "SubjectPublicKeyInfo; a SPIFFE ID; or NAMESPACE/NAME.",
            show_default=False,
        ),
    ],
    config_file: ConfigOption,
    reason: ReasonOption,
) -> None:
    """Refuse a certificate, a key or an identity on both fronts.

    It takes effect within a second in all workers of this host, and after some seconds
    on hosts that share its archive. Certificates that were issued stay valid until they
    expire. A worker writes a row `latched` with the state `barred`, now or at the next
    start.
    """
    now = system_clock().timestamp()
    new = new_entry(kind, value, reason=_reason(reason), at=now)
    with _file(config_file).change() as content:
        known = [one for one in content.entries.values() if one.scope == new.scope]
        if not known:
            content.put(new)
    typer.echo(f"{'barred before' if known else 'barred'}: {new.scope}")
    complain(_ROW, style="dim")


@app.command("remove")
def remove(
    *,
    name: Annotated[
        str,
        typer.Argument(
            help="What `list` shows under `id` or `barred`.", show_default=False
        ),
    ],
    config_file: ConfigOption,
    reason: ReasonOption,
) -> None:
    """Take a bar away. A worker writes a row `cleared` with your name and the reason.

    Exits with 1 when nothing has this name.
    """
    who, why, file = operator(), _reason(reason), _file(config_file)
    with file.change() as content:
        found = content.clear(name, by=who, reason=why)
    if not found:
        known = ", ".join(one.scope for one in _bars(file)) or "nothing"
        raise LedgerError(
            f"nothing is barred under the name {name!r}; barred is: {known}",
            rule="ledger.latch",
        )
    for entry in found:
        typer.echo(f"not barred any more: {entry.scope}")
    complain(_ROW, style="dim")


def _file(config_file: ConfigOption) -> LatchFile:
    return LatchFile(config.read(config_file).ledger.bars)


def _bars(file: LatchFile) -> list[Entry]:
    found = (one for one in file.read().entries.values() if one.kind == Kind.BAR)
    return sorted(found, key=lambda entry: entry.at)


def _reason(reason: str) -> str:
    if not reason.strip():
        raise ConfigError("--reason: expected a reason")
    return reason


def _public(entry: Entry) -> dict[str, str]:
    return {
        "id": entry.id,
        "barred": entry.scope,
        "since": rfc3339(int(entry.at)),
        "reason": entry.reason,
    }
