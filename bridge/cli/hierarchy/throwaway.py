"""`meshca hierarchy throwaway`: a chain to try things with, all on one machine."""

from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.console import complain, warn
from bridge.cli.hierarchy.sign import line_of
from bridge.dataplanes.exposure import exposure_of
from bridge.dataplanes.planes import DataPlane
from bridge.errors import BridgeError
from bridge.hierarchy.export import WARNING, Layout, write
from bridge.hierarchy.issuing_csr import read_issuing_key
from bridge.hierarchy.throwaway import (
    Hierarchy,
    ThrowawaySpec,
    make,
)
from bridge.spiffe import TrustDomain
from bridge.x509.algorithm import KeyAlgorithm

_USAGE_ERROR = 2


def throwaway(  # noqa: PLR0913 - one parameter for each option
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Made with mode 0700 if absent.")
    ],
    *,
    trust_domain: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Such as corp.example; may be repeated."),
    ],
    region: Annotated[
        str, typer.Option(metavar="NAME", help="The region of the intermediate.")
    ] = "eu",
    data_plane: Annotated[
        list[DataPlane] | None,
        typer.Option(
            help="The proxies that will verify leaves; may be repeated.",
            show_default=DataPlane.SIDECAR,
        ),
    ] = None,
    permit_dns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One more DNS name, with its subdomains."),
    ] = None,
    key: Annotated[
        KeyAlgorithm, typer.Option(help="Key of each CA whose key is made here.")
    ] = "p256",
    issuing_csr: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A CSR of the issuing CA's key, in PEM or DER, where the key stays in "
            "a token such as an HSM. Of the CSR only the public key is used.",
        ),
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="Files of the issuing CA: a key with its chain, a kubernetes.io/tls "
            "folder, or Istio's cacerts folder."
        ),
    ] = "key",
) -> None:
    """Make a throwaway root, regional intermediate and issuing CA in FOLDER.

    Nothing is overwritten. Use the keys to try things only: the root was never offline.
    With --issuing-csr no key of the issuing CA is written: it stays in its token.
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
    issuing_key = None if issuing_csr is None else read_issuing_key(issuing_csr)
    hierarchy = make(spec, issuing_key=issuing_key)
    written = write(hierarchy, folder, layout=layout)
    _show(hierarchy, written)
    warn(WARNING)


def _show(hierarchy: Hierarchy, written: tuple[Path, ...]) -> None:
    tiers = (hierarchy.root, hierarchy.intermediate, hierarchy.issuing)
    for depth, tier in enumerate(tiers):
        typer.echo(f"{'  ' * depth}{line_of(tier.certificate)}")
    for note in hierarchy.notes:
        typer.echo(f"note: {note}")
    typer.echo("\nIf the issuing key were compromised, these would accept:")
    chain = [tier.certificate for tier in reversed(tiers)]
    for exposure in exposure_of(chain):
        typer.echo(f"  {exposure.data_plane}: {exposure.accepts}")
        if exposure.narrower:
            typer.echo(f"    to limit this: {exposure.narrower}")
    typer.echo("\nWritten:")
    for path in written:
        typer.echo(f"  {path}")
