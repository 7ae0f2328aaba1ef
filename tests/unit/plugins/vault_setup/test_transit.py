"""`bridge_vault.setup.transit`: what is found of the key."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.parts.pki import bundle, new_chain
from tests.unit.plugins.vault_setup.support import Scripted, state_of, transit_setup


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


def test_a_transit_key_that_is_not_that_of_the_certificate_is_a_problem(
    tmp_path: Path,
) -> None:
    (tmp_path / "chain.pem").write_bytes(bundle(new_chain().certificate))
    vault = Scripted({"transit/keys/issuing": {"type": "ecdsa-p384", "keys": {}}})
    found = state_of(transit_setup(vault, tmp_path).steps(), "certificate ")
    assert found.state == "problem"
    assert found.note


def test_a_transit_key_is_made_closed_and_of_the_kind(tmp_path: Path) -> None:
    vault = Scripted()
    found = state_of(transit_setup(vault, tmp_path).steps(), "key ")
    assert found.act is not None
    found.act()
    made = {
        "type": "ecdsa-p256",
        "exportable": False,
        "allow_plaintext_backup": False,
    }
    assert vault.written == {"transit/keys/issuing": made}


def test_the_csr_is_of_the_version_of_the_options(tmp_path: Path) -> None:
    vault = Scripted(answers={"transit/keys/issuing/csr": {"csr": "a CSR"}})
    found = state_of(transit_setup(vault, tmp_path, version=3).steps(), "CSR ")
    assert found.act is not None
    found.act()
    assert vault.written == {"transit/keys/issuing/csr": {"version": 3}}
    assert (tmp_path / "eu.csr").read_text() == "a CSR\n"


def test_a_certificate_is_awaited_and_then_its_csr_is_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "eu.csr").write_text("mine")
    steps = transit_setup(Scripted(), tmp_path).steps
    assert state_of(steps(), "certificate ").state == "wait"
    assert state_of(steps(), "CSR ").state == "problem"
    (tmp_path / "chain.pem").write_bytes(bundle(new_chain().certificate))
    steps = transit_setup(Scripted(), tmp_path).steps
    assert state_of(steps(), "CSR ").state == "right"
