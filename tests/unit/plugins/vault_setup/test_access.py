"""`bridge_vault.setup.access`: mount, header, CSR, policy and login."""

import resource
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.spi import BackendError, ConfigError
from bridge_vault.setup.access import LONGEST_MOUNT_SECONDS, Access
from bridge_vault.setup.pki import PKISetup
from bridge_vault.setup.transit import TransitSetup
from tests.support.parts.pki import bundle, new_chain
from tests.unit.plugins.vault_setup.support import (
    KEYS,
    RIGHT_MOUNT,
    RIGHT_TUNE,
    TUNE,
    Scripted,
    access_to,
    pki_setup,
    state_of,
    transit_setup,
)

CSR = "CERTIFICATE REQUEST"


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


@pytest.mark.parametrize(
    ("least", "shown", "config"),
    [
        (0, (), {}),
        (
            3600,
            ("certificate",),
            {KEYS: ["certificate"], "max_lease_ttl": LONGEST_MOUNT_SECONDS},
        ),
        (10**9, (), {"max_lease_ttl": 10**9}),
    ],
)
def test_a_mount_is_made_with_what_its_leaves_and_the_audit_log_need(
    tmp_path: Path, least: int, shown: tuple[str, ...], config: Mapping[str, object]
) -> None:
    vault = Scripted()
    access = access_to(vault, tmp_path)
    found = access.mount("pki", "pki", least_seconds=least, shown=shown)
    assert found.act is not None
    found.act()
    assert vault.written == {"sys/mounts/pki": {"type": "pki", "config": config}}


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


HEADERS = "sys/config/auditing/request-headers"


def in_namespace(access: Access) -> Access:
    return replace(
        access, options=access.options.model_copy(update={"namespace": "team"})
    )


def test_the_header_is_of_the_root_namespace(tmp_path: Path) -> None:
    vault = Scripted()
    found = in_namespace(access_to(vault, tmp_path)).header()
    assert found.act is not None
    found.act()
    assert vault.of_server == [f"read {HEADERS}", f"write {HEADERS}/x-meshca-attempt"]


def test_only_a_token_of_a_namespace_goes_on_without_the_header(tmp_path: Path) -> None:
    vault = Scripted()
    access = access_to(vault, tmp_path)
    vault.error = BackendError("no right", rule="vault.denied")
    assert in_namespace(access).header().state == "wait"
    with pytest.raises(BackendError, match="no right"):
        access.header()
    vault.error = BackendError("sealed", rule="vault.away")
    with pytest.raises(BackendError, match="sealed"):
        in_namespace(access).header()


@pytest.mark.parametrize(
    ("text", "state", "told"),
    [
        (None, "make", ["a"]),
        ("[]", "change", ["a"]),
        ('{"path": []}', "change", ["a"]),
        ('{"path": {"a": {"capabilities": ["read"]}}}', "right", []),
        ('{"path": {"a": {"capabilities": ["sudo"]}}}', "change", ["a"]),
        (
            '{"path": {"a": {"capabilities": ["read"]}, "b": {"capabilities": []}}}',
            "change",
            ["b"],
        ),
        ('path "a" { capabilities = ["read"] }', "change", ["the text", "a"]),
    ],
    ids=["absent", "no-object", "no-paths", "right", "wider", "more", "hcl"],
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


@pytest.mark.parametrize("made", [pki_setup, transit_setup])
def test_a_csr_of_another_key_is_a_problem(
    tmp_path: Path, made: Callable[[Scripted, Path], PKISetup | TransitSetup]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())
    (tmp_path / "eu.csr").write_bytes(csr.public_bytes(Encoding.PEM))
    found = state_of(made(Scripted(), tmp_path).steps(), "CSR")
    assert (found.state, found.act) == ("problem", None)


def unknown_curve() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())
    p256, other = (bytes.fromhex(f"06082a8648ce3d0301{end}") for end in ("07", "06"))
    der = csr.public_bytes(Encoding.DER).replace(p256, other)
    body = b64encode(der).decode()
    return f"-----BEGIN {CSR}-----\n{body}\n-----END {CSR}-----\n".encode()


def test_a_csr_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    access = access_to(Scripted(), tmp_path)
    (tmp_path / "curve.csr").write_bytes(unknown_curve())
    (tmp_path / "folder.csr").mkdir()
    for name in ("curve", "folder"):
        file = tmp_path / f"{name}.csr"
        found = access.csr(file, lambda _: True, str, is_signed=False)
        assert (found.state, found.act) == ("problem", None)
        assert found.note.startswith("expected a CSR of the key")


def test_a_csr_that_is_signed_is_of_no_use_any_more(tmp_path: Path) -> None:
    (tmp_path / "eu.csr").write_text("mine")
    access = access_to(Scripted(), tmp_path)
    found = access.csr(tmp_path / "eu.csr", lambda _: False, str, is_signed=True)
    assert (found.state, found.act) == ("right", None)


def test_a_csr_that_somebody_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "eu.csr"
    access = access_to(Scripted(), tmp_path)
    found = access.csr(file, lambda _: True, lambda: "mine", is_signed=False)
    file.write_text("theirs")
    assert found.act is not None
    with pytest.raises(ConfigError, match=r"eu\.csr: cannot be written: File exists"):
        found.act()
    assert file.read_text() == "theirs"


def test_another_method_at_the_mount_of_the_login_is_a_problem(tmp_path: Path) -> None:
    vault = Scripted({"sys/auth": {"approle/": {"type": "userpass"}}})
    found = access_to(vault, tmp_path).method()
    assert (found.state, found.act) == ("problem", None)
    assert "expected approle (found userpass)" in found.note
