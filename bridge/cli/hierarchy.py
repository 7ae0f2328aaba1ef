"""`meshca hierarchy`: the offline side. So far, a throwaway hierarchy to try with."""

from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.console import complain, warn
from bridge.dataplanes.exposure import exposure_of
from bridge.dataplanes.linkerd import require_verifiable
from bridge.dataplanes.planes import DataPlane
from bridge.errors import BridgeError
from bridge.hierarchy.export import WARNING, Layout, write
from bridge.hierarchy.throwaway import (
    Hierarchy,
    KeyAlgorithm,
    ThrowawaySpec,
    Tier,
    make,
)
from bridge.spiffe import TrustDomain
from bridge.system.clock import system_clock
from bridge.x509.path import validate_chain

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    help="Make the chain above an issuing CA.",
    no_args_is_help=True,
)

_USAGE_ERROR = 2


@app.callback()
def _group() -> None:
    # With a callback, the one command that there is so far is called by its name.
    pass


@app.command()
def init(  # noqa: PLR0913 - one parameter for each option
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Made with mode 0700 if absent.")
    ],
    *,
    trust_domain: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Such as corp.example; may be repeated."),
    ],
    region: Annotated[
        str, typer.Option(metavar="NAME", help="Whose intermediate it is.")
    ] = "eu",
    data_plane: Annotated[
        list[DataPlane] | None,
        typer.Option(
            help="Which proxies will verify leaves; may be repeated.",
            show_default=DataPlane.SIDECAR,
        ),
    ] = None,
    permit_dns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One more DNS name, and what is below it."),
    ] = None,
    key: Annotated[
        KeyAlgorithm, typer.Option(help="Key of each of the three CAs.")
    ] = "p256",
    layout: Annotated[
        Layout, typer.Option(help="Files of the issuing CA: plain, Secret, or Istio's.")
    ] = "key",
) -> None:
    """Make a throwaway root, regional intermediate and issuing CA in FOLDER.

    Nothing is overwritten. The keys are for trying things: the root was never offline.
    """
    try:
        domains = tuple(TrustDomain(name) for name in trust_domain)
    except BridgeError as error:
        complain(f"--trust-domain: {error} (found {error.detail})")
        raise typer.Exit(_USAGE_ERROR) from None
    spec = ThrowawaySpec(
        trust_domains=domains,
        region=region,
        data_planes=frozenset(data_plane or [DataPlane.SIDECAR]),
        key=key,
        permitted_dns=tuple(permit_dns or ()),
    )
    hierarchy = make(spec)
    _require_valid(hierarchy, spec.data_planes)
    written = write(hierarchy, folder, layout=layout)
    _show(hierarchy, written)
    warn(WARNING)


def _require_valid(hierarchy: Hierarchy, planes: frozenset[DataPlane]) -> None:
    # Before the first file: a hierarchy that the bridge would refuse is not handed out.
    chain = validate_chain(
        hierarchy.issuing.certificate,
        (hierarchy.intermediate.certificate,),
        (hierarchy.root.certificate,),
        now=system_clock(),
        source="the new hierarchy",
    )
    if DataPlane.LINKERD in planes:
        path = [certificate for _, certificate in chain.tiers()]
        require_verifiable(path, with_uri=True, source="the new hierarchy")


def _show(hierarchy: Hierarchy, written: tuple[Path, ...]) -> None:
    tiers = (hierarchy.root, hierarchy.intermediate, hierarchy.issuing)
    for depth, tier in enumerate(tiers):
        typer.echo(f"{'  ' * depth}{_line(tier)}")
    for note in hierarchy.notes:
        typer.echo(f"note: {note}")
    typer.echo("\nA thief of the issuing CA's key could make these accept:")
    chain = [tier.certificate for tier in reversed(tiers)]
    for exposure in exposure_of(chain):
        typer.echo(f"  {exposure.data_plane}: {exposure.accepts}")
        if exposure.narrower:
            typer.echo(f"    less with: {exposure.narrower}")
    typer.echo("\nWritten:")
    for path in written:
        typer.echo(f"  {path}")


def _line(tier: Tier) -> str:
    certificate = tier.certificate
    return (
        f"{certificate.subject.rfc4514_string()} (valid to "
        f"{certificate.not_valid_after_utc:%Y-%m-%d})"
    )
