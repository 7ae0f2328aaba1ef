"""`meshca hierarchy sign` and `rehearse`: the certificates of a hierarchy."""

import getpass
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from bridge.cli.console import operator
from bridge.errors import ConfigError
from bridge.hierarchy.ceremony import Ceremony, Keys, SignedCA, require_clock
from bridge.hierarchy.ceremony import cross_sign as cross_sign_one
from bridge.hierarchy.ceremony import rehearse as rehearse_all
from bridge.hierarchy.ceremony import sign as sign_one
from bridge.hierarchy.crl import SignedCRL, make_first
from bridge.hierarchy.keys import opened, secret_from
from bridge.hierarchy.output import CERTIFICATE, Output
from bridge.hierarchy.schema import Loaded, load
from bridge.hierarchy.words import lines_of, parse_digest
from bridge.registry import Secret
from bridge.system.clock import system_clock

HierarchyArgument = Annotated[
    Path, typer.Argument(metavar="HIERARCHY", help="The hierarchy file, in YAML.")
]
OutOption = Annotated[
    Path,
    typer.Option("--out", metavar="FOLDER", help="The folder of the ceremony's files."),
]
ModuleOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The PKCS#11 module of the HSM's vendor, in place of the one in the "
        "hierarchy file.",
    ),
]
PinOption = Annotated[
    int | None,
    typer.Option(
        "--pin-fd",
        metavar="NUMBER",
        help="A file descriptor whose next line is the PIN, the passphrase or the "
        "token. By default MESHCA_PIN_NAME of the environment, with the CA's name in "
        "capitals, or MESHCA_PIN; else a person is asked.",
    ),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="TIME",
        help="The time that you read elsewhere, such as 2027-01-31T12:00Z: the clock "
        "of this machine is held against it. Without it a person is asked.",
    ),
]
DigestOption = Annotated[
    str | None,
    typer.Option(
        "--digest",
        metavar="SHA256",
        help="The SHA-256 of the hierarchy file that was agreed, in hex or in words, "
        "as plan and rehearse show it: with another file nothing is signed.",
    ),
]


def sign(  # noqa: PLR0913 - one parameter for each option
    hierarchy: HierarchyArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The CA of the file.")],
    *,
    out: OutOption,
    csr: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A CSR of the CA's key, in PEM or DER, where its key is on another "
            "machine. Of the CSR only the public key is used.",
        ),
    ] = None,
    make_key: Annotated[
        bool,
        typer.Option("--make-key", help="Make the CA's own key if it is not there."),
    ] = False,
    module: ModuleOption = None,
    pin_fd: PinOption = None,
    time: TimeOption = None,
    digest: DigestOption = None,
) -> None:
    """Sign the certificate of the CA NAME with the key of the CA above it.

    All checks of the plan are made first, then those of this certificate: the clock,
    the CAs above, the key, and two linters on a certificate with a throwaway signature.
    Nothing is overwritten. A run that was cut off is completed by the next one.
    """
    loaded = _agreed(hierarchy, digest)
    confirm_clock(time)
    keys = keys_of(loaded, module, pin_fd, make=name if make_key else "")
    ceremony = ceremony_of(loaded, out, keys)
    _show(ceremony, sign_one(ceremony, name, csr=csr))


def cross_sign(  # noqa: PLR0913 - one parameter for each option
    hierarchy: HierarchyArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the other root is called.")
    ],
    *,
    certificate: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The certificate of the other root, in PEM."),
    ],
    by: Annotated[
        str, typer.Option(metavar="CA", help="The CA of the file that signs.")
    ],
    out: OutOption,
    module: ModuleOption = None,
    pin_fd: PinOption = None,
    time: TimeOption = None,
    digest: DigestOption = None,
) -> None:
    """Sign the root of another hierarchy, so that peers of this one can trust it.

    Subject, key identifier, usages and path length are the root's own, so the path
    length of the CA that signs has to be the greater one. The root has to be of the
    same organisation. The checks are those of sign, and the files are in
    FOLDER/NAME.by.CA. A run that was cut off is completed by the next one.
    """
    loaded = _agreed(hierarchy, digest)
    confirm_clock(time)
    ceremony = ceremony_of(loaded, out, keys_of(loaded, module, pin_fd))
    _show(ceremony, cross_sign_one(ceremony, name, certificate, by=by))


def rehearse(hierarchy: HierarchyArgument) -> None:
    """Hold the whole ceremony with throwaway keys, by the same code, and discard it."""
    loaded = load(hierarchy)
    lists: list[SignedCRL] = []
    found = rehearse_all(
        loaded,
        done=lambda one: typer.echo(f"{one.name}: {line_of(one.certificate)}"),
        then=lambda ceremony: lists.extend(make_first(ceremony)),
    )
    typer.echo(
        f"\nRehearsed: {len(found)} certificates and {len(lists)} first CRLs with "
        "throwaway keys passed every check, and were discarded."
    )
    typer.echo(f"{hierarchy}: SHA-256 {loaded.digest}")


def _agreed(path: Path, digest: str | None) -> Loaded:
    """Load the hierarchy file, if it is the one that was agreed."""
    loaded = load(path)
    if digest is not None and parse_digest(digest) != loaded.digest:
        raise ConfigError(
            f"{path}: is not the file that was agreed: its SHA-256 is {loaded.digest}, "
            f"and {digest} was given; restore the file, or have this one agreed and "
            "rehearsed again",
            rule="hierarchy.digest",
        )
    return loaded


def confirm_clock(told: str | None) -> None:
    """Hold the machine's clock against the time that a person reads elsewhere.

    Args:
        told: What the option has; None asks a person at the terminal.

    Raises:
        ConfigError: The clock is wrong, or nobody is there to tell.
    """
    if told is not None:
        require_clock(system_clock(), _time(told))
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            "--time: expected the time that you read elsewhere, such as "
            "2027-01-31T12:00Z: a ceremony does not trust a clock that nobody looked "
            "at",
            rule="hierarchy.clock",
        )
    shown = f"{system_clock():%Y-%m-%d %H:%M} UTC"
    if not typer.confirm(f"The clock of this machine says {shown}. Is that right?"):
        raise ConfigError(
            "the clock of this machine is not right: set it, and run the command again",
            rule="hierarchy.clock",
        )


def _time(told: str) -> datetime:
    try:
        found = datetime.fromisoformat(told)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ConfigError(
            "--time: expected a time with its zone, such as 2027-01-31T12:00Z (found "
            f"{told!r})",
            rule="hierarchy.clock",
        )
    return found.astimezone(UTC)


def keys_of(
    loaded: Loaded, module: Path | None, pin_fd: int | None, *, make: str = ""
) -> Keys:
    """Return what opens the key of each CA, and asks for its secret.

    Args:
        loaded: The hierarchy file.
        module: The PKCS#11 module, in place of the one in the file.
        pin_fd: See `PinOption`.
        make: The CA whose key is made if it is not there.
    """
    return lambda name: opened(
        *(name, loaded.file.cas[name].key, secret_of(name, pin_fd)),
        module=module,
        make=name == make,
    )


def ceremony_of(loaded: Loaded, out: Path, keys: Keys) -> Ceremony:
    """Return a ceremony of who runs this command."""
    return Ceremony(loaded=loaded, output=Output(out), keys=keys, operator=operator())


def secret_of(name: str, pin_fd: int | None) -> Secret:
    """Return what gives the secret of a key: see `keys.secret_from`."""
    prompt = None
    if sys.stdin.isatty():
        prompt = _ask
    return secret_from(name, file_descriptor=pin_fd, prompt=prompt)


def _ask(what: str) -> str:
    return getpass.getpass(f"{what[0].upper()}{what[1:]}: ", stream=sys.stderr)


def _show(ceremony: Ceremony, done: SignedCA) -> None:
    if done.was_resumed:
        typer.echo(f"{done.name} was signed before; its record is now complete")
    typer.echo(f"{ceremony.loaded.path}: SHA-256 {ceremony.loaded.digest}")
    typer.echo(f"{done.name}: {line_of(done.certificate)}")
    for path, digest in done.files.items():
        typer.echo(f"{ceremony.output.folder / path}\n  SHA-256 {digest}")
    typer.echo(f"Read aloud, the SHA-256 of {done.name}/{CERTIFICATE}:")
    for line in lines_of(done.files[f"{done.name}/{CERTIFICATE}"]):
        typer.echo(f"  {line}")


def line_of(certificate: x509.Certificate) -> str:
    """Return the subject of a certificate and the day of its end, for people."""
    return (
        f"{certificate.subject.rfc4514_string()} (valid to "
        f"{certificate.not_valid_after_utc:%Y-%m-%d})"
    )
