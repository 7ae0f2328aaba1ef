"""`meshca hierarchy export`: what a ceremony made, in the shapes that others read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.console import operator
from bridge.cli.hierarchy.sign import (
    HierarchyArgument,
    ModuleOption,
    OutOption,
    PinOption,
    TimeOption,
    confirm_clock,
    keys_of,
    secret_of,
)
from bridge.errors import ConfigError
from bridge.hierarchy.ceremony import verified
from bridge.hierarchy.export.shapes import (
    CRL_SHAPE,
    SHAPES,
    Files,
    ShapeOptions,
    VaultIssuer,
)
from bridge.hierarchy.export.source import (
    ClusterExport,
    ca_files,
    cluster_files,
    read_key,
)
from bridge.hierarchy.output import Output
from bridge.hierarchy.plan import plan_of
from bridge.hierarchy.schema import Loaded, load
from bridge.hierarchy.transcript import FILE_NAME, HIERARCHY, Transcript
from bridge.system.clock import system_clock
from bridge.system.files import read_public, write_new

_SHAPES = ", ".join(SHAPES)


def export(  # noqa: PLR0913 - one parameter for each option
    hierarchy: HierarchyArgument,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A CA of the file, or a cluster of its certificates."
        ),
    ],
    *,
    out: OutOption,
    shape: Annotated[
        str | None,
        typer.Option("--as", metavar="SHAPE", help=f"Of a CA, with --to: {_SHAPES}."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the files of --as are written."),
    ] = None,
    kubeadm: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of a cluster: a folder for each node, to be its /etc/kubernetes, for "
            "kubeadm's external CA mode.",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of a cluster: for each node a folder for each component, with its "
            "options, for an installation by hand.",
        ),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Only this node; may be repeated."),
    ] = None,
    account_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The key that signs the tokens of service accounts, sa.key of a "
            "cluster that runs. Without it a new one is made.",
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of Secrets, ConfigMaps and issuers of --as."
        ),
    ] = None,
    signer: Annotated[
        str, typer.Option(metavar="NAME", help="signerName of cluster-trust-bundle.")
    ] = "istio.io/istiod-ca",
    bundle: Annotated[
        str,
        typer.Option(metavar="NAME", help="End of the name of cluster-trust-bundle."),
    ] = "root-cert",
    vault_server: Annotated[
        str | None, typer.Option(metavar="URL", help="Of vault-issuer.")
    ] = None,
    vault_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="MOUNT/sign/ROLE.")
    ] = None,
    vault_role: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the login at Vault.")
    ] = None,
    vault_service_account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose token is the login.")
    ] = None,
    vault_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Verifies Vault's server, in PEM."),
    ] = None,
    module: ModuleOption = None,
    pin_fd: PinOption = None,
    time: TimeOption = None,
) -> None:
    """Write a CA, or the certificates of a cluster, in the shape that a reader wants.

    A CA is written as --as says into --to. For a cluster, --kubeadm or --files issues
    the certificates of its components with the keys of its three CAs, once the clock is
    confirmed; no key of a CA is written. The plan is held to every rule, and the CAs to
    the file, before anything is. Nothing is overwritten, and every file is readable by
    its owner only.
    """
    loaded, output = load(hierarchy), Output(out)
    folder = _one_of(name, shape, to, kubeadm, files)
    # Before anything is signed: files that cannot be written are certificates for none.
    _require_new(folder, output)
    if shape is None:
        confirm_clock(time)
    plan_of(loaded, now=system_clock()).require_passes()
    if shape is not None:
        options = ShapeOptions(
            namespace=namespace,
            signer=signer,
            bundle=bundle,
            vault=_vault(
                vault_ca,
                server=vault_server,
                path=vault_path,
                role=vault_role,
                service_account=vault_service_account,
            ),
        )
        made = _in_shape(loaded, output, name, shape, options, pin_fd)
    else:
        wanted = ClusterExport(
            cluster=name,
            layout="kubeadm" if kubeadm else "files",
            nodes=tuple(node or ()),
            account_key=(
                read_key(account_key, secret_of(name, pin_fd)) if account_key else None
            ),
        )
        made = _issued(loaded, output, wanted, module, pin_fd)
    _record(loaded, output, name, folder, made)
    write_new(folder, made)
    for path in made:
        typer.echo(f"{folder / path}")


def _one_of(
    name: str,
    shape: str | None,
    to: Path | None,
    kubeadm: Path | None,
    files: Path | None,
) -> Path:
    """Return the folder to write to; exactly one kind of export was asked for."""
    if shape is not None and shape not in SHAPES:
        raise typer.BadParameter(f"--as: expected one of {_SHAPES} (found {shape})")
    if (shape is None) != (to is None):
        raise typer.BadParameter("--as and --to are given together")
    folders = [one for one in (to, kubeadm, files) if one is not None]
    if len(folders) != 1:
        raise typer.BadParameter(
            f"expected what to export of {name}: --as with --to for a CA, --kubeadm or "
            "--files for a cluster, one of them"
        )
    return folders[0]


def _require_new(folder: Path, output: Output) -> None:
    if folder.resolve().is_relative_to(output.folder.resolve()):
        raise ConfigError(
            f"{folder}: expected a folder outside {output.folder}: that one is carried "
            "and shown around, and keys are among what is exported",
            rule="hierarchy.export",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: expected a new or an empty folder: nothing is overwritten, and "
            "no file of an earlier export is to stay beside the new ones",
            rule="hierarchy.export",
        )


def _in_shape(
    loaded: Loaded,
    output: Output,
    name: str,
    shape: str,
    options: ShapeOptions,
    pin_fd: int | None,
) -> Files:
    # Proxies are told of a revocation by the lists of this very chain.
    _require_verified(loaded, output, [name], also_revoked=shape == CRL_SHAPE)
    return ca_files(
        *(loaded, name, shape, options),
        certificates=output.certificate,
        secret=secret_of(name, pin_fd),
        crls=lambda one: output.crl(one, system_clock()),
    )


def _vault(ca: Path | None, **given: str | None) -> VaultIssuer | None:
    found: dict[str, Any] = {key: value for key, value in given.items() if value}
    if len(found) < len(given):
        return None
    return VaultIssuer(ca_bundle=read_public(ca) if ca else b"", **found)


def _issued(
    loaded: Loaded,
    output: Output,
    wanted: ClusterExport,
    module: Path | None,
    pin_fd: int | None,
) -> Files:
    entry = loaded.file.certificates.get(wanted.cluster)
    if entry is not None:
        _require_verified(loaded, output, [ca for *_, ca in entry.cas()])
    return cluster_files(
        loaded,
        wanted,
        certificates=output.certificate,
        keys=keys_of(loaded, module, pin_fd),
        clock=system_clock,
    )


def _require_verified(
    loaded: Loaded, output: Output, names: list[str], *, also_revoked: bool = False
) -> None:
    found = [*verified(loaded.file, output, system_clock(), names)]
    problems = [problem for one in found for problem in one.problems]
    if not also_revoked:
        problems += [one.revoked for one in found if one.revoked]
    if problems:
        raise ConfigError("\n".join(problems), rule="hierarchy.export")


def _record(
    loaded: Loaded, output: Output, name: str, folder: Path, made: Mapping[str, bytes]
) -> None:
    # A relative path in a transcript is one of the ceremony's own folder.
    digests = {
        str(folder.absolute() / path): hashlib.sha256(content).hexdigest()
        for path, content in made.items()
    }
    Transcript(output.folder / FILE_NAME).append(
        f"export {name}",
        operator(),
        system_clock(),
        files=digests,
        details={HIERARCHY: loaded.digest},
    )
