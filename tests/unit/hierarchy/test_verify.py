"""Leaves that are tried below a copy of a chain: what is tried, and who judges."""

from datetime import timedelta
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from cryptography import x509

from bridge.errors import ConfigError
from bridge.hierarchy.ceremony import sign
from bridge.hierarchy.replica import openssl_verdicts, replicate_path
from bridge.hierarchy.verify import (
    Trial,
    TrialResult,
    chain_problem,
    require_right,
    trials_of,
    tried,
)
from tests.support.parts.ceremonies import CONSTRAINTS, HOSTS, HeldCeremony, tree
from tests.support.parts.pki import NOW, new_root


def path_of(
    folder: Path, content: dict[str, Any]
) -> tuple[HeldCeremony, list[x509.Certificate]]:
    held = HeldCeremony(folder, content)
    for name in ("root", "eu", "prod"):
        sign(held.ceremony(), name)
    return held, [held.output.certificate(one) for one in ("prod", "eu", "root")]


def test_each_constrained_form_has_forbidden_names(tmp_path: Path) -> None:
    held, path = path_of(tmp_path, tree())
    trials = trials_of(held.loaded.file, "prod", path)
    allowed = [str(one) for one in trials if one.is_allowed]
    assert allowed == ["an allowed name (spiffe://corp.example/ns/check/sa/check)"]
    forbidden = {type(one.names[0]) for one in trials if one.what == "a forbidden name"}
    assert forbidden == {
        x509.UniformResourceIdentifier,
        x509.DNSName,
        x509.IPAddress,
        x509.RFC822Name,
    }
    structural = [
        one.what for one in trials if one.is_expired or one.is_ca or one.cas_between
    ]
    assert structural == [
        "an expired leaf",
        "a leaf that is a CA",
        "a leaf that was signed by a leaf that is a CA, one CA too many",
    ]
    results = tried(trials, replicate_path(path), NOW, with_openssl=True)
    assert all(one.is_right for one in results)
    assert {one.openssl for one in results} == {True, False}


def test_each_trust_domain_and_each_mesh_has_an_allowed_name(tmp_path: Path) -> None:
    hosts = [*HOSTS, "other.example", ".other.example"]
    constraints = {**CONSTRAINTS, "permitted": {"dns": hosts, "email": ["invalid"]}}
    changes = {"name_constraints": constraints}
    content = tree(eu=changes, prod=changes) | {
        "trust_domains": ["corp.example", "other.example"],
        "data_planes": ["ambient", "linkerd"],
        "accepted": [
            {"rule": "constraints.uri-unconstrained", "ca": name, "reason": "ambient"}
            for name in ("eu", "prod")
        ],
    }
    held = HeldCeremony(tmp_path, content)
    sign(held.ceremony(), "root")
    path = [held.output.certificate("root")]
    trials = trials_of(held.loaded.file, "root", path)
    names = [str(one.names[0].value) for one in trials if one.is_allowed]
    assert names == [
        "check.check.serviceaccount.identity.linkerd.corp.example",
        "check.check.serviceaccount.identity.linkerd.other.example",
        "spiffe://corp.example/ns/check/sa/check",
        "spiffe://other.example/ns/check/sa/check",
    ]


@pytest.mark.parametrize(
    ("ours", "openssl", "says"),
    [
        (False, True, "our code says rejected, openssl verify accepted"),
        (True, False, "our code says accepted, openssl verify rejected"),
        (False, None, "our code says rejected; correct name_constraints"),
    ],
)
def test_a_leaf_that_is_judged_wrongly_refuses_the_chain(
    *, ours: bool, openssl: bool | None, says: str
) -> None:
    trial = Trial("an allowed name", (x509.DNSName("a.example"),), is_allowed=True)
    with pytest.raises(ConfigError, match=r"prod: an allowed name .*accepted") as found:
        require_right([TrialResult(trial, ours, openssl)], source="prod")
    assert says in str(found.value)


def test_verifiers_that_agree_with_the_trial_pass() -> None:
    trial = Trial("a forbidden name", (x509.DNSName("a.example"),), is_allowed=False)
    results = [TrialResult(trial, False, False), TrialResult(trial, False, None)]
    require_right(results, source="prod")


def test_a_name_that_is_permitted_in_truth_is_no_forbidden_one(tmp_path: Path) -> None:
    """The trial is not made to fit: what a verifier says is compared with it."""
    _, path = path_of(tmp_path, tree())
    names = (x509.DNSName("api.corp.example"),)
    wrong = Trial("a forbidden name", names, is_allowed=False)
    (result,) = tried([wrong], replicate_path(path), NOW, with_openssl=True)
    assert (result.ours, result.openssl, result.is_right) == (True, True, False)


def test_a_root_alone_is_a_path_too(tmp_path: Path) -> None:
    held = HeldCeremony(tmp_path)
    root = sign(held.ceremony(), "root").certificate
    assert not chain_problem([root], NOW)
    late = NOW + timedelta(days=365 * 30)
    assert "the root expired on" in chain_problem([root], late)


def test_openssl_is_found_in_a_relative_folder_of_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/openssl").symlink_to(str(which("openssl")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    root = new_root().certificate
    assert openssl_verdicts([root], [root], "-no_check_time") == [True]
