"""`bridge_vault.setup.pki`: what is found of issuer and role, and what is written."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.spi import BackendBrokenError
from bridge_vault.role import ROLE as DEMANDED
from bridge_vault.role import SUBJECT, Limits, role_problems
from bridge_vault.setup.pki import wanted_role
from tests.support.parts.pki import bundle, new_chain, new_root
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
    assert [*role_problems(role, own)] == []
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


def with_chain(folder: Path, *issuers: object) -> tuple[x509.Certificate, Scripted]:
    """Write a chain; return its first certificate, and a mount with such issuers.

    Args:
        folder: Of the configuration.
        issuers: Their certificates, in PEM; None for that of the chain.
    """
    issuing = new_chain()
    own = issuing.certificate
    (folder / "chain.pem").write_bytes(bundle(own, new_root("above").certificate))
    vault = Scripted({"sys/mounts": {"pki/": RIGHT_MOUNT}})
    ids = [f"{number}{ISSUER[1:]}" for number in range(len(issuers))]
    vault.content["pki/issuers"] = {"keys": ids}
    pem = own.public_bytes(Encoding.PEM).decode()
    for one, issuer in zip(ids, issuers, strict=True):
        content = {"certificate": pem if issuer is None else issuer}
        vault.content[f"pki/issuer/{one}"] = content
    return own, vault


def test_the_issuer_is_that_of_the_chain(tmp_path: Path) -> None:
    other = new_root("another CA").pem.decode()
    _, vault = with_chain(tmp_path, other, "no certificate", other, None)
    vault.content[f"pki/issuer/2{ISSUER[1:]}"] = {}
    assert pki_setup(vault, tmp_path).issuer == f"3{ISSUER[1:]}"
    del vault.content["sys/mounts"]
    assert pki_setup(vault, tmp_path).issuer == ""


@pytest.mark.parametrize("is_named", [True, False])
def test_a_key_is_known_by_its_name_until_there_is_a_certificate(
    tmp_path: Path, *, is_named: bool
) -> None:
    info = {"key_name": "meshca-eu" if is_named else "another"}
    content = {"keys": ["k"], "key_info": {"k": info}}
    vault = Scripted({"pki/keys": content, "pki/key/k": {"key_id": "k"}})
    found = state_of(pki_setup(vault, tmp_path).steps(), "key ")
    assert found.state == ("right" if is_named else "make")
    if found.act is not None:
        found.act()
        made = {"key_name": "meshca-eu", "key_type": "ec", "key_bits": 256}
        assert vault.written == {"pki/keys/generate/internal": made}


@pytest.mark.parametrize("is_own", [True, False])
def test_a_key_is_known_by_the_certificate(tmp_path: Path, *, is_own: bool) -> None:
    own, vault = with_chain(tmp_path)
    certificate = own if is_own else new_root("another CA").certificate
    identifier = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    written = identifier.digest.hex(":").upper()
    # A name says nothing once there is a certificate.
    content = {"keys": ["k"], "key_info": {"k": {"key_name": "meshca-eu"}}}
    vault.content |= {"pki/keys": content, "pki/key/k": {"subject_key_id": written}}
    found = state_of(pki_setup(vault, tmp_path).steps(), "key ")
    assert found.state == ("right" if is_own else "problem")
    assert found.act is None


def test_without_a_certificate_issuer_role_and_policy_wait(tmp_path: Path) -> None:
    for what in ("issuer ", "role pki", "policy "):
        found = state_of(pki_setup(Scripted(), tmp_path).steps(), what)
        assert (found.state, found.act) == ("wait", None)


@pytest.mark.parametrize(
    ("before", "state", "told"),
    [
        ({}, "make", "the first issuer of a mount"),
        ({"default_follows_latest_issuer": True}, "make", "the first issuer"),
        ({"default": "d"}, "make", "d stays the default issuer"),
        (
            {"default": "d", "default_follows_latest_issuer": True},
            "problem",
            "default_follows_latest_issuer of pki/config/issuers",
        ),
    ],
    ids=["empty", "empty-follows", "stays", "would-move"],
)
def test_an_issuer_is_imported_where_the_default_one_stays(
    tmp_path: Path, before: Mapping[str, object], state: str, told: str
) -> None:
    _, vault = with_chain(tmp_path)
    vault.content["pki/config/issuers"] = before
    found = state_of(pki_setup(vault, tmp_path, is_unknown=True).steps(), "issuer ")
    assert found.state == state
    assert told in found.note


@pytest.mark.parametrize(
    ("before", "after", "is_moved"),
    [({}, "new", False), ({"default": "d"}, "d", False), ({"default": "d"}, "e", True)],
)
def test_an_import_that_moved_the_default_issuer_is_told(
    tmp_path: Path, before: Mapping[str, object], after: str, *, is_moved: bool
) -> None:
    own, vault = with_chain(tmp_path)
    pem = own.public_bytes(Encoding.PEM).decode()
    issuer = {"certificate": pem, "leaf_not_after_behavior": "truncate"}
    usage = {"usage": "read-only,issuing-certificates", "manual_chain": None}
    vault.content["pki/config/issuers"] = before
    vault.imported = {
        "pki/config/issuers": {"default": after},
        "pki/issuers": {"keys": [ISSUER]},
        f"pki/issuer/{ISSUER}": issuer | usage,
    }
    found = state_of(pki_setup(vault, tmp_path, is_unknown=True).steps(), "issuer ")
    assert found.act is not None
    if is_moved:
        with pytest.raises(BackendBrokenError, match="changed the default issuer"):
            found.act()
        return
    found.act()
    bundled = vault.written["pki/issuers/import/cert"]["pem_bundle"]
    assert bundled == (tmp_path / "chain.pem").read_text("ascii")
    assert vault.written[f"pki/issuer/{ISSUER}"] == {"leaf_not_after_behavior": "err"}


def test_of_a_role_that_is_there_only_what_differs_is_changed(tmp_path: Path) -> None:
    own, vault = with_chain(tmp_path, None)
    issuer = f"0{ISSUER[1:]}"
    role = wanted_role(configured(tmp_path), issuer, own, is_openbao=False)
    vault.content["pki/roles/mesh"] = {**role, "max_ttl": 0, "key_bits": 384}
    found = state_of(pki_setup(vault, tmp_path).steps(), "role pki")
    assert found.act is not None
    found.act()
    assert vault.patched == ["pki/roles/mesh"]
    assert vault.written == {"pki/roles/mesh": {"max_ttl": 86_460}}


def test_fields_that_are_empty_are_not_told_of_a_role_that_is_made(
    tmp_path: Path,
) -> None:
    _, vault = with_chain(tmp_path, None)
    found = state_of(pki_setup(vault, tmp_path).steps(), "role pki")
    assert found.state == "make"
    told = {one.field: one.wanted for one in found.changes}
    assert told["no_store"] is True
    assert not {"ou", "not_after"} & set(told)
