"""`meshca vault`: the command of this plugin."""

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bridge.sdk import (
    ConfiguredCA,
    configured_cas,
    option_error,
    read_secret,
)
from bridge.spi import BackendBrokenError, ConfigError
from bridge_vault.login import secret_text
from bridge_vault.options import (
    AppRoleLogin,
    Login,
    PKIOptions,
    TokenLogin,
    TransitOptions,
    VaultOptions,
    options_of,
    tls_of,
)
from bridge_vault.setup.access import Access
from bridge_vault.setup.operator import OperatorSession
from bridge_vault.setup.pki import UNKNOWN, PKISetup
from bridge_vault.setup.plan import PlanItem, carried_out, public, text_of
from bridge_vault.setup.transit import TransitSetup

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Set up Vault or OpenBao for the backends vault-pki and vault-transit.",
    no_args_is_help=True,
)
_MODELS: Mapping[str, type[VaultOptions]] = {
    "vault-pki": PKIOptions,
    "vault-transit": TransitOptions,
}
_TOKENS = ("BAO_TOKEN", "VAULT_TOKEN")
_ROLE = re.compile(r"(?=.*\w)[A-Za-z0-9_.-]+")
"""It stands in a path."""
_TO_DO = 3
_JSON_FORMAT = 1
_NO_LOGIN = Login(token=TokenLogin(file=Path("unused")))
"""The client certificate of `login.tls` is the bridge's, not the operator's."""
Output = Literal["text", "json"]
Kind = Literal["p256", "p384", "rsa2048", "rsa3072", "rsa4096", "ed25519"]


@app.callback()
def _group() -> None:
    pass


@app.command()
def setup(  # noqa: PLR0913 - one parameter for each option
    *,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be made or changed.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Make and change it.")] = False,
    config_file: Annotated[
        Path,
        typer.Option(
            "--config", "-c", metavar="FILE", help="The configuration, in YAML."
        ),
    ],
    issuing_ca: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="One of issuing_cas. Needed if several are in Vault."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An operator's token, which only the file's owner can read. By "
            "default BAO_TOKEN or VAULT_TOKEN of the environment.",
        ),
    ] = None,
    key: Annotated[Kind, typer.Option(help="A key that is made.")] = "p256",
    csr: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the CSR is written. By default NAME.csr beside the "
            "configuration.",
        ),
    ] = None,
    login_role: Annotated[
        str, typer.Option(metavar="NAME", help="The role of AppRole.")
    ] = "meshca",
    output: Annotated[
        Output, typer.Option("--output", "-o", help="For people, or for programs.")
    ] = "text",
) -> None:
    """Make in Vault what an issuing CA of the configuration needs.

    The engine's mount, the key, its CSR, the issuer, the role, the policy of the bridge
    and an AppRole to log in by. The key is made inside Vault. Have the CSR signed by
    the CA above, such as by `meshca hierarchy throwaway --issuing-csr`, put the
    certificate and its intermediates into the file `chain` of the issuing CA, and run
    the command again. Until then, `issuer` and the role_id may be missing in the
    options.

    --plan says first what --apply does, field by field. What is right stays, and so
    does what setup does not make: other issuers, roles and policies, and the default
    issuer. A run that stopped half way is completed by the next one.

    Exits with 0 if all is right, also after --apply. With --plan it exits with 3 if
    something would be made or changed. Both exit with 1 if something is in the way, and
    then --apply changes nothing. What waits for a certificate does not count.
    """
    if plan == apply:
        raise typer.BadParameter("expected one of --plan and --apply")
    if not _ROLE.fullmatch(login_role):
        raise typer.BadParameter(
            "expected letters, digits, '_', '.' and '-' in --login-role "
            f"(found {login_role!r})"
        )
    found_cas = configured_cas(config_file, _MODELS)
    ca = _chosen(config_file, issuing_ca, found_cas)
    options = _options_of(ca)
    token = _token(token_file)
    trusting = options.model_copy(update={"login": _NO_LOGIN})
    tls = tls_of(trusting, ca.context)
    with closing(OperatorSession(options, tls, token)) as vault:
        alike = [one.context.name for one in found_cas if _login(one) == _login(ca)]
        access = Access(vault, ca, options, alike)
        file = csr or ca.context.base / f"{ca.context.name}.csr"
        made = _setup(access, options, key, file, login_role)
        findings = tuple(step() for step in made.steps())
        is_blocked = any(one.state == "problem" for one in findings)
        is_applied = apply and not is_blocked
        if is_applied:
            findings = _carried_out(made, is_shown=output == "text")
        elif output == "text":
            _print(findings, is_done=False)
        found = _to_write(made, access, login_role)
        program = "bao" if access.is_openbao() else "vault"
    secret_id = _secret_id(options, login_role, program, token_file)
    _tell(output, findings, found, secret_id, is_applied=is_applied)
    if is_blocked:
        raise typer.Exit(1)
    if plan and any(one.act is not None for one in findings):
        raise typer.Exit(_TO_DO)


def _chosen(path: Path, name: str | None, cas: Iterable[ConfiguredCA]) -> ConfiguredCA:
    found = {one.context.name: one for one in cas}
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name is None or name not in found:
        known = ", ".join(found) or "none"
        raise ConfigError(
            f"{path}: expected one issuing CA of {' or '.join(_MODELS)}, or its name "
            f"by --issuing-ca (there: {known})",
            rule="vault.setup",
        )
    return found[name]


def _options_of(ca: ConfiguredCA) -> VaultOptions:
    # What only setup finds out may be missing: the issuer's ID and AppRole's role_id.
    options: dict[str, Any] = {**ca.options, "login": _login(ca)[-1]}
    if ca.plugin == "vault-pki":
        options.setdefault("issuer", UNKNOWN)
    return options_of(_MODELS[ca.plugin], options, ca.context)


def _login(ca: ConfiguredCA) -> tuple[object, ...]:
    # Issuing CAs that log in alike have one token, so also one role.
    login = ca.options.get("login", {"approle": {}})
    if isinstance(login, dict) and isinstance(own := login.get("approle", 0), dict):
        unknown = {"role_id": "unknown", "secret_id_file": "secret-id"}
        login = {**login, "approle": {**unknown, **own}}
    return ca.options.get("addresses"), ca.options.get("namespace"), login


def _token(path: Path | None) -> str:
    if path is not None:
        return secret_text(read_secret(path), path, "a token")
    for name in _TOKENS:
        if token := os.environ.get(name):
            return secret_text(os.fsencode(token), Path(name), "a token")
    raise ConfigError(
        f"expected an operator's token in --token-file or {' or '.join(_TOKENS)}",
        rule="vault.setup",
    )


def _setup(
    access: Access, options: VaultOptions, key: str, csr: Path, login_role: str
) -> PKISetup | TransitSetup:
    if isinstance(options, PKIOptions):
        return PKISetup(access, options, key, csr, login_role)
    if isinstance(options, TransitOptions):
        return TransitSetup(access, options, key, csr, login_role)
    raise option_error(access.ca.context, "plugin", "expected one of Vault")


def _carried_out(
    made: PKISetup | TransitSetup, *, is_shown: bool
) -> tuple[PlanItem, ...]:
    done = []
    for finding in carried_out(made.steps()):
        done.append(finding)
        if is_shown:
            _print((finding,), is_done=True)
    now = [step() for step in made.steps()]
    left = [one for one in now if one.act or one.state == "problem"]
    if left:
        raise BackendBrokenError(
            "Vault did not take over all that was written",
            rule="vault.setup",
            detail="\n".join(text_of(one, is_done=False) for one in left),
        )
    return tuple(done)


def _print(findings: Iterable[PlanItem], *, is_done: bool) -> None:
    for finding in findings:
        typer.echo(text_of(finding, is_done=is_done))


def _to_write(
    made: PKISetup | TransitSetup, access: Access, login_role: str
) -> dict[str, str]:
    # What setup found out, and the options do not have yet.
    found = {}
    if isinstance(made, PKISetup) and made.options.issuer == UNKNOWN and made.issuer:
        found["issuer"] = made.issuer
    method, role_id = access.options.method, access.role_id(login_role)
    if role_id and role_id != getattr(method, "role_id", ""):
        found["login.approle.role_id"] = role_id
    return found


def _tell(
    output: Output,
    findings: tuple[PlanItem, ...],
    options: Mapping[str, str],
    secret_id: str,
    *,
    is_applied: bool,
) -> None:
    if output == "json":
        content = {
            "format": _JSON_FORMAT,
            "applied": is_applied,
            "findings": [public(one) for one in findings],
            "options": options,
        }
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    for name, value in options.items():
        typer.echo(f"write into the options: {name}: {value}")
    if "login.approle.role_id" in options:
        typer.echo(f"for a SecretID, with umask 077: {secret_id}")


def _secret_id(
    options: VaultOptions, login_role: str, program: str, token_file: Path | None
) -> str:
    method = options.method
    if not isinstance(method, AppRoleLogin):
        return ""
    # What setup was given, so that nothing is left to the reader's environment.
    server = {
        "address": options.addresses[0],
        "ca-cert": options.ca_file,
        "namespace": options.namespace,
    }
    given = [f"-{name}={value}" for name, value in server.items() if value is not None]
    path = f"auth/{method.mount}/role/{login_role}/secret-id"
    command = shlex.join([program, "write", *given, "-f", "-field=secret_id", path])
    if token_file is not None:
        token = f'"$(cat {shlex.quote(str(token_file))})"'
        command = f"{program.upper()}_TOKEN={token} {command}"
    return f"{command} > {shlex.quote(str(method.secret_id_file))}"
