"""`meshca token`: stand in for an API server, so that a first try needs no cluster."""

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.cli.console import warn
from bridge.cli.demo_setup.scenario import DemoCluster
from bridge.dns_names import is_label, is_subdomain
from bridge.errors import ConfigError
from bridge.system.clock import system_clock
from bridge.system.files import read_secret, replace, write_new
from bridge.x509.pem import key_pem

ISSUER = "https://kubernetes.default.svc"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def token(
    *,
    sa: Annotated[
        str,
        typer.Option(
            metavar="NAMESPACE/NAME", help="The service account that the token is of."
        ),
    ],
    audience: Annotated[
        str,
        typer.Option(help="The audience: istio-ca, or identity.l5d.io for Linkerd."),
    ],
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The throwaway key; made if it is absent."),
    ] = Path("cluster.key"),
    jwks: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Where its public half is written, for the bridge."
        ),
    ] = Path("jwks.json"),
    issuer: Annotated[
        str, typer.Option(metavar="URL", help="The token's issuer.")
    ] = ISSUER,
) -> None:
    """Sign a service-account token with a throwaway key, in place of an API server.

    For a first try, without a cluster: a bridge whose configuration names the file of
    --jwks takes the token for one hour. Real tokens come from the API server, and this
    command has no part in them.
    """
    namespace, slash, name = sa.partition("/")
    if not (slash and is_label(namespace) and is_subdomain(name)):
        raise typer.BadParameter(
            f"--sa: expected NAMESPACE/NAME, such as shop/web (found {sa!r})"
        )
    if not audience.strip():
        raise typer.BadParameter("--audience: expected such as istio-ca")
    cluster = DemoCluster("Kubernetes", issuer, _key(key))
    public = cluster.jwks().encode()
    if not jwks.exists() or jwks.read_bytes() != public:
        _write_jwks(jwks, public, key)
    typer.echo(cluster.token(namespace, name, system_clock(), audience))


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        write_new(path.parent, {path.name: key_pem(made)})
        warn(f"{path} is a throwaway key: whoever has it is every workload")
        return made
    try:
        found = load_pem_private_key(read_secret(path), None)
    except (ValueError, TypeError):
        found = None
    if isinstance(found, ec.EllipticCurvePrivateKey) and found.key_size == 256:  # noqa: PLR2004
        return found
    raise ConfigError(
        f"{path}: expected a key on P-256 in PEM, as this command makes it: give "
        "--key a name that is not taken"
    )


def _write_jwks(path: Path, content: bytes, key: Path) -> None:
    # A file of keys that are not this command's may be the one that a bridge uses.
    if path.exists():
        raise ConfigError(
            f"{path}: expected the public half of {key}, or no file: give --jwks a "
            "name that is not taken"
        )
    replace(path, content, 0o644)
