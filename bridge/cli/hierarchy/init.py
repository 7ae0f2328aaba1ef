"""`meshca hierarchy init`: writes a commented hierarchy file to begin with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn, get_args

import typer

from bridge.cli.console import complain
from bridge.errors import BridgeError
from bridge.hierarchy.schema import parse
from bridge.hierarchy.schema.profiles import (
    PROFILES,
    RootBackend,
    StartingPoint,
    render,
)
from bridge.system.files import write_new

_USAGE_ERROR = 2


def init(  # noqa: PLR0913 - one parameter for each option
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Written; must not exist yet.")
    ] = Path("hierarchy.yaml"),
    *,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(PROFILES)}. Without it, this command asks.",
        ),
    ] = None,
    organisation: Annotated[
        str | None, typer.Option(metavar="NAME", help="O of every CA.")
    ] = None,
    trust_domain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Such as corp.example; may be repeated."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An intermediate each; may be repeated."),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An issuing CA each, in every region; may be repeated.",
        ),
    ] = None,
    root_key: Annotated[
        RootBackend | None,
        typer.Option(help="Where the root's key lives, and those of intermediates."),
    ] = None,
) -> None:
    """Write a commented hierarchy file: root, regions, and an issuing CA per cluster.

    What is not given as an option is asked for, or with --profile has an example value.
    """
    asks = profile is None
    name = profile or _choose("Profile", [*PROFILES])
    if name not in PROFILES:
        _refuse(f"--profile: expected one of {', '.join(PROFILES)} (found {name!r})")
    found = PROFILES[name]

    def one(given: str | None, question: str, example: str) -> str:
        return given or (_ask(question, example) if asks else example)

    def some(given: list[str] | None, question: str, example: str) -> tuple[str, ...]:
        if given or not asks:
            return tuple(given or (example,))
        return tuple(_ask(f"{question} (blanks between)", example).split())

    backend: str = root_key or get_args(RootBackend)[0]
    if asks and root_key is None:
        backend = _choose(
            "Keys of the root and of intermediates", get_args(RootBackend)
        )
    try:
        text = render(
            StartingPoint(
                profile=found,
                organisation=one(organisation, "Organisation", "Corp"),
                trust_domains=some(trust_domain, "Trust domains", "corp.example"),
                regions=some(region, "Regions", "eu"),
                clusters=some(cluster, "Clusters of each region", "prod"),
                root_backend="file" if backend == "file" else "pkcs11",
            )
        )
        # Two names that become one, such as a region `root`, are found here.
        parse(text.encode(), file)
    except BridgeError as error:
        _refuse(f"{error}" + (f" (found {error.detail})" if error.detail else ""))
    write_new(file.parent, {file.name: text.encode()})
    typer.echo(f"{file}: written; see it with `meshca hierarchy plan {file}`")


def _ask(question: str, default: str) -> str:
    answer: str = typer.prompt(question, default=default)
    return answer.strip()


def _choose(question: str, choices: Sequence[str]) -> str:
    while True:
        answer = _ask(f"{question} ({', '.join(choices)})", choices[0])
        if answer in choices:
            return answer
        complain(f"expected one of {', '.join(choices)} (found {answer!r})")


def _refuse(text: str) -> NoReturn:
    complain(text)
    raise typer.Exit(_USAGE_ERROR)
