"""Each rule of a tree has a case that breaks it, told by path and with the way out."""

from pathlib import Path
from typing import Any

import pytest

from bridge.hierarchy.plan import RULES, plan_of
from tests.support.parts.hierarchy_file import CONSTRAINTS, NOW, ca, loaded
from tests.support.parts.pki import new_key, public_pem

ADA = {"name": "Ada", "role": "security officer", "public_key": "ada.pem"}
SAME = {"backend": "file", "path": "keys/eu.key", "algorithm": "p256"}
TOKEN = {"backend": "pkcs11", "uri": "pkcs11:token=a;object=b", "algorithm": "p256"}
TRANSIT = {
    "backend": "vault-transit",
    "address": "https://vault.corp.example",
    "name": "corp",
    "algorithm": "p256",
}
CSR = {"backend": "csr", "path": "eu.csr", "algorithm": "p256"}
DEEP: dict[str, Any] = {
    "cas.root.path_len": 7,
    "cas.eu.path_len": 6,
    "cas.prod.parent": "t5",
    **{
        f"cas.t{depth}": ca(
            f"t{depth}",
            f"t{depth - 1}" if depth > 1 else "eu",
            6 - depth,
            name_constraints=CONSTRAINTS,
            validity={"not_after": f"203{1 - depth // 6}-01-0{9 - depth}"},
        )
        for depth in range(1, 6)
    },
}

BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "tree.issuing-has-children": (
        {"cas.eu.purpose": "kubernetes"},
        "cas.eu.purpose",
        "issues leaves (purpose: kubernetes) and has CAs below it (prod)",
    ),
    "tree.signs-nothing": (
        {"cas.prod.purpose": ...},
        "cas.prod.purpose",
        "give it a purpose, such as mesh, or take it out",
    ),
    "tree.no-trust-domain": (
        {"trust_domains": []},
        "cas.prod.trust_domains",
        "write trust_domains at the top of the file, or here",
    ),
    "tree.no-data-plane": (
        {"data_planes": []},
        "cas.prod.data_planes",
        "write data_planes at the top of the file, or here",
    ),
    "tree.trust-domain-wider": (
        {"cas.prod.trust_domains": ["corp.example", "us.example"]},
        "cas.prod.trust_domains",
        "has us.example in trust_domains, which what is above it has not; add it",
    ),
    "tree.data-plane-wider": (
        {"cas.prod.data_planes": ["ambient"]},
        "cas.prod.data_planes",
        "has ambient in data_planes, which what is above it has not; add it",
    ),
    "tree.depth": (
        DEEP,
        "cas.prod",
        "is 7 CAs below its anchor (root): rustls, and so ztunnel and",
    ),
    "tree.anchor-issues": (
        {"cas.prod.anchor": "prod"},
        "cas.prod.anchor",
        "is the anchor of its own mesh: its key, which is online, could not be",
    ),
    "names.shared-subject": (
        {"cas.prod.common_name": "Corp eu CA"},
        "cas.prod.common_name",
        "has the subject of eu: verifiers look issuers up by name",
    ),
    "key.shared": (
        {"cas.prod.key": SAME},
        "cas.prod.key",
        "has the key of eu: one stolen key would be both",
    ),
    "key.csr-signs": (
        {"cas.eu.key": CSR},
        "cas.eu.key",
        "which signs nothing in a ceremony, and has to sign prod",
    ),
    "key.root-online": (
        {"cas.root.key": TRANSIT},
        "cas.root.key",
        "keep it offline, with backend pkcs11 or file",
    ),
    "key.weaker-than-child": (
        {"cas.prod.key.algorithm": "p384"},
        "cas.eu.key",
        "has a weaker key (p256) than prod (p384) below it",
    ),
    "validity.expired": (
        {"cas.root.validity": {"not_after": "2027-01-31"}},
        "cas.root.validity",
        "has ended on 2027-01-31 00:00Z; write a later not_after, or years",
    ),
    "validity.before-parent": (
        {"cas.prod.validity": {"not_before": "2027-01-31", "not_after": "2028-01-31"}},
        "cas.prod.validity",
        "begins on 2027-01-31 00:00Z, before its parent eu (2027-01-31 11:55Z)",
    ),
    "validity.outlives-parent": (
        {"cas.prod.validity": {"years": 6}},
        "cas.prod.validity",
        "ends on 2033-01-31 11:59Z, and its parent eu on 2032-01-31 11:59Z",
    ),
    "validity.long": (
        {"cas.root.validity": {"years": 26}},
        "cas.root.validity",
        "is valid for more than 25 years",
    ),
    "validity.renewal-budget": (
        {"cas.prod.validity": {"days": 6}},
        "cas.prod.validity",
        "lives 144h4m59s, and its leaves up to 24h: expected more than 144h30m",
    ),
    "path_len.not-below-parent": (
        {"cas.eu.path_len": 2},
        "cas.eu.path_len",
        "has path_len 2, and its parent root 2: a child's is lower; write 1 here",
    ),
    "path_len.too-short": (
        {"cas.root.path_len": 1, "cas.eu.path_len": 0},
        "cas.root.path_len",
        "every verifier rejects; write path_len: 2",
    ),
    "path_len.too-long": (
        {"cas.root.path_len": 4},
        "cas.root.path_len",
        "has path_len 4 and 2 tiers below it",
    ),
    "key_usage.no-cert-sign": (
        {"cas.eu.key_usage": ["crl_sign"]},
        "cas.eu.key_usage",
        "may sign no certificate; add cert_sign",
    ),
    "key_usage.no-crl-sign": (
        {"cas.eu.key_usage": ["cert_sign"]},
        "cas.eu.key_usage",
        "nothing below it can be revoked; add crl_sign",
    ),
    "ext_key_usage.missing": (
        {"cas.eu.ext_key_usage": ["server_auth"]},
        "cas.eu.ext_key_usage",
        (
            "has an ext_key_usage without client_auth, and verifiers hold leaves below "
            "it to it; add it, or leave ext_key_usage out"
        ),
    ),
    "urls.shared": (
        {
            "cas.eu.crl_url": "http://crl.corp.example/root.crl",
            "cas.prod.crl_url": "http://crl.corp.example/root.crl",
        },
        "cas.prod",
        "has the crl_url of what root signs, and is signed by eu; write the URL of eu",
    ),
    "urls.root": (
        {"cas.root.aia_url": "http://crl.corp.example/root.crt"},
        "cas.root",
        "has a aia_url, and is signed by no other CA",
    ),
    "officers.none": ({}, "officers", "list them, with a quorum"),
    "officers.shared-key": (
        {"officers": [ADA, {**ADA, "name": "Grace"}], "quorum": 2},
        "officers",
        "one person would count twice for the quorum",
    ),
    "officers.public-key": (
        {"officers": [{**ADA, "public_key": __file__}], "quorum": 1},
        "officers",
        "expected a public key in PEM",
    ),
    "accepted.unknown-rule": (
        {"accepted": [{"rule": "validity.log", "ca": "eu", "reason": "old"}]},
        "accepted",
        "accepted[0] names the rule 'validity.log', which there is none of",
    ),
    "accepted.no-warning": (
        {"accepted": [{"rule": "key.shared", "ca": "eu", "reason": "one HSM"}]},
        "accepted",
        "an error cannot be accepted; mend it",
    ),
    "accepted.unused": (
        {"accepted": [{"rule": "validity.long", "ca": "eu", "reason": "old"}]},
        "accepted",
        "and nothing is found against it; take it out",
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_what_breaks_a_rule_is_told_where_it_is_with_the_way_out(rule: str) -> None:
    changes, path, told = BROKEN[rule]
    plan = plan_of(loaded(changes), now=NOW)
    found = [(one.path, one.text) for one in plan.findings if one.rule == rule]
    assert any(at == path and told in text for at, text in found), plan.findings
    assert plan.passes is (RULES[rule] == "info")


# A neighbour of each case, which the rule leaves alone.
FINE: dict[str, tuple[str, dict[str, Any]]] = {
    "children of a CA without a purpose": ("tree.issuing-has-children", {}),
    "narrower than its parent": (
        "tree.trust-domain-wider",
        {"trust_domains": ["corp.example", "us.example"]}
        | {"cas.eu.trust_domains": ["corp.example"]},
    ),
    "a lower anchor in a deep tree": ("tree.depth", DEEP | {"cas.prod.anchor": "eu"}),
    "two keys of one token": (
        "key.shared",
        {"cas.eu.key": TOKEN}
        | {"cas.prod.key": TOKEN | {"uri": "pkcs11:token=a;object=c"}},
    ),
    "a CSR for an issuing CA": ("key.csr-signs", {"cas.prod.key": CSR}),
    "an issuing CA in Transit": ("key.root-online", {"cas.prod.key": TRANSIT}),
    "a weaker key below": (
        "key.weaker-than-child",
        {"cas.root.key.algorithm": "p384"},
    ),
    "the last day of its parent": (
        "validity.outlives-parent",
        {
            "cas.eu.validity": {"not_after": "2031-01-01"},
            "cas.prod.validity": {"not_after": "2031-01-01"},
        },
    ),
    "seven days for leaves of one": (
        "validity.renewal-budget",
        {"cas.prod.validity": {"days": 7}},
    ),
    "two days for leaves of an hour": (
        "validity.renewal-budget",
        {"cas.prod.validity": {"days": 2}, "cas.prod.leaf_lifetime": "1h"},
    ),
    "a short life of a CA that issues no leaves": (
        "validity.renewal-budget",
        {"cas.prod.validity": {"days": 7}, "cas.eu.validity": {"days": 8}},
    ),
    "25 years of a root": ("validity.long", {"cas.root.validity": {"years": 25}}),
    "both purposes": (
        "ext_key_usage.missing",
        {"cas.eu.ext_key_usage": ["client_auth", "server_auth"]},
    ),
    "the client's for a front proxy": (
        "ext_key_usage.missing",
        {"cas.prod.purpose": "front-proxy", "cas.prod.ext_key_usage": ["client_auth"]},
    ),
    "one CRL of two siblings": (
        "urls.shared",
        {
            "cas.us": ca("us", "root", purpose="etcd", crl_url="http://c.example/r"),
            "cas.eu.crl_url": "http://c.example/r",
        },
    ),
    "two officers": (
        "officers.shared-key",
        {
            "officers": [ADA, ADA | {"name": "Grace", "public_key": "grace.pem"}],
            "quorum": 2,
        },
    ),
}


@pytest.mark.parametrize(("rule", "changes"), FINE.values(), ids=FINE)
def test_what_a_rule_leaves_alone(rule: str, changes: dict[str, Any]) -> None:
    plan = plan_of(loaded(changes), now=NOW)
    assert rule not in {one.rule for one in plan.findings}


@pytest.mark.parametrize(
    "other",
    [
        TOKEN | {"uri": "pkcs11:object=b;token=a"},
        TOKEN | {"uri": "pkcs11:token=%61;object=b;type=private"},
        TOKEN | {"module": "other.so"},
    ],
)
def test_one_key_that_is_written_in_two_ways_is_one(other: dict[str, Any]) -> None:
    plan = plan_of(loaded({"cas.eu.key": TOKEN, "cas.prod.key": other}), now=NOW)
    assert "key.shared" in {one.rule for one in plan.findings}


def test_one_pinned_key_in_two_places_is_one() -> None:
    pins = {f"cas.{name}.key.spki_sha256": 64 * "0" for name in ("eu", "prod")}
    plan = plan_of(loaded(pins), now=NOW)
    assert [(one.rule, one.ca) for one in plan.findings if one.fails] == [
        ("key.shared", "prod")
    ]


@pytest.mark.parametrize("keys", [1, 2])
def test_one_key_in_two_files_is_one_officer(tmp_path: Path, keys: int) -> None:
    made = [new_key() for _ in range(keys)]
    officers: list[dict[str, str]] = []
    for name, key in (("Ada", made[0]), ("Grace", made[-1])):
        path = tmp_path / f"{name}.pem"
        path.write_bytes(public_pem(key))
        officers.append({**ADA, "name": name, "public_key": str(path)})
    plan = plan_of(loaded({"officers": officers, "quorum": 2}), now=NOW)
    found = {one.rule for one in plan.findings if one.fails}
    assert found == ({"officers.shared-key"} if keys == 1 else set())


def test_one_name_of_two_officers_is_told() -> None:
    officers = [ADA, {**ADA, "public_key": "grace.pem"}]
    plan = plan_of(loaded({"officers": officers, "quorum": 2}), now=NOW)
    assert "officers.shared-key" in {one.rule for one in plan.findings}


def test_a_child_without_dates_cannot_last_as_long_as_its_parent() -> None:
    # It is signed after its parent, so with the same years it ends later.
    plan = plan_of(loaded({"cas.prod.validity": {"years": 5}}), now=NOW)
    assert "validity.outlives-parent" in {one.rule for one in plan.findings}


def test_a_file_whose_dates_contradict_each_other_is_refused() -> None:
    """A parent that begins after the fixed end of its child, which has no begin."""
    changes = {
        "cas.eu.validity": {"not_before": "2028-06-01", "years": 1},
        "cas.prod.validity": {"not_after": "2028-01-01"},
    }
    findings = plan_of(loaded(changes), now=NOW).findings
    (found,) = (one for one in findings if one.rule == "validity.before-parent")
    assert (found.fails, found.path) == (True, "cas.prod.validity")
    assert "ends on 2028-01-01 00:00Z, before its parent eu begins" in found.text
