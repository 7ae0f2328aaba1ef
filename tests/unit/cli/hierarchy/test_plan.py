"""`meshca hierarchy plan`, as a person and as a program see it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bridge.cli.hierarchy import app
from bridge.hierarchy.plan import RULES
from bridge.hierarchy.schema import load
from tests.support.parts.hierarchy_file import ca, changed

K8S = {"cas.prod.purpose": "kubernetes", "cas.prod.anchor": "root"}


def plan(tmp_path: Path, changes: dict[str, Any], *options: str) -> tuple[int, str]:
    path = tmp_path / "corp.yaml"
    path.write_text(json.dumps(changed(changes)))
    done = CliRunner().invoke(app, ["plan", str(path), *options])
    return done.exit_code, done.stdout


def test_a_person_sees_the_tree_the_digest_the_checks_and_the_other_half(
    tmp_path: Path,
) -> None:
    status, out = plan(tmp_path, {})
    assert status == 0
    assert load(tmp_path / "corp.yaml").digest in out.splitlines()
    assert "    \u2514\u2500\u2500 prod CN=Corp prod CA,O=Corp" in out
    assert "permits dns:corp.example, dns:svc, uri:corp.example" in out
    assert "info cas.eu.name_constraints: constrains IP addresses" in out
    assert "IP      rejects form  enforced  enforced" in out
    assert "  eu, prod: sidecar that trusts root would accept every SPIFFE ID" in out
    assert out.splitlines()[-1].endswith("0 findings that fail: nothing in the way")


@pytest.mark.parametrize("changes", [{}, K8S])
def test_each_rule_is_told_as_found_or_as_held(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    _, out = plan(tmp_path, changes)
    text = " ".join(out.split())
    (held,) = re.findall(r"Nothing found against: ((?:\S+, )*\S+)", text)
    found = [rule for rule in RULES if f"({rule})" in text]
    assert sorted([*found, *held.split(", ")]) == sorted(RULES)


def test_a_finding_that_fails_is_the_exit_status(tmp_path: Path) -> None:
    status, out = plan(tmp_path, K8S)
    assert status == 1
    assert "error cas.prod.anchor: has the anchor root, which would be" in out
    assert "(client-ca.anchor)" in out
    assert out.splitlines()[-1].endswith("nothing may be signed")


@pytest.mark.parametrize("changes", [{}, K8S])
def test_a_program_sees_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    status, out = plan(tmp_path, changes, "-o", "json")
    found = json.loads(out)
    assert found["passes"] is (status == 0)
    assert found["rules"] == RULES
    assert found["sha256"] == load(tmp_path / "corp.yaml").digest
    assert [one["name"] for one in found["cas"]] == ["root", "eu", "prod"]
    assert found["cas"][1]["name_constraints"]["excluded"]["ip"] == [
        "0.0.0.0/0",
        "::/0",
    ]
    assert {one["verifier"] for one in found["containment"]} == (
        {"kube-apiserver"} if changes else {"sidecar"}
    )
    failing = {one["rule"] for one in found["findings"] if one["fails"]}
    assert ("client-ca.anchor" in failing) is bool(changes)
    assert len(found["matrices"]) == (0 if changes else 1)


def test_no_key_is_touched(tmp_path: Path) -> None:
    status, _ = plan(tmp_path, {})
    assert status == 0  # none of the key files is there
    assert [path.name for path in tmp_path.iterdir()] == ["corp.yaml"]


def test_control_planes_that_trust_their_own_ca_are_told_together(
    tmp_path: Path,
) -> None:
    more = {f"cas.{name}": ca(name, "root", purpose="etcd") for name in ("e1", "e2")}
    _, out = plan(tmp_path, more)
    assert "  e1, e2: etcd that trusts that CA alone would accept every client" in out
    assert out.count("etcd that trusts") == 1
