"""`meshca check` at a real Vault: each mistake by option or path, with a way out."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bridge.checks.findings import check_configuration
from bridge.errors import BridgeError
from tests.support.harness.workers import Supervised
from tests.support.parts import netports, vault_mounts
from tests.support.parts.pki import new_root, write_private
from tests.support.parts.vault import VAULT, Product, Server
from tests.support.parts.vault_mounts import JWT, PKI, AppRole, Transit

pytestmark = pytest.mark.xdist_group("bad-input-vault")

NO_ISSUER = "00000000-0000-0000-0000-000000000000"
ABSENT = "Vault does not have what the configuration names"
TOKEN_FILE = "/served/token: "  # noqa: S105 - a path
NOBODY = f"https://{netports.address()}"
ROLE = {
    "allowed_uri_sans": ["spiffe://corp.example/*"],
    "allowed_domains": ["istio-system.svc"],
    "not_before_duration": "120s",
}


class Ground:
    """A server with TLS, a configuration, an engine of each kind, and a redirect."""

    def __init__(self, server: Server, folder: Path, redirecting: str) -> None:
        self.server = server
        self.redirecting = redirecting
        self.bridge = Supervised(folder / "served")
        self.folder = self.bridge.folder
        hierarchy = self.folder / "hierarchy"
        self.pki = PKI.make(server, hierarchy, self.folder / "pki.pem")
        self.pki.write_role(**ROLE)
        self.transit = Transit.make(server, hierarchy, self.folder / "transit.pem")
        self.rules = {**self.pki.rules, **self.transit.rules}
        self.token_file = self.folder / "token"

    def check(self, row: "Row") -> str:
        """Return what `meshca check` says of the issuing CA."""
        for path in self.folder.rglob("latch.json"):
            path.unlink()
        policy = vault_mounts.write_policy(self.server, self.rules)
        token = vault_mounts.new_token(self.server, policy)
        login = vault_mounts.token_login(token, self.token_file)
        mount = self.pki if row.plugin == "vault-pki" else self.transit
        section = {
            "plugin": row.plugin,
            "chain": str(mount.chain),
            "options": {**mount.options(login), **row.change(self)},
        }
        self.bridge.change(
            issuing_cas={"vault": section}, issuance__issuing_cas=["vault"]
        )
        return self.checked()

    def checked(self) -> str:
        """Return what fails, and what is told as an error."""
        path = self.folder / "bridge.yaml"
        try:
            findings = check_configuration(path, lambda _: None)
        except BridgeError as error:
            return f"{error} {error.detail}"
        told = [one for one in findings if one.result == "FAILED"]
        return "\n".join(f"{one.part} {one.what} {one.detail}" for one in told)


Change = Callable[[Ground], Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A mistake: what it changes, and what is told of it."""

    id: str
    change: Change
    expected: tuple[str, ...]
    plugin: str = "vault-transit"


def options(**changes: Any) -> Change:
    return lambda _: changes


def other_ca(ground: Ground) -> Mapping[str, Any]:
    file = ground.folder / "other-ca.pem"
    file.write_bytes(new_root("another CA").pem)
    return {"ca_file": str(file)}


def address(scheme: str, host: str) -> Change:
    return lambda ground: {"addresses": [f"{scheme}://{host}:{ground.server.port}"]}


def token(content: str, mode: int = 0o600) -> Change:
    def change(ground: Ground) -> Mapping[str, Any]:
        write_private(ground.token_file, content.encode()).chmod(mode)
        return {}

    return change


def no_token(ground: Ground) -> Mapping[str, Any]:
    ground.token_file.unlink()
    return {}


def wrapping_token(ground: Ground) -> Mapping[str, Any]:
    _, answer = ground.server.api.ask(
        "POST", "auth/token/create", {}, **{"X-Vault-Wrap-TTL": "60s"}
    )
    return token(answer["wrap_info"]["token"])(ground)


def no_rights(ground: Ground) -> Mapping[str, Any]:
    policy = vault_mounts.write_policy(ground.server, {"other": ("read",)})
    return token(vault_mounts.new_token(ground.server, policy))(ground)


def by_root(**changes: Any) -> Change:
    """Have the options changed, and a token that may do anything."""

    def change(ground: Ground) -> Mapping[str, Any]:
        token(ground.server.root_token)(ground)
        return changes

    return change


def approle(**changes: Any) -> Change:
    def change(ground: Ground) -> Mapping[str, Any]:
        made = AppRole.make(ground.server, "default")
        login = made.login(ground.folder / "secret-id")
        own: Any = login["approle"]
        return {"login": {"approle": {**own, **changes}}}

    return change


def jwt(lifetime: float = 3600, **changes: Any) -> Change:
    def change(ground: Ground) -> Mapping[str, Any]:
        made = JWT.make(ground.server, "default")
        own: Any = made.login(ground.folder / "jwt", lifetime=lifetime)["jwt"]
        return {"login": {"jwt": {**own, **changes}}}

    return change


def wrong_secret_id(ground: Ground) -> Mapping[str, Any]:
    changes = approle()(ground)
    write_private(ground.folder / "secret-id", b"wrong\n")
    return changes


class _Redirects(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(307)
        self.send_header("Location", f"https://elsewhere.example{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def redirecting(ground: Ground) -> Mapping[str, Any]:
    return {"addresses": [ground.redirecting]}


ROWS = [
    Row(
        "another CA",
        other_ca,
        ("cannot be reached: https://127.0.0.1:", "unable to get", "compare ca_file"),
    ),
    Row(
        "another host name",
        address("https", "127.1"),
        ("not valid for '127.1'", "compare ca_file and the host name"),
    ),
    Row("no TLS", address("http", "127.0.0.1"), ("expected JSON of Vault's API",)),
    Row("nobody listens", options(addresses=[NOBODY]), (f"{NOBODY}: Connection r",)),
    Row("a redirect", redirecting, ("redirects to 'https://elsewhere", "not followed")),
    Row(
        "no such namespace",
        options(namespace="absent"),
        ("not have what the configuration names", "namespace absent", "not found"),
    ),
    Row("no token file", no_token, (f"{TOKEN_FILE}cannot be read: No such file",)),
    Row("an empty token file", token(""), (f"{TOKEN_FILE}expected a token (found",)),
    Row("a token file for all", token("s.x", 0o644), (TOKEN_FILE, "run chmod 600")),
    Row(
        "a wrapping token",
        wrapping_token,
        ("holds a wrapping token", f"{TOKEN_FILE}expected the token that it wraps"),
    ),
    Row(
        "a dead token",
        token("s.dead"),
        (f"{TOKEN_FILE}it has ended", "expected a token that lives and has the policy"),
    ),
    Row(
        "no rights in Transit",
        no_rights,
        (
            "policies do not permit",
            "expected update on transit-",
            "/sign/issuing, read on transit-",
            "/keys/issuing",
        ),
    ),
    Row(
        "no rights in PKI",
        no_rights,
        (
            "policies do not permit",
            "expected update on pki-",
            "/sign/mesh, read on pki-",
            "/roles/mesh, read on pki-",
            "/config/urls",
        ),
        "vault-pki",
    ),
    Row(
        "no such mount, and no right in it",
        options(mount="absent"),
        ("expected update on absent/sign/issuing, read on absent/keys/issuing",),
    ),
    Row("no such mount", by_root(mount="absent"), (ABSENT, "absent/keys/issuing")),
    Row("no such key", by_root(key="absent"), (ABSENT, "/keys/absent: status 404")),
    Row(
        "no such version",
        by_root(key_version=9),
        ("/keys/issuing: version 9 is not there (the latest is 1)",),
    ),
    Row(
        "no such PKI mount",
        by_root(mount="absent"),
        (ABSENT, "absent/roles/mesh"),
        "vault-pki",
    ),
    Row(
        "no such role",
        by_root(role="absent"),
        (ABSENT, "/roles/absent: status 404"),
        "vault-pki",
    ),
    Row(
        "no such issuer",
        by_root(issuer=NO_ISSUER),
        (ABSENT, f"unable to find PKI issuer for reference: {NO_ISSUER}"),
        "vault-pki",
    ),
    Row(
        "no such mount of AppRole",
        approle(mount="absent"),
        ("refuses the login: auth/absent/login: ", "expected a mount that is there"),
    ),
    Row(
        "a wrong RoleID",
        approle(role_id="absent"),
        ("refuses the SecretID", "/served/secret-id: ", "expected the RoleID"),
    ),
    Row(
        "a wrong SecretID",
        wrong_secret_id,
        ("refuses the SecretID", "/served/secret-id: ", "unused SecretID of one role"),
    ),
    Row("no such role of JWT", jwt(role="absent"), ('role "absent" could not be',)),
    Row("an expired JWT", jwt(lifetime=-900), ("refuses the login", "is expired")),
    Row(
        "no such mount of JWT",
        jwt(mount="absent"),
        ("refuses the login: auth/absent/login: ", "expected a mount that is there"),
    ),
]


@pytest.fixture(scope="module")
def ground(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("vault-check")
    server = Server(folder / "server", vault_product, storage="inmem", tls=True)
    with server, ThreadingHTTPServer(("127.0.0.1", 0), _Redirects) as redirects:
        threading.Thread(target=redirects.serve_forever, daemon=True).start()
        yield Ground(server, folder, f"http://127.0.0.1:{redirects.server_port}")
        redirects.shutdown()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_mistake_is_told_with_its_way_out(ground: Ground, row: Row) -> None:
    told = ground.check(row)
    if row.id == "no such namespace" and ground.server.product is VAULT:
        assert told == "", "Vault's Community edition ignores namespaces"
        return
    for part in row.expected:
        assert part in told


@pytest.mark.parametrize("plugin", ["vault-pki", "vault-transit"])
def test_without_a_mistake_nothing_is_told(ground: Ground, plugin: str) -> None:
    assert ground.check(Row("", options(), (), plugin)) == ""


def test_the_command_tells_it_and_fails(ground: Ground) -> None:
    ground.check(Row("", wrapping_token, ()))
    done = ground.bridge.run("check", "-o", "json")
    assert done.returncode == 1
    (failed,) = (
        one for one in json.loads(done.stdout)["findings"] if one["result"] == "FAILED"
    )
    assert (failed["part"], failed["what"]) == ("vault", "backend")
    assert "holds a wrapping token" in failed["detail"]
