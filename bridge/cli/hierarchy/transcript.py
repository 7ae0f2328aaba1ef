"""`meshca hierarchy transcript`: verify, print and sign the record of a ceremony.

`meshca hierarchy digest` shows digests as they stand in it, to compare them by voice.
"""

from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.console import complain, group, warn
from bridge.cli.hierarchy.sign import ModuleOption, PinOption, secret_of
from bridge.errors import ConfigError
from bridge.hierarchy.keys import SIGN_SECONDS, opened_officer
from bridge.hierarchy.record import to_html
from bridge.hierarchy.schema import load
from bridge.hierarchy.transcript import (
    FILE_NAME,
    Record,
    Transcript,
    digest_of_file,
    officers_of,
    problems,
    read,
    require_officer,
)
from bridge.hierarchy.words import lines_of, parse_digest
from bridge.system.clock import system_clock
from bridge.system.files import write_new

app = group("Verify, print and sign the record of a ceremony.")

_FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The hierarchy file.")
]
_OutArgument = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", help=f"The folder of the ceremony's files, with {FILE_NAME}."
    ),
]
_HeadOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIGEST",
        help="The SHA-256 of the last line as the officers noted it, in hex or as "
        "words: it finds a cut at the end whatever else was taken away.",
    ),
]


@app.command()
def verify(file: _FileArgument, out: _OutArgument, *, head: _HeadOption = None) -> None:
    """Verify hashes, signatures, quorum, and the files that the transcript names.

    Exit status 1 if a line was changed, cut off or reordered, if fewer officers than
    the quorum have signed all entries, or if a file in OUT is not as it was.
    """
    loaded = load(file)
    noted = None if head is None else parse_digest(head)
    record = read(out / FILE_NAME)
    found = [
        *problems(
            record,
            officers_of(loaded),
            loaded.file.quorum,
            hierarchy=loaded.digest,
            head=noted,
        )
    ]
    for text in found:
        complain(f"{record.path}: {text}")
    if found:
        raise typer.Exit(1)
    if not loaded.file.quorum:
        warn(
            "the hierarchy file names no officers: whoever can write the transcript "
            "can write another one, and a cut at its end is found by --head only"
        )
    _show(record, loaded.file.quorum)


@app.command()
def sign(
    file: _FileArgument,
    out: _OutArgument,
    officer: Annotated[
        str, typer.Argument(metavar="OFFICER", help="The name in the hierarchy file.")
    ],
    *,
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="The officer's private key: a file in PEM, or a PKCS#11 URI such as "
            '"pkcs11:token=ada;object=officer".',
        ),
    ],
    module: ModuleOption = None,
    pin_fd: PinOption = None,
) -> None:
    """Sign all entries so far with the key of an officer.

    What was changed, or is not as the files in OUT are, is refused. Entries that follow
    have to be signed again.
    """
    loaded = load(file)
    officers = officers_of(loaded)
    require_officer(officer, officers.get(officer), officers)
    record = read(out / FILE_NAME)
    found = [*problems(record, officers, 0, hierarchy=loaded.digest)]
    if found:
        raise ConfigError("\n".join(f"{record.path}: {one}" for one in found))
    transcript = Transcript(record.path)
    secret = secret_of(officer, pin_fd)
    with opened_officer(officer, key, secret, module=module) as signer:
        require_officer(officer, signer.public_key(), officers)
        transcript.sign(officer, signer, system_clock(), timeout=SIGN_SECONDS)
    _show(read(record.path), loaded.file.quorum)


@app.command("print")
def print_record(
    file: _FileArgument,
    out: _OutArgument,
    html: Annotated[
        Path, typer.Argument(metavar="HTML", help="The page to write; a new file.")
    ],
) -> None:
    """Write the transcript as one HTML page to print: no scripts, nothing to load.

    A transcript that was changed is refused. One that the quorum has yet to sign is
    printed, and the page says so at its top.
    """
    loaded = load(file)
    record = read(out / FILE_NAME)
    found = problems(
        record, officers_of(loaded), loaded.file.quorum, hierarchy=loaded.digest
    )
    page = to_html(
        record,
        title=loaded.file.name,
        officers={one.name: one.role for one in loaded.file.officers},
        quorum=loaded.file.quorum,
        problems=[*found],
    )
    write_new(html.parent, {html.name: page.encode()})
    typer.echo(f"Written: {html}")


def digest(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Any files.")],
) -> None:
    """Show the SHA-256 of files, in hex and as words to read aloud.

    Whoever carries a file from one machine to another reads the words on both. The
    transcript has the same digest.
    """
    for path in files:
        if path.is_dir():
            raise ConfigError(f"{path}: expected a file (found a folder)")
        found = digest_of_file(path)
        typer.echo(f"{path}: {found}")
        _say(found)


def _show(record: Record, quorum: int) -> None:
    signed = ", ".join(one.officer for one in record.signatures) or "nobody"
    typer.echo(
        f"{record.path}: {len(record.entries)} entries, unchanged; signed by {signed}"
    )
    if quorum:
        found = len(record.signatures)
        met = "met" if found >= quorum else "not met"
        typer.echo(f"Quorum {met}: {found} of {quorum} have signed all entries")
    typer.echo(f"SHA-256 of the last line, to be noted on paper: {record.head}")
    _say(record.head)


def _say(digest_hex: str) -> None:
    for line in lines_of(digest_hex):
        typer.echo(f"  {line}")
