"""`meshca ledger`: show what was issued, to whom, and what was refused.

`bridge.cli` adds `app` to the command line and prints every `BridgeError`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from bridge import config
from bridge.cli import latch, reconcile
from bridge.cli.console import OUTPUT_HELP, OutputOption, operator
from bridge.cli.ledger_output import (
    ExportOutput,
    SearchOutput,
    public,
    show,
    verified,
    write_csv,
)
from bridge.errors import ConfigError
from bridge.ledger.events import EARLIER_KINDS, Ending, Event, Outcome
from bridge.ledger.verify import Comparison, Report, WriterReport, compare, verify
from bridge.system.clock import system_clock

if TYPE_CHECKING:
    # It imports SQLAlchemy, which no other command needs.
    from bridge.ledger.archive.archive import Archive
    from bridge.ledger.archive.queries import Query

_KINDS = (
    *(row.kind for row in get_args(Event) if not issubclass(row, Ending)),
    *(outcome.value for outcome in Outcome),
    *EARLIER_KINDS,
)
"""The kinds of the ledger's entries."""

_SPAN = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DIGITS = re.compile(r"[0-9a-f]+")
_DIGEST_DIGITS = 64

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    help="Verify, search and export the ledger.",
    no_args_is_help=True,
)
app.add_typer(latch.app, name="latch")


ConfigFile = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="The configuration.")
]
Since = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Since this time, in UTC: 2026-11-23T08:00, or 24h for the last 24 hours.",
    ),
]


@app.command("verify")
def verify_journals(
    *,
    config_file: Annotated[
        Path | None,
        typer.Option("-c", "--config", metavar="FILE", help="The configuration."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder of journals, instead of -c."),
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The published heads."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The public key of the heads. By default beside the journal.",
        ),
    ] = None,
    archive: Annotated[
        bool,
        typer.Option("--archive", help="Compare every row with the archive, too."),
    ] = False,
    output: OutputOption = "text",
) -> None:
    """Recompute every hash chain and compare it with the published heads.

    Exits with 1 and names file and line if something does not verify. The server may be
    running.
    """
    if archive and config_file is None:
        raise typer.BadParameter("--archive: expected -c FILE, which names the archive")
    if (config_file is None) == (journal is None):
        raise typer.BadParameter("expected one of -c FILE and --journal FOLDER")
    if config_file is not None:
        journal, sink, public_key = _places_of(config_file, public_key)
        heads = heads or sink
    if journal is None:
        raise ConfigError("expected a folder of journals")
    report = verify(journal, heads, public_key)
    compared = None
    if archive and config_file is not None and report.intact:
        compared = _compared(config_file, journal)
    _tell_verified(report, compared, output)
    if heads is None:
        _complain("no published heads given: a tail that was cut off cannot be found")
    problems = [*report.problems, *(compared.problems if compared else ())]
    for writer in report.writers:
        problems += writer.problems
    for problem in problems:
        _complain(problem)
    if problems:
        raise typer.Exit(1)


def _places_of(
    config_file: Path, public_key: Path | None
) -> tuple[Path, Path, Path | None]:
    read = config.read(config_file)
    section = read.ledger
    if public_key is None and section.heads.key is not None:
        public_key = section.heads.key.with_suffix(".pub")
    return section.journal, section.heads.sink, public_key


def _tell_verified(report: Report, compared: Comparison | None, output: str) -> None:
    if output == "json":
        typer.echo(json.dumps(verified(report, compared)))
        return
    for writer in report.writers:
        typer.echo(_writer_line(writer))
    if compared is not None:
        typer.echo(_archive_line(compared))


@app.command("accept")
def accept_journal(
    *,
    config_file: ConfigFile,
    writer: Annotated[str, typer.Option(help="The name of the journal's folder.")],
    reason: Annotated[str, typer.Option(help="The reason. It is recorded.")],
) -> None:
    """Accept a journal that does not hold its published heads.

    For when a journal, its heads or their key are lost for good, and you have looked at
    what is left. A signed line with your name and the reason goes to the heads. The
    next start of the server writes a row `accepted` into the journal. Nothing is
    erased. Stop the server of this journal first.
    """
    from bridge.ledger.accept import accept  # noqa: PLC0415 - rarely needed

    read = config.read(config_file)
    accepted = accept(
        read.ledger,
        writer=writer,
        operator=operator(),
        reason=reason,
        clock=system_clock,
    )
    head, published = accepted.head, accepted.published
    before = f"row {published.seq}" if published else "no row"
    typer.echo(f"{writer}: accepted up to row {head.seq}; {before} was published")
    if accepted.torn:
        typer.echo(f"the rows that do not chain are in {accepted.torn}")
    if accepted.kept:
        typer.echo(f"the archive keeps {accepted.kept} rows that the journal lost")


@app.command(
    "attest",
    hidden=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def attest_journal() -> None:
    """Name the command that took the place of this one."""
    raise typer.BadParameter(
        "`meshca ledger attest` is called `meshca ledger accept` now, with the same "
        "options"
    )


def _compared(config_file: Path, journal: Path) -> Comparison:
    archive, _ = _open(config_file)
    try:
        return compare(journal, archive)
    finally:
        archive.close()


def _archive_line(result: Comparison) -> str:
    parts = [f"archive: {result.equal} rows agree"]
    parts += [f"{count} of {name} to come" for name, count in result.behind.items()]
    parts += [f"lost by their journal and kept: {name}" for name in result.aside]
    return ", ".join(parts)


@app.command("search")
def search(  # noqa: PLR0913 - options of a command
    *,
    config_file: ConfigFile,
    serial: Annotated[str, typer.Option(help="Serial number, in hex.")] = "",
    caller: Annotated[str, typer.Option(help="SPIFFE ID of the caller.")] = "",
    certificate: Annotated[
        str, typer.Option(help="Certificate fingerprint (SHA-256).")
    ] = "",
    key: Annotated[str, typer.Option(help="SHA-256 of the public key's DER.")] = "",
    kind: Annotated[str, typer.Option(help=", ".join(_KINDS))] = "",
    unsettled: Annotated[
        bool,
        typer.Option(
            "--unsettled",
            help="Attempts that ended `unknown` and are not settled by `reconcile`.",
        ),
    ] = False,
    since: Since = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Before this time.")] = "",
    limit: Annotated[
        int, typer.Option(min=1, help="The number of entries; the newest are shown.")
    ] = 100,
    output: Annotated[
        SearchOutput, typer.Option("--output", "-o", help=OUTPUT_HELP)
    ] = SearchOutput.TEXT,
) -> None:
    """Find entries of the archive, oldest first.

    An entry that matches is shown with the other entries of the same attempt. The
    server may be running; its newest entries arrive within a second. In a pipe, the
    columns are time, kind, caller, issuing CA, serial number, not after, rule and, for
    an attempt that ended `unknown`, what it was settled as, with tabs between them.
    Exits with 1 when nothing matches.
    """
    if unsettled and kind not in {"", Outcome.UNKNOWN}:
        raise typer.BadParameter("--unsettled: expected no other --kind than unknown")
    wanted = {
        "serial": _parsed_serial(serial),
        "caller": caller,
        "certificate": _parsed_digest(certificate, "--certificate"),
        "key": _parsed_digest(key, "--key"),
        "kind": Outcome.UNKNOWN.value if unsettled else _parsed_kind(kind),
        "unsettled": unsettled,
        "since": _parsed_moment(since, "--since"),
        "until": _parsed_moment(until, "--until"),
        "limit": limit,
    }
    archive, query = _open(config_file)
    try:
        found = _with_results(archive, archive.search(query(**wanted)))
    finally:
        archive.close()
    if output is SearchOutput.JSON:
        typer.echo(json.dumps([public(row) for row in found], ensure_ascii=False))
    elif found:
        show(found)
    if not found:
        if output is SearchOutput.TEXT:
            _complain("nothing found")
        raise typer.Exit(1)


def _with_results(
    archive: "Archive", rows: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    # Each entry, and in `settled` what became of an attempt that ended `unknown`.
    found = [dict(row) for row in rows]
    unknown = [row for row in found if row["kind"] == Outcome.UNKNOWN]
    results = {
        row["attempt"]: json.loads(row["body"])["result"]
        for row in archive.of_attempts([row["attempt"] for row in unknown], "settled")
    }
    for row in unknown:
        row["settled"] = results.get(row["attempt"], "")
    return found


@app.command("export")
def export(
    *,
    config_file: ConfigFile,
    since: Since = "",
    output: Annotated[
        ExportOutput,
        typer.Option("--output", "-o", help="For programs, or for a spreadsheet."),
    ] = ExportOutput.JSONL,
) -> None:
    """Write all entries of the archive to stdout, oldest first.

    With `jsonl`, each line is the journal's own, byte by byte: its SHA-256 is what the
    next row of the same writer repeats.
    """
    begin = _parsed_moment(since, "--since")
    archive, query = _open(config_file)
    try:
        rows = archive.search(query(since=begin))
        if output is ExportOutput.CSV:
            write_csv(rows)
        else:
            for row in rows:
                typer.echo(row["body"])
    finally:
        archive.close()


app.command("reconcile")(reconcile.reconcile)


def _open(config_file: Path) -> "tuple[Archive, Callable[..., Query]]":
    from bridge.ledger.archive.archive import Archive  # noqa: PLC0415 - see the top
    from bridge.ledger.archive.queries import Query  # noqa: PLC0415 - see the top

    read = config.read(config_file)
    return Archive.open(read.ledger.archive, make=False), Query


def _writer_line(writer: WriterReport) -> str:
    head = f"row {writer.head.seq} {writer.head.digest}" if writer.head else "none"
    parts = [
        f"{writer.writer}: {writer.rows} rows in {writer.segments} segments",
        f"head {head}",
        f"{writer.heads} published heads",
        f"{len(writer.open_intents)} attempts without an outcome",
    ]
    if writer.live:
        parts.append("being written")
    parts.extend(writer.accepted)
    parts.extend(f"torn entry kept in {path}" for path in writer.torn)
    return ", ".join(parts)


def _complain(text: str) -> None:
    Console(stderr=True).print(text, style="red", markup=False, soft_wrap=True)


# Options. A value that is mistyped is refused: the answer would be `nothing found`,
# and read as `it was never issued`.


def _parsed_serial(value: str) -> str:
    """Return a serial number in hex digits, as tools write it or empty."""
    digits = _plain(value).removeprefix("0x")
    if value and not _DIGITS.fullmatch(digits):
        raise _bad("--serial", "hex digits, such as 0a:1b or 0x0a1b", value)
    return digits


def _parsed_digest(value: str, option: str) -> str:
    """Return a SHA-256 in hex digits, as tools write it or empty."""
    digits = _plain(value)
    if value and not (len(digits) == _DIGEST_DIGITS and _DIGITS.fullmatch(digits)):
        raise _bad(option, "a SHA-256 in 64 hex digits", value)
    return digits


def _parsed_kind(value: str) -> str:
    """Return the kind of an entry, or empty."""
    if value and value not in _KINDS:
        raise _bad("--kind", f"one of {', '.join(_KINDS)}", value)
    return value


def _parsed_moment(value: str, option: str) -> int | None:
    """Return a time or a span before now in microseconds since 1970-01-01 UTC."""
    if not value:
        return None
    try:
        if match := _SPAN.fullmatch(value):
            found = datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            found = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        expected = "a time such as 2026-11-23T08:00, or a span such as 24h"
        raise _bad(option, expected, value) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return round(found.timestamp() * 1e6)


def _plain(value: str) -> str:
    return value.replace(":", "").strip().lower()


def _bad(option: str, expected: str, found: str) -> typer.BadParameter:
    return typer.BadParameter(f"{option}: expected {expected} (found {found!r})")
