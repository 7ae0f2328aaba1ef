"""`meshca ledger verify` and `accept`: the journals, their chains and their heads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bridge import config
from bridge.cli.console import (
    ConfigOption,
    OutputOption,
    complain,
    operator,
    print_json,
    warn,
)
from bridge.cli.ledger.output import verified
from bridge.cli.ledger.search import open_archive
from bridge.ledger.verify import Comparison, Report, WriterReport, compare, verify
from bridge.system.clock import system_clock


def verify_journals(  # noqa: PLR0913 - options of a command
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
    without_heads: Annotated[
        bool,
        typer.Option(
            "--without-heads",
            help="Verify the hash chains alone. A journal that was cut, or replaced as "
            "a whole, is not found.",
        ),
    ] = False,
    archive: Annotated[
        bool,
        typer.Option("--archive", help="Compare every row with the archive, too."),
    ] = False,
    output: OutputOption = "text",
) -> None:
    """Recompute every hash chain and compare it with the published heads.

    Exits with 1 and names file and line if something does not verify, or if no head of
    a journal was published: then nothing outside it vouches for it. The server may be
    running.
    """
    if without_heads and heads is not None:
        raise typer.BadParameter("expected one of --heads and --without-heads")
    if archive and config_file is None:
        raise typer.BadParameter("--archive: expected -c FILE, which names the archive")
    if config_file is not None and journal is None:
        journal, sink, public_key = _places_of(config_file, public_key)
        heads = None if without_heads else heads or sink
    elif config_file is not None or journal is None:
        raise typer.BadParameter("expected one of -c FILE and --journal FOLDER")
    report = verify(journal, heads, public_key)
    compared = None
    if archive and config_file is not None and report.intact:
        compared = _compared(config_file, journal)
    _tell_verified(report, compared, output)
    problems = [*report.problems, *(compared.problems if compared else ())]
    for writer in report.writers:
        problems += writer.problems
    if without_heads:
        warn("without the published heads, a journal that was cut is not found")
    else:
        problems += _unvouched(report, heads)
    for problem in problems:
        complain(problem)
    if problems:
        raise typer.Exit(1)


def _unvouched(report: Report, heads: Path | None) -> Iterator[str]:
    way_out = "give the published heads with --heads FILE, or use --without-heads"
    if heads is not None:
        way_out = (
            f"{heads} has no head of it. If that file was emptied or replaced, put the "
            "right one back. If the server never started, use --without-heads"
        )
    for writer in report.writers:
        if not (writer.is_vouched or writer.problems):
            yield (
                f"{writer.writer}: nothing outside this journal vouches for it, so "
                f"that a journal that was cut or replaced is not found: {way_out}"
            )


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
        print_json(verified(report, compared))
        return
    for writer in report.writers:
        typer.echo(_writer_line(writer))
    if compared is not None:
        typer.echo(_archive_line(compared))


def accept_journal(
    *,
    config_file: ConfigOption,
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


def attest_journal() -> None:
    """Name the command that took the place of this one."""
    raise typer.BadParameter(
        "`meshca ledger attest` is called `meshca ledger accept` now, with the same "
        "options"
    )


def _compared(config_file: Path, journal: Path) -> Comparison:
    archive = open_archive(config_file)
    try:
        return compare(journal, archive)
    finally:
        archive.close()


def _archive_line(result: Comparison) -> str:
    parts = [f"archive: {result.equal} rows agree"]
    parts += [f"{count} of {name} to come" for name, count in result.behind.items()]
    parts += [f"lost by their journal and kept: {name}" for name in result.aside]
    return ", ".join(parts)


def _writer_line(writer: WriterReport) -> str:
    head = f"row {writer.head.seq} {writer.head.digest}" if writer.head else "none"
    segments = "segment" if writer.segments == 1 else "segments"
    parts = [
        f"{writer.writer}: {writer.rows} rows in {writer.segments} {segments}",
        f"head {head}",
        f"{writer.heads} published heads"
        + (f" up to row {writer.vouched}" if writer.heads else ""),
        f"{len(writer.open_intents)} attempts without an outcome",
    ]
    if writer.live:
        parts.append("being written")
    parts.extend(writer.accepted)
    parts.extend(f"torn entry kept in {path}" for path in writer.torn)
    return ", ".join(parts)
