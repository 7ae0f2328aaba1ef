"""`meshca request`: get a certificate as a workload would."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.cli.chain_tree import print_chain
from bridge.cli.console import OutputOption, print_json, rfc3339
from bridge.client.istio import IstioReply, IstioRequest, ask, renew
from bridge.client.linkerd import LinkerdReply, LinkerdRequest, certify, is_identity
from bridge.dns_names import is_address
from bridge.errors import ConfigError
from bridge.system.files import write_new
from bridge.x509.pem import parse_certificates, pem_of

_LONGEST = 2**63 - 1
"""What a number of the API can be."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def request(  # noqa: PLR0913 - each is an option of its own
    *,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The address of the bridge.")
    ],
    roots: Annotated[
        Path,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Trust anchors, PEM."
        ),
    ],
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="The token."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A client certificate instead of a token.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Its key."),
    ] = None,
    front: Annotated[
        Literal["istio", "linkerd"], typer.Option(help="The mesh whose API is used.")
    ] = "istio",
    identity: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="For Linkerd: the identity of the workload's proxy.",
        ),
    ] = "",
    cluster: Annotated[str, typer.Option(help="Value of the clusterid header.")] = "",
    key: Annotated[
        Literal["p256", "p384", "rsa2048"], typer.Option(help="Key of the leaf.")
    ] = "p256",
    ttl: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=_LONGEST,
            help="Requested lifetime; 0 is the default.",
        ),
    ] = 0,
    cert_signer: Annotated[str, typer.Option(help="Istio's CertSigner.")] = "",
    server_name: Annotated[
        str | None,
        typer.Option(help="Name in the bridge's certificate, if not the host."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="The longest to wait.")
    ] = 15.0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write key.pem, chain.pem and roots.pem."),
    ] = None,
    output: OutputOption = "text",
) -> None:
    """Make a key, request a certificate over a mesh's API, check it and show it."""
    _require_usable(address, token_file, certificate, key_file, out)
    _require_sendable({"--cluster": cluster, "--cert-signer": cert_signer})
    if front == "linkerd":
        foreign = [certificate, cluster, ttl, cert_signer, server_name, key != "p256"]
        _require_linkerd(identity, token_file, foreign)
        wanted = LinkerdRequest(
            address=address,
            anchors=parse_certificates(roots.read_bytes(), f"--roots: {roots}"),
            identity=identity,
            token=_token(token_file).encode("ascii") if token_file else b"",
            timeout_seconds=timeout,
        )
        _show_linkerd(certify(wanted), roots, out, output)
        return
    if identity:
        raise typer.BadParameter("--identity is part of Linkerd's API only")
    once_or_more = renew if certificate else ask
    answer = once_or_more(
        IstioRequest(
            roots_name=str(roots),
            address=address,
            roots=_roots(roots),
            token=_token(token_file) if token_file else None,
            certificate=certificate.read_bytes() if certificate else None,
            certificate_key=key_file.read_bytes() if key_file else None,
            cluster=cluster,
            key=key,
            ttl_seconds=ttl,
            cert_signer=cert_signer,
            server_name=server_name,
            timeout_seconds=timeout,
        )
    )
    _show_istio(answer, out, output)


def _show_istio(answer: IstioReply, out: Path | None, output: str) -> None:
    *chain, roots = answer.cert_chain
    _write(out, answer.key_pem, chain, roots.encode("ascii"))
    if output == "json":
        print_json({"cert_chain": list(answer.cert_chain)})
        return
    print_chain(
        [
            certificate
            for text in answer.cert_chain
            for certificate in parse_certificates(text.encode(), "the answer")
        ]
    )


def _show_linkerd(
    answer: LinkerdReply, roots: Path, out: Path | None, output: str
) -> None:
    *below, _ = answer.certificates()
    chain = [pem_of(one).decode("ascii") for one in below]
    # Not read again for nothing: a pipe gives its content once.
    anchors = b"" if out is None else roots.read_bytes()
    _write(out, answer.key_pem, chain, anchors)
    valid_until = rfc3339(int(answer.valid_until.timestamp()))
    if output == "json":
        print_json({"cert_chain": chain, "valid_until": valid_until})
        return
    print_chain(answer.certificates())
    typer.echo(f"the reply says: valid until {valid_until}")


def _require_linkerd(
    identity: str, token_file: Path | None, foreign: Sequence[object]
) -> None:
    if any(foreign):
        raise typer.BadParameter(
            "--certificate, --cluster, --ttl, --cert-signer, --server-name and --key "
            "are not part of Linkerd's API"
        )
    if token_file is None:
        raise typer.BadParameter("expected --token-file")
    if not is_identity(identity):
        raise typer.BadParameter(
            "--identity: expected ACCOUNT.NAMESPACE.serviceaccount.identity."
            f"CONTROL-PLANE-NAMESPACE.TRUST-DOMAIN (found {identity!r})"
        )


def _require_usable(
    address: str,
    token_file: Path | None,
    certificate: Path | None,
    key_file: Path | None,
    out: Path | None,
) -> None:
    # Before the request: every certificate that is issued is recorded.
    if (certificate is None) != (key_file is None):
        raise typer.BadParameter("expected --certificate and --key-file together")
    if certificate is not None and token_file is not None:
        raise typer.BadParameter("expected --token-file or --certificate, not both")
    if not is_address(address) or "/" in address:
        raise typer.BadParameter(f"--address: expected HOST:PORT (found {address!r})")
    taken = [name for name in _RESULTS if out is not None and (out / name).exists()]
    if taken:
        raise ConfigError(f"{out}: expected none of these files: {', '.join(taken)}")


def _require_sendable(values: Mapping[str, str]) -> None:
    # The transport would refuse these values without naming the option.
    for option, value in values.items():
        if not (value.isascii() and value.isprintable()):
            raise typer.BadParameter(
                f"{option}: expected printable ASCII characters (found {value!a})"
            )


_RESULTS = ("key.pem", "chain.pem", "roots.pem")


def _write(out: Path | None, key: bytes, chain: Sequence[str], roots: bytes) -> None:
    if out is not None:
        contents = (key, "".join(chain).encode("ascii"), roots)
        write_new(out, dict(zip(_RESULTS, contents, strict=True)))


def _roots(path: Path) -> bytes:
    # With bad anchors, the TLS library only says that the handshake failed.
    # It does not take text around the blocks either.
    return pem_of(*parse_certificates(path.read_bytes(), f"--roots: {path}"))


def _token(path: Path) -> str:
    token = path.read_bytes().strip()
    if not token.isascii() or not token.decode().isprintable() or b" " in token:
        raise ConfigError(f"{path}: expected a token, in plain text")
    return token.decode()
