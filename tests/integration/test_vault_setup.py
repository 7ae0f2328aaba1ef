"""`meshca vault setup` on a real OpenBao and a real Vault."""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from typer.testing import CliRunner, Result

from bridge.cli.command_line import app as meshca
from bridge.hierarchy.export import write
from bridge.hierarchy.issuing_csr import read_issuing_key
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spi import BackendUnavailableError, IssuingCAFactory, PluginContext
from bridge.spiffe import TrustDomain
from bridge.testing.leaves import leaf_request, require_issued
from bridge_vault import VaultPKICA, VaultTransitCA
from bridge_vault.command import app
from tests.support.parts import vault_mounts
from tests.support.parts.pki import new_root, write_private
from tests.support.parts.vault import API, OPENBAO, AnswerError, Product, Server
from tests.support.parts.vault_mounts import PKI

BACKENDS: Mapping[str, IssuingCAFactory] = {
    "vault-pki": VaultPKICA,
    "vault-transit": VaultTransitCA,
}
KEYS: Mapping[str, tuple[type[object], int]] = {
    "p384": (ec.EllipticCurvePublicKey, 384),
    "rsa2048": (rsa.RSAPublicKey, 2048),
    "rsa3072": (rsa.RSAPublicKey, 3072),
    "rsa4096": (rsa.RSAPublicKey, 4096),
    "ed25519": (ed25519.Ed25519PublicKey, 0),
}
"""All but the default."""
HOST = "meshca.istio-system.svc"
ROOT = Path(__file__).parents[2]
_OTHER_POLICY = 'path "secret/*" { capabilities = ["read"] }'
_SECONDS = 30.0
_numbers = count(1)


@dataclass
class Setup:
    """A configuration with one issuing CA, and a mount of its own."""

    server: Server
    folder: Path
    plugin: str
    options: dict[str, Any] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"eu-{next(_numbers)}")
    token: str = ""
    """The operator's; by default the server's root token."""
    key: str = "p256"

    def __post_init__(self) -> None:
        self.mount = f"setup-{self.name}"
        own = {"role": "mesh"} if self.plugin == "vault-pki" else {"key": "issuing"}
        approle = {"mount": f"approle-{self.name}", "secret_id_file": "secret-id"}
        login = {"approle": approle}
        self.options = {
            "addresses": [self.server.url],
            "mount": self.mount,
            "login": login,
            **own,
            **self.options,
        }
        self.save()

    def save(self) -> None:
        content = {
            "trust_domain": "corp.example",
            "fronts": {
                "istio": {
                    "listen": "127.0.0.1:15012",
                    "tls": {"dns_names": [HOST]},
                },
                "linkerd": {"listen": "127.0.0.1:8080"},
            },
            "clusters": [
                {
                    "name": "Kubernetes",
                    "tokens": {
                        "verify": "jwks",
                        "file": "jwks.json",
                        "issuer": "https://kubernetes.default.svc",
                    },
                }
            ],
            "issuing_cas": {
                self.name: {
                    "plugin": self.plugin,
                    "chain": "ca/chain.pem",
                    "options": self.options,
                }
            },
            "trust_anchors": "ca/roots.pem",
            "issuance": {"issuing_cas": [self.name]},
            "ledger": {
                "journal": "journal/",
                "archive": "sqlite:///archive.db",
                "heads": {"sink": "heads.jsonl"},
            },
        }
        text = yaml.safe_dump(content, sort_keys=False)
        (self.folder / "bridge.yaml").write_text(text, "utf-8")

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            app,
            ["setup", "-c", str(self.folder / "bridge.yaml"), *arguments],
            env={
                "BAO_TOKEN": self.token or self.server.root_token,
                "VAULT_TOKEN": "",
            },
        )

    def answer(self, *arguments: str, status: int) -> dict[str, Any]:
        done = self.run("-o", "json", *arguments)
        detail = getattr(done.exception, "detail", "")
        assert done.exit_code == status, (done.output, done.exception, detail)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def states(self, *arguments: str, status: int) -> dict[str, str]:
        """Return the states, by the kind of each thing."""
        findings = self.answer(*arguments, status=status)["findings"]
        return {one["what"].split(" ")[0]: one["state"] for one in findings}

    def sign_csr(self) -> None:
        """Have the CSR signed by a throwaway chain, with its constraints."""
        key = read_issuing_key(self.folder / f"{self.name}.csr")
        spec = ThrowawaySpec(
            trust_domains=(TrustDomain("corp.example"),), permitted_dns=(HOST,)
        )
        write(make(spec, issuing_key=key), self.folder / "ca")

    @property
    def api(self) -> API:
        """The API as the operator has it, in the namespace of the options."""
        namespace = str(self.options.get("namespace", ""))
        return self.server.api_with(self.token or self.server.root_token, namespace)

    def complete(self) -> None:
        """Go through all of it, and write the options that setup found out."""
        self.answer("--apply", "--key", self.key, status=0)
        self.sign_csr()
        found = self.answer("--apply", status=0)["options"]
        approle = self.options["login"]["approle"]
        approle["role_id"] = found["login.approle.role_id"]
        if self.plugin == "vault-pki":
            self.options["issuer"] = found["issuer"]
        self.save()
        path = f"auth/{approle['mount']}/role/meshca/secret-id"
        secret = self.api.post(path)["secret_id"]
        file = self.folder / "secret-id"
        file.touch(mode=0o600)
        file.write_text(secret)

    def require_issuing(self) -> None:
        """Require that the bridge issues all kinds of leaves, and warns of nothing."""
        warned: list[str] = []
        context = PluginContext(
            name=self.name,
            base=self.folder,
            chain=self.folder / "ca/chain.pem",
            warn=warned.append,
        )
        ca = BACKENDS[self.plugin](self.options, context)
        try:
            ca.check(timeout=_SECONDS)
            assert warned == []
            for name in (
                x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web"),
                x509.DNSName(HOST),
                x509.DNSName("web.shop.serviceaccount.identity.linkerd.corp.example"),
            ):
                prepared = ca.prepare(leaf_request((name,)))
                issued = ca.issue(prepared, timeout=_SECONDS)
                require_issued(issued, prepared, ca.describe())
        finally:
            ca.close()


@pytest.fixture(params=BACKENDS)
def setup(
    vault_server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> Setup:
    return Setup(vault_server, tmp_path, request.param)


@pytest.fixture
def pki(vault_server: Server, tmp_path: Path) -> Setup:
    return Setup(vault_server, tmp_path, "vault-pki")


def everything(server: Server) -> Mapping[str, object]:
    """Return what setup could change, as the server has it."""
    api = server.api
    found: dict[str, object] = {
        path: api.get(path) for path in ("sys/mounts", "sys/auth")
    }
    found["headers"] = api.get("sys/config/auditing/request-headers")
    found["policies"] = api.list("sys/policies/acl")
    return found


def test_a_plan_changes_nothing(setup: Setup) -> None:
    before = everything(setup.server)
    states = setup.states("--plan", status=3)
    assert states["mount"] == states["key"] == states["CSR"] == "make"
    assert everything(setup.server) == before
    assert not list(setup.folder.glob("*.csr"))


def test_the_bridge_issues_with_what_setup_made_and_nothing_is_left_to_do(
    setup: Setup,
) -> None:
    setup.complete()
    assert set(setup.states("--plan", status=0).values()) == {"right"}
    assert setup.answer("--apply", status=0)["options"] == {}

    setup.require_issuing()


@pytest.mark.parametrize("key", KEYS)
def test_each_kind_of_key_is_made_inside_and_issues(setup: Setup, key: str) -> None:
    setup.key = key
    setup.complete()
    csr = x509.load_pem_x509_csr((setup.folder / f"{setup.name}.csr").read_bytes())
    public_key = csr.public_key()
    kind, size = KEYS[key]
    assert isinstance(public_key, kind)
    assert getattr(public_key, "key_size", 0) == size
    setup.require_issuing()


@pytest.fixture(scope="session")
def tls_server(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls") / "server"
    with Server(folder, vault_product, storage="inmem", tls=True) as server:
        yield server


@pytest.mark.parametrize("plugin", BACKENDS)
def test_a_server_with_tls_is_set_up(
    tls_server: Server, tmp_path: Path, plugin: str
) -> None:
    own = Setup(tls_server, tmp_path, plugin, {"ca_file": str(tls_server.ca_file)})
    own.complete()
    own.require_issuing()


def test_a_server_that_cannot_be_verified_is_told_no_token(
    tls_server: Server, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(new_root("another CA").pem)
    own = Setup(tls_server, tmp_path, "vault-pki", {"ca_file": str(other)})
    done = own.run("--plan")
    assert isinstance(done.exception, BackendUnavailableError)
    assert "certificate verify failed" in str(done.exception.detail)


@pytest.mark.parametrize("plugin", BACKENDS)
def test_a_namespace_is_set_up_and_no_other(
    openbao: Server, tmp_path: Path, plugin: str
) -> None:
    name = f"team-{next(_numbers)}"
    openbao.api.post(f"sys/namespaces/{name}")
    before = everything(openbao)
    own = Setup(openbao, tmp_path, plugin, {"namespace": name})
    own.complete()
    assert set(own.states("--plan", status=0).values()) == {"right"}
    own.require_issuing()
    # Audited headers are the whole server's.
    assert {**everything(openbao), "headers": None} == {**before, "headers": None}


def make_secret_id(own: Setup, *arguments: str, **environment: str) -> None:
    """Run the command for a SecretID as setup tells it, with no other environment."""
    told = own.run("--apply", *arguments).stdout.partition("with umask 077: ")[2]
    programs = own.folder / "programs"
    programs.mkdir()
    product = own.server.product
    name = "bao" if product is OPENBAO else "vault"
    (programs / name).symlink_to(product.binary())
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(own.folder)}
    subprocess.run(["bash", "-ec", told], env=env | environment, check=True)
    mount = own.options["login"]["approle"]["mount"]
    secret_id = (own.folder / "secret-id").read_text()
    path = f"auth/{mount}/role/meshca/secret-id/lookup"
    assert own.api.post(path, secret_id=secret_id)["creation_time"]


def test_the_command_for_a_secret_id_can_be_run_as_it_is_told(
    openbao: Server, tmp_path: Path
) -> None:
    name, folder = f"team-{next(_numbers)}", tmp_path / "of the mesh"
    folder.mkdir()
    openbao.api.post(f"sys/namespaces/{name}")
    own = Setup(openbao, folder, "vault-transit", {"namespace": name})
    make_secret_id(own, BAO_TOKEN=openbao.root_token)


def test_the_command_for_a_secret_id_has_ca_and_token_of_setup(
    tls_server: Server, tmp_path: Path
) -> None:
    options = {"ca_file": str(tls_server.ca_file)}
    own = Setup(tls_server, tmp_path, "vault-transit", options)
    file = tmp_path / "operator token"
    write_private(file, tls_server.root_token.encode())
    make_secret_id(own, "--token-file", str(file))


def test_an_operator_of_a_namespace_sets_up_all_that_is_its_own(
    openbao: Server, tmp_path: Path
) -> None:
    name = f"team-{next(_numbers)}"
    openbao.api.post(f"sys/namespaces/{name}")
    own = Setup(openbao, tmp_path, "vault-pki", {"namespace": name})
    use_operator_token(own, operator_rights(own))
    own.complete()
    states = own.states("--plan", status=0)
    assert states.pop("audited") == "wait"
    assert set(states.values()) == {"right"}
    own.require_issuing()


def operator_rights(setup: Setup) -> list[tuple[str, str]]:
    """Return the policy of docs/vault.md for the names of a test: path and right."""
    text = (ROOT / "docs/vault.md").read_text("utf-8")
    part = text.partition("### The policy of the operator")[2]
    block = part.partition("```hcl")[2].partition("```")[0]
    sections = re.split(r"^# ", block, flags=re.MULTILINE)
    mine = [one for one in sections if one.startswith(("Both", setup.plugin))]
    names = {
        "meshca-eu-1": f"meshca-{setup.name}",
        "approle": f"approle-{setup.name}",
        "pki": setup.mount,
        "transit": setup.mount,
    }
    return [
        ("/".join(names.get(one, one) for one in path.split("/")), right)
        for path, rights in re.findall(
            r'^path "(.+?)" { capabilities = \[(.+)\] }$', "".join(mine), re.MULTILINE
        )
        for right in re.findall(r'"(\w+)"', rights)
    ]


def use_operator_token(setup: Setup, rights: Iterable[tuple[str, str]]) -> None:
    rules: dict[str, list[str]] = {}
    for path, right in rights:
        rules.setdefault(path, []).append(right)
    name = f"operator-{setup.name}"
    policy = {path: {"capabilities": own} for path, own in rules.items()}
    text = json.dumps({"path": policy})
    setup.api.post(f"sys/policies/acl/{name}", policy=text)
    made = setup.api.post("auth/token/create-orphan", policies=[name])
    setup.token = made["client_token"]


def change_all(setup: Setup) -> None:
    """Have something to change in each thing that setup changes."""
    api = setup.server.api
    api.post("sys/config/auditing/request-headers/x-meshca-attempt", hmac=True)
    api.post(f"sys/policies/acl/meshca-{setup.name}", policy=_OTHER_POLICY)
    api.post(f"auth/approle-{setup.name}/role/meshca", token_policies=["other"])
    if setup.plugin == "vault-transit":
        api.post(f"{setup.mount}/keys/issuing/config", deletion_allowed=True)
        return
    api.post(f"sys/mounts/{setup.mount}/tune", audit_non_hmac_response_keys=[])
    issuer = f"{setup.mount}/issuer/{setup.options['issuer']}"
    api.call("PATCH", issuer, {"leaf_not_after_behavior": "truncate"})
    api.call("PATCH", f"{setup.mount}/roles/mesh", {"max_ttl": "48h"})


def complete_and_change(setup: Setup) -> None:
    setup.complete()
    change_all(setup)
    setup.answer("--apply", status=0)


def test_the_policy_of_the_operator_is_enough(setup: Setup) -> None:
    use_operator_token(setup, operator_rights(setup))
    assert setup.states("--plan", status=3)["mount"] == "make"
    complete_and_change(setup)
    assert set(setup.states("--plan", status=0).values()) == {"right"}
    setup.require_issuing()


def refusal(setup: Setup) -> str:
    """Return what is told when setup does not get through; "" if it does."""
    try:
        complete_and_change(setup)
    except (AssertionError, AnswerError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("plugin", BACKENDS)
def test_each_right_of_the_operator_is_needed_and_told_by_its_path(
    vault_server: Server, tmp_path: Path, plugin: str
) -> None:
    told: dict[str, str] = {}
    rights = operator_rights(Setup(vault_server, tmp_path, plugin))
    for number, (place, right) in enumerate(rights):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        own = Setup(vault_server, folder, plugin)
        kept = operator_rights(own)
        lost, _ = kept.pop(number)
        use_operator_token(own, kept)
        text = refusal(own)
        # The SecretID is made by the operator, not by setup.
        is_told = lost.removesuffix("+") in text or lost.endswith("secret-id")
        if not is_told or "permission denied" not in text:
            told[f"{place}: {right}"] = text or "is not needed"
    assert told == {}


def in_the_mount_of_another(
    pki: Setup, tmp_path_factory: pytest.TempPathFactory
) -> PKI:
    """Have setup use a mount that has an issuer already; return that one."""
    folder = tmp_path_factory.mktemp("other")
    hierarchy = vault_mounts.write_hierarchy(folder / "hierarchy")
    other = PKI.make(pki.server, hierarchy, folder / "chain.pem")
    pki.options["mount"] = other.mount
    pki.save()
    return other


def test_the_default_issuer_stays(
    pki: Setup, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = in_the_mount_of_another(pki, tmp_path_factory)
    path = f"{other.mount}/config/issuers"
    before = pki.server.api.get(path)
    assert before["default"] == other.issuer
    pki.complete()
    assert pki.server.api.get(path) == before
    assert pki.options["issuer"] != other.issuer


def test_an_import_that_would_move_the_default_issuer_is_refused(
    pki: Setup, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = in_the_mount_of_another(pki, tmp_path_factory)
    path = f"{other.mount}/config/issuers"
    fields = {"default": other.issuer, "default_follows_latest_issuer": True}
    pki.server.api.post(path, **fields)
    pki.answer("--apply", status=0)
    pki.sign_csr()
    issuers = pki.server.api.list(f"{other.mount}/issuers")["keys"]
    done = pki.run("--apply")
    assert done.exit_code == 1
    assert "default_follows_latest_issuer" in done.stdout
    assert pki.server.api.list(f"{other.mount}/issuers")["keys"] == issuers
    assert pki.server.api.get(path)["default"] == other.issuer


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_ttl": "48h"}, "max_ttl: 172800 -> 86460"),
        ({"no_store": False}, "no_store: false -> true"),
        ({"allow_any_name": True}, "allow_any_name: true -> false"),
        ({"allow_ip_sans": True}, "allow_ip_sans: true -> false"),
        (
            {"allowed_domains": ["example.com"]},
            'allowed_domains: ["example.com"] -> ',
        ),
        ({"ou": ["x"]}, 'ou: ["x"] -> []'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_field_of_the_role_that_differs_is_told_and_put_back(
    pki: Setup, fields: dict[str, object], told: str
) -> None:
    pki.complete()
    api, path = pki.server.api, f"{pki.mount}/roles/mesh"
    before = api.get(path)
    api.call("PATCH", path, fields)
    changed = api.get(path)
    plan = pki.run("--plan")
    assert plan.exit_code == 3
    assert told in plan.stdout
    assert plan.stdout.count(" -> ") == 1
    assert api.get(path) == changed
    assert pki.run("--apply").exit_code == 0
    assert api.get(path) == before


def test_a_field_of_the_role_that_setup_does_not_decide_stays(pki: Setup) -> None:
    pki.complete()
    api, path = pki.server.api, f"{pki.mount}/roles/mesh"
    fields = api.get(path) | {"max_ttl": "48h", "key_bits": 384}
    api.post(path, **fields)
    kept = api.get(path)["key_bits"]
    assert kept == 384
    assert pki.run("--apply").exit_code == 0
    assert api.get(path)["key_bits"] == kept


@pytest.mark.parametrize("lost", ["key", "csr", "issuer", "role", "policy", "login"])
def test_a_half_done_state_is_completed(pki: Setup, lost: str) -> None:
    api = pki.server.api
    if lost in {"key", "csr"}:
        api.post(f"sys/mounts/{pki.mount}", type="pki")
        if lost == "csr":
            fields = {"key_name": f"meshca-{pki.name}", "key_type": "ec"}
            api.post(f"{pki.mount}/keys/generate/internal", **fields)
        pki.complete()
        assert set(pki.states("--plan", status=0).values()) == {"right"}
        return
    pki.complete()
    if lost == "issuer":
        issuer = pki.options.pop("issuer")
        api.delete(f"{pki.mount}/issuer/{issuer}")
        pki.save()
    elif lost == "role":
        api.delete(f"{pki.mount}/roles/mesh")
    elif lost == "policy":
        api.delete(f"sys/policies/acl/meshca-{pki.name}")
    else:
        api.delete(f"sys/auth/approle-{pki.name}")
    assert pki.run("--apply").exit_code == 0
    assert set(pki.states("--plan", status=0).values()) == {"right"}


def test_another_policy_of_the_name_is_told_before_it_is_replaced(pki: Setup) -> None:
    pki.complete()
    path = f"sys/policies/acl/meshca-{pki.name}"
    pki.server.api.post(path, policy=_OTHER_POLICY)
    plan = pki.run("--plan")
    assert plan.exit_code == 3
    assert "secret/*" in plan.stdout
    assert pki.server.api.get(path)["policy"] == _OTHER_POLICY


def test_a_certificate_of_another_key_is_imported_nowhere(pki: Setup) -> None:
    pki.answer("--apply", status=0)
    spec = ThrowawaySpec(trust_domains=(TrustDomain("corp.example"),))
    write(make(spec), pki.folder / "ca")
    done = pki.run("--apply")
    assert done.exit_code == 1
    assert "no key of the mount is that of the first certificate" in done.stdout
    assert pki.server.api.ask("LIST", f"{pki.mount}/issuers")[0] == 404


def test_the_policies_of_a_login_role_that_is_there_stay(setup: Setup) -> None:
    api, mount = setup.server.api, f"approle-{setup.name}"
    api.post(f"sys/auth/{mount}", type="approle")
    path = f"auth/{mount}/role/meshca"
    api.post(path, token_policies=["other"], token_num_uses=7)
    setup.complete()
    found = api.get(path)
    assert found["token_policies"] == ["other", f"meshca-{setup.name}"]
    assert found["token_num_uses"] == 7


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "expected one of --plan and --apply"),
        (("--plan", "--apply"), "expected one of --plan and --apply"),
        (("--plan", "--issuing-ca", "us"), "expected one issuing CA of vault-pki"),
        (("--apply", "--login-role", "a?b=1"), "--login-role (found 'a?b=1')"),
        (("--apply", "--login-role", ".."), "--login-role (found '..')"),
        (("--apply", "--login-role", ""), "--login-role (found '')"),
    ],
)
def test_an_unclear_command_does_nothing(
    pki: Setup, arguments: tuple[str, ...], told: str
) -> None:
    done = pki.run(*arguments)
    assert done.exit_code != 0
    assert told in f"{done.output}{done.exception}"


def test_meshca_has_the_command(pki: Setup) -> None:
    done = CliRunner().invoke(
        meshca,
        ["vault", "setup", "--plan", "-c", str(pki.folder / "bridge.yaml")],
        env={"BAO_TOKEN": pki.server.root_token},
    )
    assert done.exit_code == 3, done.output
