"""`meshca vault setup` on a real OpenBao and a real Vault."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from typer.testing import CliRunner, Result

from bridge.cli.command_line import app as meshca
from bridge.hierarchy.export import write
from bridge.hierarchy.issuing_csr import read_issuing_key
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spi import IssuingCAFactory, PluginContext
from bridge.spiffe import TrustDomain
from bridge.testing.leaves import leaf_request, require_issued
from bridge_vault import VaultPKICA, VaultTransitCA
from bridge_vault.command import app
from tests.support.parts import vault_mounts
from tests.support.parts.vault import Server
from tests.support.parts.vault_mounts import PKI

BACKENDS: Mapping[str, IssuingCAFactory] = {
    "vault-pki": VaultPKICA,
    "vault-transit": VaultTransitCA,
}
HOST = "meshca.istio-system.svc"
_numbers = count(1)


@dataclass
class Setup:
    """A configuration with one issuing CA, and a mount of its own."""

    server: Server
    folder: Path
    plugin: str
    options: dict[str, Any] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"eu-{next(_numbers)}")

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
            env={"BAO_TOKEN": self.server.root_token, "VAULT_TOKEN": ""},
        )

    def answer(self, *arguments: str, status: int) -> dict[str, Any]:
        done = self.run("-o", "json", *arguments)
        assert done.exit_code == status, (done.output, done.exception)
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

    def complete(self) -> None:
        """Go through all of it, and write the options that setup found out."""
        self.answer("--apply", status=0)
        self.sign_csr()
        found = self.answer("--apply", status=0)["options"]
        approle = self.options["login"]["approle"]
        approle["role_id"] = found["login.approle.role_id"]
        if self.plugin == "vault-pki":
            self.options["issuer"] = found["issuer"]
        self.save()
        path = f"auth/{approle['mount']}/role/meshca/secret-id"
        secret = self.server.api.post(path)["secret_id"]
        file = self.folder / "secret-id"
        file.touch(mode=0o600)
        file.write_text(secret)

    def context(self) -> PluginContext:
        return PluginContext(
            name=self.name, base=self.folder, chain=self.folder / "ca/chain.pem"
        )


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

    warned: list[str] = []
    context = replace(setup.context(), warn=warned.append)
    ca = BACKENDS[setup.plugin](setup.options, context)
    try:
        ca.check(timeout=5)
        assert warned == []
        for name in (
            x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web"),
            x509.DNSName(HOST),
            x509.DNSName(
                "web.shop.serviceaccount.identity.linkerd.corp.example",
            ),
        ):
            prepared = ca.prepare(leaf_request((name,)))
            require_issued(ca.issue(prepared, timeout=5), prepared, ca.describe())
    finally:
        ca.close()


def test_the_default_issuer_stays(
    pki: Setup, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("other")
    hierarchy = vault_mounts.write_hierarchy(folder / "hierarchy")
    other = PKI.make(pki.server, hierarchy, folder / "chain.pem")
    pki.options["mount"] = other.mount
    pki.save()
    path = f"{other.mount}/config/issuers"
    before = pki.server.api.get(path)
    assert before["default"] == other.issuer
    pki.complete()
    assert pki.server.api.get(path) == before
    assert pki.options["issuer"] != other.issuer


def test_an_import_that_would_move_the_default_issuer_is_refused(
    pki: Setup, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("other")
    hierarchy = vault_mounts.write_hierarchy(folder / "hierarchy")
    other = PKI.make(pki.server, hierarchy, folder / "chain.pem")
    pki.options["mount"] = other.mount
    pki.save()
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
    text = 'path "secret/*" { capabilities = ["read"] }'
    pki.server.api.post(path, policy=text)
    plan = pki.run("--plan")
    assert plan.exit_code == 3
    assert "secret/*" in plan.stdout
    assert pki.server.api.get(path)["policy"] == text


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
