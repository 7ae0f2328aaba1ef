"""The leaves that a ceremony tries below each CA, as Go judges them too.

`bridge.hierarchy.verify` asks our code and `openssl verify`; Go is asked here.
"""

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.hierarchy.ceremony import sign
from bridge.hierarchy.replica import replicate_path
from bridge.hierarchy.verify import Trial, _leaf, trials_of, tried
from tests.interop.constraints.chains import run_go_verifier
from tests.support.parts.ceremonies import CONSTRAINTS, HOSTS, HeldCeremony, tree
from tests.support.parts.pki import NOW

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("constraints")]

LOOSE = "somebody@meshca.invalid"
"""Go up to 1.27 lets a permitted host have subdomains, here `invalid`."""
EXCLUDED = ("bad.corp.example", ".bad.corp.example")


def sidecar() -> dict[str, Any]:
    """Two trust domains in the tree, of which the region has one."""
    excluded = {**CONSTRAINTS["excluded"], "dns": [*EXCLUDED]}
    names = {"name_constraints": {**CONSTRAINTS, "excluded": excluded}}
    content = tree(eu={**names, "trust_domains": ["corp.example"]}, prod=names)
    return content | {"trust_domains": ["corp.example", "other.example"]}


def ambient() -> dict[str, Any]:
    """No URI constraint, which rustls would reject."""
    permitted = {"dns": [*HOSTS], "email": ["invalid"]}
    names = {"name_constraints": {**CONSTRAINTS, "permitted": permitted}}
    rule = "constraints.uri-unconstrained"
    return tree(eu=names, prod=names) | {
        "data_planes": ["ambient", "linkerd"],
        "accepted": [{"rule": rule, "ca": "eu", "reason": "ambient"}],
    }


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("make", [sidecar, ambient])
def test_go_judges_each_leaf_as_it_is_meant(tmp_path: Path, make: Any) -> None:
    held = HeldCeremony(tmp_path, make())
    asked, trials = [], {}
    for name in ("root", "eu", "prod"):
        sign(held.ceremony(), name)
        chain = held.loaded.file.chain(name)
        path = [held.output.certificate(one) for one in chain]
        replica = replicate_path(path)
        *below, root = replica.certificates
        for number, trial in enumerate(trials_of(held.loaded.file, name, path)):
            leaf = _leaf(trial, replica, NOW)
            key = f"{name} {number}"
            trials[key] = trial
            asked.append(
                {
                    "name": key,
                    "root": pem(root),
                    "intermediates": [pem(one) for one in (*leaf.between, *below)],
                    "leaf": pem(leaf.certificate),
                    "time": int(NOW.timestamp()),
                }
            )
    verdicts = run_go_verifier(asked)
    # Go takes any certificate for a leaf; what such a leaf signs it refuses.
    wrong = {
        f"{key}: {trials[key]}": one.reason
        for key, one in verdicts.items()
        if one.accepted is not (trials[key].is_allowed or trials[key].is_ca)
        and trials[key].names[0].value != LOOSE
    }
    assert wrong == {}
    assert verdicts.keys() == trials.keys()


def test_each_kind_that_a_chain_forbids_is_tried(tmp_path: Path) -> None:
    held = HeldCeremony(tmp_path, sidecar())
    for name in ("root", "eu", "prod"):
        sign(held.ceremony(), name)
    path = [held.output.certificate(one) for one in ("prod", "eu", "root")]
    trials = trials_of(held.loaded.file, "prod", path)
    forbidden = {
        str(one.names[0].value) for one in trials if one.what == "a forbidden name"
    }
    assert forbidden >= {
        "spiffe://other.example/ns/a/sa/b",
        "spiffe://outside.test/ns/a/sa/b",
        "spiffe://notcorp.example/ns/a/sa/b",
        "notcorp.example",
        "bad.corp.example",
        "check.bad.corp.example",
        "192.0.2.1",
        "2001:db8::1",
        "somebody@outside.test",
    }
    assert [one.is_expired for one in trials].count(True) == 1
    assert [one.is_ca for one in trials].count(True) == 1
    assert [one.cas_between for one in trials if one.cas_between] == [1]


def test_the_leaf_that_signs_is_refused_for_the_path_length_alone(
    tmp_path: Path,
) -> None:
    """With one CA less the same certificates are a path."""
    held = HeldCeremony(tmp_path)
    for name in ("root", "eu"):
        sign(held.ceremony(), name)
    path = [held.output.certificate(one) for one in ("eu", "root")]
    names = (x509.UniformResourceIdentifier("spiffe://corp.example/ns/a/sa/b"),)
    trials = [
        Trial("as many", names, is_allowed=True, cas_between=1),
        Trial("one too many", names, is_allowed=False, cas_between=2),
    ]
    results = tried(trials, replicate_path(path), NOW, with_openssl=True)
    assert [one.is_right for one in results] == [True, True]
    assert [one.openssl for one in results] == [True, False]
