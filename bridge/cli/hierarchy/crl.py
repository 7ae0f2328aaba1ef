"""`meshca hierarchy crl`: the next certificate revocation list of a CA."""

from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.hierarchy.sign import (
    HierarchyArgument,
    ModuleOption,
    OutOption,
    PinOption,
    TimeOption,
    ceremony_of,
    confirm_clock,
    keys_of,
)
from bridge.hierarchy.crl import LONGEST_DAYS, REASONS, CRLRequest, make_crl
from bridge.hierarchy.schema import load
from bridge.hierarchy.words import lines_of

_MOST_SERIAL_BITS = 159
_REASONS = ", ".join(REASONS)


def crl(  # noqa: PLR0913 - one parameter for each option
    hierarchy: HierarchyArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The CA whose CRL is made.")
    ],
    *,
    out: OutOption,
    revoke: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Revoke the certificate of this CA; may be repeated."
        ),
    ] = None,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Revoke the certificate in a file; may be repeated."
        ),
    ] = None,
    serial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEX", help="Revoke this serial number, in hex; may be repeated."
        ),
    ] = None,
    confirm_unknown_serial: Annotated[
        bool,
        typer.Option(
            "--confirm-unknown-serial",
            help="The serial numbers are right, though OUT has no such certificate.",
        ),
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help=f"Why, of all that is revoked now: {_REASONS}."
        ),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help=f"Days to the next update, at most {LONGEST_DAYS}.",
            show_default="as long as allowed, within the validity of the CA",
        ),
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The last CRL of this CA, where OUT does not have it: its entries "
            "stay, and its number is the one to be above.",
        ),
    ] = None,
    module: ModuleOption = None,
    pin_fd: PinOption = None,
    time: TimeOption = None,
) -> None:
    """Make the next CRL of the CA NAME with its key.

    It revokes what the last one did, and what is named now. Without anything named it
    only has a later next update. It is about CA certificates alone, but of an issuing
    CA about all, as Envoy wants a CRL for the leaf too.
    """
    request = CRLRequest(
        names=tuple(revoke or ()),
        certificates=tuple(certificate or ()),
        serials=tuple(map(_serial, serial or ())),
        takes_unknown=confirm_unknown_serial,
        reason=None if reason is None else REASONS.get(reason),
        days=days,
        previous=previous,
    )
    if reason is not None and request.reason is None:
        raise typer.BadParameter(f"--reason: expected one of {_REASONS}")
    if reason is not None and not (revoke or certificate or serial):
        raise typer.BadParameter(
            "--reason: expected --revoke, --certificate or --serial"
        )
    confirm_clock(time)
    loaded = load(hierarchy)
    ceremony = ceremony_of(loaded, out, keys_of(loaded, module, pin_fd))
    done = make_crl(ceremony, name, request)
    if done.was_resumed:
        typer.echo("a CRL was signed before; its record is now complete")
    due = done.crl.next_update_utc
    typer.echo(
        f"{name}: CRL number {done.number}, {len(done.crl)} revoked, next update "
        f"{due:%Y-%m-%dT%H:%M:%SZ}"
    )
    for path, digest in done.files.items():
        typer.echo(f"{out / path}\n  SHA-256 {digest}")
        if path.endswith(".der"):
            for line in lines_of(digest):
                typer.echo(f"  {line}")


def _serial(text: str) -> int:
    digits = text.lower().removeprefix("0x").replace(":", "")
    try:
        found = int(digits, 16) if digits.isalnum() else 0
    except ValueError:
        found = 0
    if found <= 0 or found.bit_length() > _MOST_SERIAL_BITS:
        raise typer.BadParameter(
            f"--serial: expected a positive number of at most {_MOST_SERIAL_BITS} bits "
            f"in hex, such as 0a:1b or 0a1b (found {text!r})"
        )
    return found
