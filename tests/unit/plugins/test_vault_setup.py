"""`meshca vault setup`: what is found of each thing, and what is written."""

import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.sdk import ConfiguredCA, configured_cas
from bridge.spi import ConfigError, PluginContext
from bridge_vault.options import PKIOptions, TransitOptions
from bridge_vault.role import Limits, role_problems
from bridge_vault.setup.access import Access
from bridge_vault.setup.operator import OperatorSession
from bridge_vault.setup.pki import PKISetup, wanted_role
from bridge_vault.setup.plan import PlanItem, Step, carried_out, differences, text_of
from bridge_vault.setup.transit import TransitSetup
from tests.support.parts.pki import bundle, new_chain

ISSUER = "0b51d2f0-6ff5-4a4c-9f0c-5a6bb2a5a3a1"
RIGHT_MOUNT = {"type": "pki"}
TUNE = "sys/mounts/pki/tune"
KEYS = "audit_non_hmac_response_keys"
RIGHT_TUNE = {"max_lease_ttl": 999_999, KEYS: ["certificate", "serial_number"]}


@dataclass
class Scripted:
    """Has what it is given, and notes what is written."""

    content: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    written: dict[str, Mapping[str, object]] = field(default_factory=dict)

    def read(self, path: str, *, of_server: bool = False) -> Mapping[str, Any] | None:
        return self.content.get(path)

    def list(self, path: str) -> Mapping[str, Any]:
        return self.content.get(path, {})

    def write(
        self, path: str, fields: Mapping[str, object], *, of_server: bool = False
    ) -> Mapping[str, Any]:
        self.written[path] = fields
        return {}

    change = write


def configured(folder: Path) -> ConfiguredCA:
    return ConfiguredCA(
        plugin="vault-pki",
        options={},
        context=PluginContext(name="eu", base=folder, chain=Path("chain.pem")),
        uri_names=("spiffe://corp.example/ns/*/sa/*",),
        dns_names=("meshca.istio-system.svc", "*.identity.linkerd.corp.example"),
        backdate=timedelta(minutes=2),
        max_ttl=timedelta(hours=24),
    )


def access_to(
    vault: Scripted,
    folder: Path,
    login: Mapping[str, object] | None = None,
    alike: Sequence[str] = ("eu",),
) -> Access:
    approle = {"approle": {"role_id": "r", "secret_id_file": "secret-id"}}
    options = PKIOptions.model_validate(
        {
            "addresses": ("https://vault.example:8200",),
            "login": login or approle,
            "issuer": ISSUER,
            "role": "mesh",
        },
        context=folder,
    )
    return Access(cast("OperatorSession", vault), configured(folder), options, alike)


@pytest.mark.parametrize(
    ("mount", "tune", "state", "fields"),
    [
        (None, None, "make", None),
        (RIGHT_MOUNT, RIGHT_TUNE, "right", []),
        ({"type": "kv"}, RIGHT_TUNE, "problem", []),
        (RIGHT_MOUNT, {**RIGHT_TUNE, KEYS: None}, "change", [KEYS]),
        (RIGHT_MOUNT, {**RIGHT_TUNE, KEYS: ["certificate"]}, "change", [KEYS]),
        (
            RIGHT_MOUNT,
            {**RIGHT_TUNE, "max_lease_ttl": 3600},
            "change",
            ["max_lease_ttl"],
        ),
    ],
    ids=["absent", "right", "other-engine", "no-keys", "one-key", "short"],
)
def test_a_mount_is_made_or_widened_only_as_far_as_is_needed(
    tmp_path: Path,
    mount: Mapping[str, Any] | None,
    tune: Mapping[str, Any] | None,
    state: str,
    fields: list[str] | None,
) -> None:
    vault = Scripted({"sys/mounts": {"pki/": mount} if mount else {}})
    vault.content[TUNE] = tune or {}
    found = access_to(vault, tmp_path).mount(
        "pki", "pki", least_seconds=86_400, shown=("certificate", "serial_number")
    )
    assert found.state == state
    assert vault.written == {}
    if found.act is not None:
        found.act()
        (written,) = vault.written.values()
        assert fields is None or sorted(written) == sorted(fields)
    assert fields is None or [one.field for one in found.changes] == fields


def test_keys_that_somebody_else_has_shown_stay(tmp_path: Path) -> None:
    vault = Scripted({"sys/mounts": {"pki/": RIGHT_MOUNT}})
    vault.content[TUNE] = {**RIGHT_TUNE, KEYS: ["other"]}
    found = access_to(vault, tmp_path).mount("pki", "pki", shown=("certificate",))
    assert found.act is not None
    found.act()
    assert vault.written[TUNE] == {KEYS: ["other", "certificate"]}


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({}, "make"),
        ({"x-meshca-attempt": {"hmac": True}}, "change"),
        ({"x-meshca-attempt": {"hmac": False}}, "right"),
        ({"X-Meshca-Attempt": {"hmac": False}}, "right"),
    ],
)
def test_the_header_of_the_attempt_is_audited_unhashed(
    tmp_path: Path, headers: Mapping[str, object], state: str
) -> None:
    path = "sys/config/auditing/request-headers"
    vault = Scripted({path: {"headers": headers}})
    assert access_to(vault, tmp_path).header().state == state


@pytest.mark.parametrize(
    ("text", "state", "told"),
    [
        (None, "make", ["a"]),
        ('{"path": {"a": {"capabilities": ["read"]}}}', "right", []),
        ('{"path": {"a": {"capabilities": ["sudo"]}}}', "change", ["a"]),
        (
            '{"path": {"a": {"capabilities": ["read"]}, "b": {"capabilities": []}}}',
            "change",
            ["b"],
        ),
        ('path "a" { capabilities = ["read"] }', "change", ["the text", "a"]),
    ],
    ids=["absent", "right", "wider", "more", "hcl"],
)
def test_a_policy_is_told_path_by_path(
    tmp_path: Path, text: str | None, state: str, told: list[str]
) -> None:
    path = "sys/policies/acl/meshca-eu"
    vault = Scripted({path: {"policy": text}} if text else {})
    found = access_to(vault, tmp_path).write_policy({"a": "read"})
    assert (found.state, [one.field for one in found.changes]) == (state, told)


def test_another_login_is_left_to_the_operator(tmp_path: Path) -> None:
    vault = Scripted()
    access = access_to(vault, tmp_path, {"kubernetes": {"role": "bridge"}})
    for found in (access.method(), access.login_role("meshca")):
        assert (found.state, found.act) == ("right", None)
        assert "give its tokens the policy meshca-eu" in found.note


ROLE = "auth/approle/role/meshca"


@pytest.mark.parametrize("there", [None, {"token_policies": ["other"]}])
def test_two_runs_at_once_on_one_login_role_lose_no_policy(
    tmp_path: Path, there: Mapping[str, Any] | None
) -> None:
    vault = Scripted({ROLE: there} if there else {})
    access = access_to(vault, tmp_path, alike=("eu", "us"))
    other = replace(
        access, ca=replace(access.ca, context=replace(access.ca.context, name="us"))
    )
    looked = [one.login_role("meshca") for one in (access, other)]
    for found in looked:
        assert found.act is not None
        found.act()
        policies = cast("list[str]", vault.written[ROLE]["token_policies"])
        assert {"meshca-eu", "meshca-us"} <= set(policies)
        assert there is None or "other" in policies


def test_a_login_role_that_is_made_has_tokens_that_live_as_long_as_the_bridge(
    tmp_path: Path,
) -> None:
    vault = Scripted()
    for there, period in ((None, 3600), ({"token_policies": ["other"]}, None)):
        vault.content |= {ROLE: there} if there else {}
        found = access_to(vault, tmp_path).login_role("meshca")
        assert found.act is not None
        found.act()
        assert vault.written[ROLE].get("token_period") == period


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa2048", "ed25519"])
@pytest.mark.parametrize("is_openbao", [True, False])
def test_the_role_passes_the_check_of_the_plugin(
    tmp_path: Path, kind: str, *, is_openbao: bool
) -> None:
    own = new_chain(kind).certificate
    role = wanted_role(configured(tmp_path), ISSUER, own, is_openbao=is_openbao)
    assert role_problems(role, own) == []
    assert Limits(role).backdate == timedelta(minutes=2)
    assert role["allow_subdomains"] is False


@pytest.mark.parametrize(
    ("hosts", "bare", "globs"),
    [(("a",), True, False), (("*.a",), False, True), (("a", "*.b"), True, True)],
)
def test_names_are_permitted_as_they_are_written(
    tmp_path: Path, hosts: tuple[str, ...], *, bare: bool, globs: bool
) -> None:
    ca = replace(configured(tmp_path), dns_names=hosts)
    role = wanted_role(ca, ISSUER, new_chain().certificate, is_openbao=True)
    assert (role["allow_bare_domains"], role["allow_glob_domains"]) == (bare, globs)


def pki_setup(vault: Scripted, folder: Path) -> PKISetup:
    access = access_to(vault, folder)
    options = cast("PKIOptions", access.options)
    return PKISetup(access, options, "p256", folder / "eu.csr", "meshca")


def transit_setup(vault: Scripted, folder: Path) -> TransitSetup:
    access = access_to(vault, folder)
    options = TransitOptions.model_validate(
        {
            "addresses": ("https://vault.example:8200",),
            "login": {"token": {"file": "token"}},
            "key": "issuing",
        },
        context=folder,
    )
    return TransitSetup(access, options, "p256", folder / "eu.csr", "meshca")


def state_of(steps: Iterable[Step], what: str) -> PlanItem:
    (found,) = [one for one in (step() for step in steps) if what in one.what]
    return found


@pytest.mark.parametrize("made", [pki_setup, transit_setup])
def test_a_chain_whose_key_is_not_there_makes_no_key(
    tmp_path: Path, made: Callable[[Scripted, Path], PKISetup | TransitSetup]
) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(new_chain().certificate))
    found = state_of(made(Scripted(), tmp_path).steps(), "key ")
    assert (found.state, found.act) == ("problem", None)


@pytest.mark.parametrize("made", [pki_setup, transit_setup])
def test_a_csr_of_something_else_is_not_overwritten(
    tmp_path: Path, made: Callable[[Scripted, Path], PKISetup | TransitSetup]
) -> None:
    (tmp_path / "eu.csr").write_text("mine")
    found = state_of(made(Scripted(), tmp_path).steps(), "CSR")
    assert (found.state, found.act) == ("problem", None)
    assert (tmp_path / "eu.csr").read_text() == "mine"


def test_a_csr_that_cannot_be_written_is_told_and_not_left_half_written(
    tmp_path: Path,
) -> None:
    file = tmp_path / "eu.csr"
    access = access_to(Scripted(), tmp_path)
    found = access.csr(file, lambda _: True, lambda: "a CSR", is_signed=False)
    assert found.act is not None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # as on a full disk
    try:
        with pytest.raises(ConfigError, match=r"eu\.csr: cannot be written: File too"):
            found.act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not file.exists()
    found.act()
    assert file.read_text() == "a CSR\n"


@pytest.mark.parametrize(
    ("key", "state", "told"),
    [
        ({"deletion_allowed": False}, "right", ""),
        ({"deletion_allowed": True}, "change", ""),
        ({"exportable": True}, "problem", "exportable cannot be taken back"),
        ({"allow_plaintext_backup": True}, "problem", "allow_plaintext_backup"),
    ],
)
def test_a_transit_key_never_leaves_the_server(
    tmp_path: Path, key: Mapping[str, object], state: str, told: str
) -> None:
    vault = Scripted({"transit/keys/issuing": key})
    found = state_of(transit_setup(vault, tmp_path).steps(), "key ")
    assert found.state == state
    assert told in found.note


@pytest.mark.parametrize("made", [pki_setup, transit_setup])
def test_a_csr_of_another_key_is_a_problem(
    tmp_path: Path, made: Callable[[Scripted, Path], PKISetup | TransitSetup]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())
    (tmp_path / "eu.csr").write_bytes(csr.public_bytes(Encoding.PEM))
    found = state_of(made(Scripted(), tmp_path).steps(), "CSR")
    assert (found.state, found.act) == ("problem", None)


def test_another_method_at_the_mount_of_the_login_is_a_problem(tmp_path: Path) -> None:
    vault = Scripted({"sys/auth": {"approle/": {"type": "userpass"}}})
    found = access_to(vault, tmp_path).method()
    assert (found.state, found.act) == ("problem", None)
    assert "expected approle (found userpass)" in found.note


def test_a_transit_key_that_is_not_that_of_the_certificate_is_a_problem(
    tmp_path: Path,
) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(new_chain().certificate))
    vault = Scripted({"transit/keys/issuing": {"type": "ecdsa-p384", "keys": {}}})
    found = state_of(transit_setup(vault, tmp_path).steps(), "certificate ")
    assert found.state == "problem"
    assert found.note


OTHER_ISSUER = "11111111-6ff5-4a4c-9f0c-5a6bb2a5a3a1"


@pytest.mark.parametrize(
    ("issuer", "more", "told"),
    [
        ("", {}, "leave issuer out until setup has imported it"),
        (OTHER_ISSUER, {}, f"options.issuer is {ISSUER}: expected {OTHER_ISSUER}"),
        (ISSUER, {"usage": "read-only"}, "usage"),
    ],
    ids=["not-imported", "another", "of-no-use"],
)
def test_an_issuer_that_the_bridge_could_not_use_is_a_problem(
    tmp_path: Path, issuer: str, more: Mapping[str, object], told: str
) -> None:
    own = new_chain().certificate
    (tmp_path / "chain.pem").write_bytes(bundle(own))
    vault = Scripted({"sys/mounts": {"pki/": RIGHT_MOUNT}})
    if issuer:
        pem = own.public_bytes(Encoding.PEM).decode()
        vault.content["pki/issuers"] = {"keys": [issuer]}
        vault.content[f"pki/issuer/{issuer}"] = {"certificate": pem, **more}
    found = state_of(pki_setup(vault, tmp_path).steps(), "issuer ")
    assert (found.state, found.act) == ("problem", None)
    assert told in found.note


@pytest.mark.parametrize(("product", "denied"), [("2.7.2+builtin.bao", 0), ("1.21", 1)])
def test_not_after_is_denied_where_the_role_does_not_bound_it(
    tmp_path: Path, product: str, denied: int
) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(new_chain().certificate))
    vault = Scripted({"sys/mounts": {"sys/": {"running_plugin_version": product}}})
    found = state_of(pki_setup(vault, tmp_path).steps(), "policy ")
    assert found.act is not None
    found.act()
    (written,) = vault.written.values()
    assert str(written["policy"]).count("not_after") == denied


def test_a_step_looks_when_the_ones_before_it_are_done() -> None:
    done: list[str] = []

    def first() -> PlanItem:
        return PlanItem(what="a", state="make", act=lambda: done.append("a"))

    def second() -> PlanItem:
        assert done == ["a"]
        return PlanItem(what="b", state="right")

    assert [one.what for one in carried_out([first, second])] == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "wanted", "told"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({}, {"a": False}, []),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, []),
        ({"a": None}, {"a": list[str]()}, []),
        ({"a": ["x"]}, {"a": list[str]()}, ['a: ["x"] -> []']),
        ({}, {"a": True}, ["a: nothing -> true"]),
    ],
)
def test_fields_differ_when_vault_would_act_otherwise(
    found: Mapping[str, Any], wanted: Mapping[str, object], told: list[str]
) -> None:
    assert [str(one) for one in differences(found, wanted)] == told


@pytest.mark.parametrize(
    ("state", "is_done", "word"),
    [
        ("make", False, "would be made"),
        ("make", True, "made"),
        ("change", False, "would be changed"),
        ("change", True, "changed"),
        ("right", True, "is right"),
        ("wait", True, "waits"),
    ],
)
def test_a_plan_says_would(state: Any, word: str, *, is_done: bool) -> None:
    text = text_of(PlanItem(what="role r", state=state), is_done=is_done)
    assert text.split("  ")[0].strip() == word


def test_the_names_of_leaves_come_from_the_configuration(tmp_path: Path) -> None:
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
        "issuing_cas": {
            "eu": {"plugin": "vault-pki", "options": {"x": 1}},
            "disk": {"plugin": "file"},
        },
        "trust_anchors": "roots.pem",
        "issuance": {"issuing_cas": ["eu"]},
        "ledger": {
            "journal": "journal",
            "archive": "sqlite:///a.db",
            "heads": {"sink": "h"},
        },
    }
    path = tmp_path / "bridge.yaml"
    path.write_text(yaml.safe_dump(content))
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
