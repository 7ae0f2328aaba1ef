"""`bridge_vault.setup.pki`: what is found of issuer and role, and what is written."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from bridge_vault.role import ROLE as DEMANDED
from bridge_vault.role import SUBJECT, Limits, role_problems
from bridge_vault.setup.pki import wanted_role
from tests.support.parts.pki import bundle, new_chain
from tests.unit.plugins.vault_setup.support import (
    ISSUER,
    RIGHT_MOUNT,
    RIGHT_TUNE,
    TUNE,
    Scripted,
    configured,
    pki_setup,
    state_of,
)


def test_a_mount_holds_leaves_of_the_longest_lifetime(tmp_path: Path) -> None:
    tune = {**RIGHT_TUNE, "max_lease_ttl": 86_400}
    vault = Scripted({"sys/mounts": {"pki/": RIGHT_MOUNT}, TUNE: tune})
    found = state_of(pki_setup(vault, tmp_path).steps(), "mount ")
    assert [str(one) for one in found.changes] == ["max_lease_ttl: 86400 -> 86460"]


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


@pytest.mark.parametrize(("kind", "bits"), [("p256", 0), ("rsa2048", 256)])
@pytest.mark.parametrize("is_openbao", [True, False])
def test_setup_decides_every_field_of_the_role_that_bears_on_a_leaf(
    tmp_path: Path, kind: str, bits: int, *, is_openbao: bool
) -> None:
    own = new_chain(kind).certificate
    role = wanted_role(configured(tmp_path), ISSUER, own, is_openbao=is_openbao)
    assert role.pop("not_after_bound", "") == ("ttl-limited" if is_openbao else "")
    assert role == {
        **DEMANDED,
        **{name: [] for name in SUBJECT},
        "issuer_ref": ISSUER,
        "key_usage": ["DigitalSignature", "KeyEncipherment"],
        "ext_key_usage": [],
        "key_type": "any",
        "signature_bits": bits,
        "cn_validations": ["disabled"],
        "allowed_uri_sans": ["spiffe://corp.example/ns/*/sa/*"],
        "allowed_domains": [
            "meshca.istio-system.svc",
            "*.identity.linkerd.corp.example",
        ],
        "allow_bare_domains": True,
        "allow_glob_domains": True,
        "allow_subdomains": False,
        "allow_localhost": False,
        "allow_ip_sans": False,
        "allow_wildcard_certificates": False,
        "allowed_domains_template": False,
        "allowed_uri_sans_template": False,
        "enforce_hostnames": True,
        "not_before_duration": 120,
        "ttl": 86_460,
        "max_ttl": 86_460,
    }


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
