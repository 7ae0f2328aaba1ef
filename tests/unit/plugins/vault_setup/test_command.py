"""`bridge_vault.command`: what it takes, chooses and says."""

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner, Result

from bridge.sdk import configured_cas
from bridge.spi import BackendBrokenError, ConfigError
from bridge_vault import command
from tests.support.parts.pki import bundle, new_chain, write_private
from tests.unit.plugins.vault_setup.support import ISSUER, Scripted

URL = "https://vault.example:8200"
APPROLE = "auth/approle/role/meshca"


def write_configuration(folder: Path, issuing_cas: Mapping[str, object]) -> Path:
    tokens = {"verify": "jwks", "file": "k", "issuer": "https://k.example"}
    content = {
        "trust_domain": "corp.example",
        "fronts": {
            "istio": {
                "listen": "127.0.0.1:1",
                "tls": {"dns_names": ["ca.example"], "ttl": "48h"},
            },
            "linkerd": {"listen": "127.0.0.1:2"},
        },
        "clusters": [
            {"name": "a", "tokens": tokens},
            {
                "name": "b",
                "trust_domain": "b.example",
                "tokens": {**tokens, "issuer": "https://b.example"},
            },
        ],
        "issuing_cas": issuing_cas,
        "trust_anchors": "roots.pem",
        "issuance": {"issuing_cas": [next(iter(issuing_cas))]},
        "ledger": {
            "journal": "journal",
            "archive": "sqlite:///a.db",
            "heads": {"sink": "h"},
        },
    }
    path = folder / "bridge.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_names_of_leaves_come_from_the_configuration(tmp_path: Path) -> None:
    cas = {
        "eu": {"plugin": "vault-pki", "options": {"x": 1}},
        "disk": {"plugin": "file"},
    }
    path = write_configuration(tmp_path, cas)
    (found,) = configured_cas(path, ["vault-pki"])
    assert (found.context.name, found.options) == ("eu", {"x": 1})
    assert found.uri_names == (
        "spiffe://corp.example/ns/*/sa/*",
        "spiffe://b.example/ns/*/sa/*",
        "spiffe://corp.example/meshca/probe",
    )
    assert found.dns_names == (
        "ca.example",
        "*.serviceaccount.identity.linkerd.corp.example",
    )
    assert (found.backdate, found.max_ttl) == (
        timedelta(minutes=2),
        timedelta(hours=48),
    )


class Session(Scripted):
    """Answers in place of Vault, and notes who asks."""

    tokens: list[str]

    def __call__(self, _options: object, _tls: object, token: str) -> "Session":
        self.tokens.append(token)
        return self


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    made = Session()
    made.tokens = []
    monkeypatch.setattr(command, "OperatorSession", made)
    return made


def issuing_ca(**options: object) -> dict[str, object]:
    own = {"addresses": [URL], "key": "issuing", **options}
    return {"plugin": "vault-transit", "chain": "chain.pem", "options": own}


def run(
    folder: Path,
    cas: Mapping[str, object],
    *arguments: str,
    env: Mapping[str, str] | None = None,
) -> Result:
    path = write_configuration(folder, cas)
    tokens = {"BAO_TOKEN": "operator", "VAULT_TOKEN": ""} if env is None else env
    return CliRunner().invoke(
        command.app, ["setup", "-c", str(path), *arguments], env=tokens
    )


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("names", "arguments"),
    [(["eu"], ()), (["eu", "us"], ("--issuing-ca", "us"))],
)
def test_an_issuing_ca_of_vault_is_chosen(
    tmp_path: Path, names: list[str], arguments: tuple[str, ...]
) -> None:
    cas = {name: issuing_ca() for name in names} | {"disk": {"plugin": "file"}}
    done = run(tmp_path, cas, "--plan", *arguments)
    assert done.exit_code == 3, done.exception
    assert f"policy meshca-{names[-1]}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "cas"),
    [
        ((), ["eu", "us"]),
        (("--issuing-ca", "de"), ["eu", "us"]),
        (("--issuing-ca", "disk"), ["eu", "us"]),
    ],
)
def test_the_issuing_cas_to_choose_from_are_told(
    tmp_path: Path, session: Session, arguments: tuple[str, ...], cas: list[str]
) -> None:
    both = {name: issuing_ca() for name in cas} | {"disk": {"plugin": "file"}}
    done = run(tmp_path, both, "--plan", *arguments)
    assert isinstance(done.exception, ConfigError)
    assert "or its name by --issuing-ca (there: eu, us)" in str(done.exception)
    assert session.tokens == []


@pytest.mark.parametrize(
    ("env", "token"),
    [
        ({"BAO_TOKEN": "b", "VAULT_TOKEN": "v"}, "b"),
        ({"BAO_TOKEN": "", "VAULT_TOKEN": "v"}, "v"),
    ],
)
def test_the_token_of_the_operator_comes_from_the_environment(
    tmp_path: Path, session: Session, env: Mapping[str, str], token: str
) -> None:
    run(tmp_path, {"eu": issuing_ca()}, "--plan", env=env)
    assert session.tokens == [token]


def test_a_file_of_the_token_comes_before_the_environment(
    tmp_path: Path, session: Session
) -> None:
    file = write_private(tmp_path / "token", b"of a file\n")
    run(tmp_path, {"eu": issuing_ca()}, "--plan", "--token-file", str(file))
    assert session.tokens == ["of a file"]


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (None, 0, "expected an operator's token in --token-file or BAO_TOKEN or"),
        (b"\n", 0o600, "token: expected a token (found an empty file)"),
        (b"two\nlines\n", 0o600, "token: expected a token in one line of printable"),
        (b"tok\xc3\xa9n", 0o600, "token: expected a token in one line of printable"),
        (b"token", 0o644, "token: "),
    ],
    ids=["none", "empty", "two-lines", "not-ascii", "open"],
)
def test_a_token_that_cannot_be_used_is_told(
    tmp_path: Path, session: Session, content: bytes | None, mode: int, told: str
) -> None:
    given: tuple[str, ...] = ()
    if content is not None:
        file = write_private(tmp_path / "token", content, mode)
        given = ("--token-file", str(file))
    none = {"BAO_TOKEN": "", "VAULT_TOKEN": ""}
    done = run(tmp_path, {"eu": issuing_ca()}, "--plan", *given, env=none)
    assert isinstance(done.exception, ConfigError)
    assert told in str(done.exception)
    assert session.tokens == []


def test_a_token_of_the_environment_that_is_no_text_is_told(
    tmp_path: Path, session: Session
) -> None:
    env = {"BAO_TOKEN": "", "VAULT_TOKEN": "tok\u00e9n"}
    done = run(tmp_path, {"eu": issuing_ca()}, "--plan", env=env)
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("VAULT_TOKEN: expected a token in one line")
    assert session.tokens == []


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("login", "told"),
    [
        (5, "options.login"),
        ({"approle": 5}, "options.login.approle"),
        ({"approle": {}, "token": {"file": "t"}}, "expected one of token, approle"),
    ],
)
def test_a_login_of_another_shape_is_told_by_its_path(
    tmp_path: Path, login: object, told: str
) -> None:
    done = run(tmp_path, {"eu": issuing_ca(login=login)}, "--plan")
    assert isinstance(done.exception, ConfigError)
    assert told in str(done.exception)


@pytest.mark.usefixtures("session")
def test_setup_needs_no_file_of_the_login(tmp_path: Path) -> None:
    login = {"tls": {"certificate_file": "absent.pem", "key_file": "absent.key"}}
    done = run(tmp_path, {"eu": issuing_ca(login=login)}, "--plan")
    assert done.exit_code == 3, done.exception
    assert "login.tls: setup does not make it" in done.stdout
    assert "SecretID" not in done.stdout


def test_a_login_that_is_left_out_is_approle_and_its_role_id_is_told(
    tmp_path: Path, session: Session
) -> None:
    session.content[f"{APPROLE}/role-id"] = {"role_id": "r-1"}
    session.content["sys/mounts"] = {"sys/": {"running_plugin_version": "v1.21"}}
    done = run(tmp_path, {"eu": issuing_ca()}, "--plan")
    assert "write into the options: login.approle.role_id: r-1\n" in done.stdout
    told = f"vault write -address={URL} -f -field=secret_id {APPROLE}/secret-id > "
    assert told in done.stdout

    login = {"approle": {"role_id": "r-1", "secret_id_file": "s"}}
    done = run(tmp_path, {"eu": issuing_ca(login=login)}, "--plan")
    assert "role_id" not in done.stdout
    assert "SecretID" not in done.stdout


@pytest.mark.usefixtures("session")
def test_json_is_all_that_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    done = run(tmp_path, {"eu": issuing_ca()}, "--plan", "-o", "json")
    assert list(json.loads(done.stdout)) == [
        "format",
        "applied",
        "findings",
        "options",
    ]


def test_json_has_the_issuer_once_it_is_imported_and_only_if_it_is_not_known(
    tmp_path: Path, session: Session
) -> None:
    own = new_chain().certificate
    (tmp_path / "chain.pem").write_bytes(bundle(own))
    pem = own.public_bytes(Encoding.PEM).decode()
    options = {"addresses": [URL], "role": "mesh"}
    found = []
    for content, known in (
        ({}, {}),
        ({"certificate": pem}, {}),
        ({"certificate": pem}, {"issuer": ISSUER}),
    ):
        session.content["sys/mounts"] = {"pki/": {"type": "pki"}}
        session.content["pki/issuers"] = {"keys": [ISSUER]}
        session.content[f"pki/issuer/{ISSUER}"] = content
        section = {
            "plugin": "vault-pki",
            "chain": "chain.pem",
            "options": options | known,
        }
        done = run(tmp_path, {"eu": section}, "--plan", "-o", "json")
        found.append(json.loads(done.stdout)["options"])
    assert found == [{}, {"issuer": ISSUER}, {}]


@pytest.mark.parametrize(
    "arguments",
    [(), ("--plan", "--apply"), ("--plan", "--login-role", "..")],
    ids=["neither", "both", "no-role"],
)
def test_an_unclear_command_asks_nothing(
    tmp_path: Path, session: Session, arguments: tuple[str, ...]
) -> None:
    assert run(tmp_path, {"eu": issuing_ca()}, *arguments).exit_code == 2
    assert session.tokens == []


def test_nothing_is_written_where_something_is_in_the_way(
    tmp_path: Path, session: Session
) -> None:
    session.content["sys/mounts"] = {"transit/": {"type": "kv"}}
    done = run(tmp_path, {"eu": issuing_ca()}, "--apply")
    assert done.exit_code == 1
    assert "expected an engine transit (found kv)" in done.stdout
    assert session.written == {}


def test_what_vault_does_not_take_over_is_told(
    tmp_path: Path, session: Session
) -> None:
    session.answers["transit/keys/issuing/csr"] = {"csr": "a CSR"}
    done = run(tmp_path, {"eu": issuing_ca()}, "--apply")
    assert isinstance(done.exception, BackendBrokenError)
    assert "would be made     policy meshca-eu" in done.exception.detail
    assert session.written


def policies_of(session: Session) -> Any:
    return session.written[APPROLE]["token_policies"]


@pytest.mark.parametrize(
    ("other", "policies"),
    [
        ({}, ["meshca-eu", "meshca-us"]),
        ({"addresses": ["https://another.example:8200"]}, ["meshca-eu"]),
        ({"namespace": "team"}, ["meshca-eu"]),
        ({"login": {"approle": {"secret_id_file": "us"}}}, ["meshca-eu"]),
    ],
    ids=["alike", "server", "namespace", "login"],
)
def test_a_login_role_gets_the_policies_of_all_that_log_in_alike(
    tmp_path: Path,
    session: Session,
    other: Mapping[str, object],
    policies: list[str],
) -> None:
    session.answers["transit/keys/issuing/csr"] = {"csr": "a CSR"}
    cas = {"eu": issuing_ca(), "us": issuing_ca(**other)}
    run(tmp_path, cas, "--apply", "--issuing-ca", "eu")
    assert policies_of(session) == policies
