"""What users report has a rule of the doctor, found in a real configuration."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from bridge.checks.doctor import RULES, Diagnosis, Severity, diagnose, rule_of
from bridge.cli import doctor as command
from bridge.cli.command_line import app
from bridge.system.clock import system_clock
from tests.support.parts.pki import (
    NOW,
    Authority,
    bundle,
    new_key,
    new_root,
    revoking,
    write_private,
)
from tests.support.parts.tokens import TokenIssuer
from tests.unit.checks.test_findings import DAY, Change, lasting, written

URI, DNS = x509.UniformResourceIdentifier, x509.DNSName


def permitting(*names: x509.GeneralName) -> x509.NameConstraints:
    return x509.NameConstraints([*names], None)


def under(*, constraints: x509.NameConstraints | None = None) -> Authority:
    region = new_root().issue_ca("region", path_length=1, constraints=constraints)
    return region.issue_ca("issuing", path_length=0)


def served_by(make: Callable[[], Authority], **fronts: Any) -> Change:
    """Put a chain in place of the configuration's own."""

    def change(tree: dict[str, Any], folder: Path) -> None:
        ca, place = make(), folder / "hierarchy"
        (place / "chain.pem").write_bytes(bundle(*ca.chain))
        (place / "roots.pem").write_bytes(bundle(ca.root))
        write_private(place / "issuing.key", ca.key_pem())
        for front, more in fronts.items():
            tree["fronts"][front] |= more

    return change


def no_ca() -> Authority:
    region = new_root().issue_ca("region", path_length=1)
    other = region.issue_ca("key")
    leaf = region.issue_leaf(
        *(DNS("a.example"),),
        key=other.key,
        not_after=NOW + 3650 * DAY,
        subject=x509.Name.from_rfc4514_string("CN=leaf"),
    )
    return Authority(leaf, other.key, other.above)


def one_subject() -> Authority:
    region = new_root().issue_ca("same", path_length=1)
    return region.issue_ca("same", path_length=0)


def one_key() -> Authority:
    region = new_root().issue_ca("region", path_length=1)
    return region.issue_ca("issuing", key=region.key, path_length=0)


def one_tier_too_many() -> Authority:
    region = new_root().issue_ca("region", path_length=0)
    return region.issue_ca("issuing", path_length=0)


def short_key() -> Authority:
    region = new_root().issue_ca("region", path_length=1)
    return region.issue_ca("issuing", key=new_key("rsa1024"), path_length=0)


def ended() -> Authority:
    region = new_root().issue_ca("region", path_length=1)
    return region.issue_ca("issuing", path_length=0, not_after=NOW)


def foreign() -> Authority:
    ca = under()
    other = new_root("other")
    return replace(ca, above=(*ca.above[:-1], other))


def second_domain(tree: dict[str, Any], folder: Path) -> None:
    served_by(lambda: under(constraints=permitting(URI("corp.example"))))(tree, folder)
    tree["fronts"].pop("linkerd")
    tree["fronts"]["istio"]["data_planes"] = ["sidecar"]
    (first,) = tree["clusters"]
    TokenIssuer(algorithm="ES256").write_jwks(folder / "other.json")
    tokens = {**first["tokens"], "file": "other.json"}
    other = {"name": "other", "trust_domain": "other.example", "tokens": tokens}
    tree["clusters"].append(other)


def listed(left: timedelta) -> Change:
    def change(tree: dict[str, Any], folder: Path) -> None:
        ca = under()
        served_by(lambda: ca)(tree, folder)
        due = system_clock() + left
        (folder / "region.crl").write_bytes(revoking(ca.above[0], next_update=due))
        tree["crls"] = ["region.crl"]

    return change


def revoked(tree: dict[str, Any], folder: Path) -> None:
    ca = under()
    served_by(lambda: ca)(tree, folder)
    (folder / "region.crl").write_bytes(revoking(ca.above[0], ca))
    tree["crls"] = ["region.crl"]


def list_of_nobody(tree: dict[str, Any], folder: Path) -> None:
    (folder / "other.crl").write_bytes(revoking(new_root("another")))
    tree["crls"] = ["other.crl"]


def no_anchors(tree: dict[str, Any], folder: Path) -> None:
    (folder / "empty.pem").touch()
    tree["trust_anchors"] = "empty.pem"


def long_leaves(tree: dict[str, Any], _: Path) -> None:
    tree["issuance"] |= {"max_ttl": "240h", "default_ttl": "24h"}


# The key of each is in a file, which is a warning.
REPORTS: dict[str, tuple[Change | None, str, str, int]] = {
    # What is wrong, its rule and severity, and the exit status.
    "the issuer is no CA": (served_by(no_ca), "chain.not-a-ca", "error", 1),
    "one subject in two tiers": (
        *(served_by(one_subject), "chain.shared-subject", "error", 1),
    ),
    "one key in two tiers": (served_by(one_key), "chain.shared-key", "error", 1),
    "more tiers than a pathLen allows": (
        *(served_by(one_tier_too_many), "chain.path-length", "error", 1),
    ),
    "RSA-1024": (served_by(short_key), "chain.key", "error", 1),
    "an issuing CA that has ended": (served_by(ended), "expiry.invalid", "error", 1),
    "half a host in a constraint": (
        served_by(lambda: under(constraints=permitting(URI("corp.example")))),
        *("constraints.half-host", "info", 3),
    ),
    "a revoked issuing CA": (revoked, "crl.revoked", "error", 1),
    "a list of a CA that no chain has": (list_of_nobody, "crl.file", "warning", 3),
    "no trust anchor": (no_anchors, "anchors.trouble", "error", 1),
    "a wrong chain": (served_by(foreign), "chain.wrong", "error", 1),
    "spiffe:// in a constraint": (
        served_by(lambda: under(constraints=permitting(URI("spiffe://corp.example")))),
        *("constraints.malformed", "error", 1),
    ),
    "a URI constraint under ambient": (
        served_by(
            lambda: under(constraints=permitting(URI("corp.example"))),
            istio={"data_planes": ["ambient"]},
        ),
        *("constraints.data-plane", "error", 1),
    ),
    "a URI constraint under Linkerd": (
        served_by(
            lambda: under(constraints=permitting(URI("corp.example"))),
            istio={"data_planes": ["sidecar"]},
            linkerd={"spiffe_uri": True},
        ),
        *("constraints.data-plane", "error", 1),
    ),
    "leaves against its own constraints": (
        served_by(lambda: under(constraints=permitting(DNS("elsewhere.example")))),
        *("leaf.refused", "error", 1),
    ),
    "another trust domain than the chain's": (
        *(second_domain, "trust-domain.not-permitted", "error", 1),
    ),
    "two trust domains": (second_domain, "trust-domain.several", "info", 1),
    "half of a life": (lasting(age=200 * DAY), "expiry.alarm", "info", 3),
    "80 % of a life": (lasting(age=300 * DAY), "expiry.alarm", "warning", 3),
    "95 % of a life": (lasting(age=350 * DAY), "expiry.alarm", "error", 1),
    "no renewal budget": (lasting(issuing=2 * DAY), "renewal.budget", "error", 1),
    "leaves of ten days": (long_leaves, "renewal.long-leaves", "info", 3),
    "a CRL near its next update": (listed(DAY), "crl.next-update", "warning", 3),
    "a throwaway leaf of a foreign name": (
        served_by(lambda: under(constraints=None)),
        *("leaf.not-constrained", "info", 3),
    ),
    "a key in a file": (None, "backend.file-key", "warning", 3),
    "what a thief could make": (None, "exposure.issuing-key", "info", 3),
}


@pytest.mark.parametrize(
    ("change", "rule", "severity", "status"), REPORTS.values(), ids=REPORTS
)
def test_what_users_report_is_found_by_its_rule(
    tmp_path: Path, change: Change | None, rule: str, severity: str, status: int
) -> None:
    path = written(tmp_path, change)
    found = CliRunner().invoke(app, ["doctor", "-c", str(path), "-o", "json"])
    findings = json.loads(found.stdout)["findings"]
    assert (rule, severity) in {(one["rule"], one["severity"]) for one in findings}, (
        findings
    )
    assert found.exit_code == status
    assert all(one["remedy"] and one["found"] for one in findings)


def test_for_people_the_errors_come_first(tmp_path: Path) -> None:
    path = written(tmp_path, lasting(age=350 * DAY))
    found = CliRunner().invoke(app, ["doctor", "-c", str(path)])
    header, first, *_, last = found.stdout.splitlines()
    assert header.split()[:3] == ["severity", "rule", "where"]
    assert first.startswith("error")
    assert last.endswith(" checks found nothing")
    assert int(last.split()[0]) > 0


@pytest.mark.parametrize(
    ("severities", "status"),
    [([], 0), (["info"], 0), (["info", "warning"], 3), (["warning", "error"], 1)],
    ids=str,
)
def test_the_exit_status_is_by_the_worst_severity(
    monkeypatch: pytest.MonkeyPatch, severities: list[Severity], status: int
) -> None:
    found = [Diagnosis("config.other", one, "", "a", "b") for one in severities]
    monkeypatch.setattr(command, "diagnose", lambda _: (found, 1))
    done = CliRunner().invoke(app, ["doctor", "-c", "bridge.yaml"])
    assert done.exit_code == status


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    (one,), fine = diagnose(tmp_path / "no.yaml")
    assert (one.rule, one.severity, fine) == ("config.other", "error", 0)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "cluster: far, API server: the bridge may not list pods, which",
            "cluster.rights",
        ),
        ("cluster: far, keys: 0 keys; has no keys yet: x", "tokens.keys"),
    ],
)
def test_what_is_found_at_an_api_server_has_a_rule(text: str, rule: str) -> None:
    assert rule_of(text).name == rule


def test_each_rule_has_a_name_of_its_own_and_the_last_takes_the_rest() -> None:
    names = [one.name for one in RULES]
    assert len({*names}) == len(names)
    assert rule_of("nothing that is known").name == names[-1]
