"""The hierarchy file: what is refused, by the path of the key, with the way out."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError
from bridge.hierarchy.schema import ValidityEntry, load, parse
from tests.support.documents import hierarchy
from tests.support.documents.configuration import Key
from tests.support.documents.markdown import fill
from tests.support.parts.hierarchy_file import NOW, ca, changed, loaded

ROOT = Path(__file__).parents[4]


def utc(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0
) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


OFFICER = {"name": "Ada", "role": "security officer", "public_key": "ada.pem"}


def test_a_good_file_is_read_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "corp.yaml"
    path.write_text(json.dumps(changed()))
    found = load(path)
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.folder == tmp_path
    assert found.file.order() == ("root", "eu", "prod")
    assert found.file.chain("prod") == ("prod", "eu", "root")
    assert found.file.subject("eu").rfc4514_string() == "CN=Corp eu CA,O=Corp"
    eu = found.file.cas["eu"]
    assert eu.key.backend == "file"
    assert eu.key.path == tmp_path / "keys/eu.key"


def test_parents_come_before_children_in_whatever_order_they_are_written() -> None:
    tree = changed()
    tree["cas"] = dict(reversed(tree["cas"].items()))
    found = parse(json.dumps(tree).encode(), Path("x.yaml"))
    assert found.file.order() == ("root", "eu", "prod")


def test_what_an_entry_leaves_out_is_its_parents() -> None:
    given = {"cas.eu.trust_domains": ["eu.example"], "cas.eu.data_planes": ["linkerd"]}
    file = loaded(given).file
    assert file.trust_domains_of("root") == ("corp.example",)
    assert file.trust_domains_of("prod") == ("eu.example",)
    assert file.data_planes_of("prod") == (DataPlane.LINKERD,)


@pytest.mark.parametrize(
    ("changes", "anchor"),
    [
        ({}, "root"),
        ({"cas.prod.anchor": "eu"}, "eu"),
        ({"cas.prod.purpose": "kubernetes"}, "prod"),
        ({"cas.prod.purpose": "etcd", "cas.prod.anchor": "root"}, "root"),
    ],
)
def test_leaves_of_a_mesh_are_anchored_at_the_root_and_others_at_their_ca(
    changes: dict[str, Any], anchor: str
) -> None:
    assert loaded(changes).file.anchor_of("prod") == anchor


P = "cas.eu.name_constraints.permitted"
E = "cas.eu.name_constraints.excluded"
K = "cas.root.key"
URI = "pkcs11:token=offline;object=root"
TOKEN = {"backend": "pkcs11", "uri": URI, "algorithm": "p384"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"cas.eu.path_length": 1},
        "cas.eu.path_length: unknown key; did you mean path_len?",
    ),
    "missing key": ({"cas.eu.path_len": ...}, "cas.eu.path_len: is required"),
    "two roots": (
        {"cas.eu.parent": ...},
        "cas: expected exactly one CA without parent, the root",
    ),
    "no root": ({"cas.root.parent": "eu"}, "cas: expected exactly one CA without"),
    "a circle": (
        {"cas.eu.parent": "prod"},
        "cas.eu.parent: expected a parent that leads to the root",
    ),
    "unknown parent": (
        {"cas.prod.parent": "us"},
        "cas.prod.parent: expected the name of a CA: root, eu, prod",
    ),
    "name of a folder above": ({"cas.../x": {}}, "cas."),
    "foreign anchor": (
        {"cas.us": ca("us", "root"), "cas.prod.anchor": "us"},
        "cas.prod.anchor: expected it or one above it: prod, eu, root",
    ),
    "constraint with a scheme": (
        {f"{P}.uri": ["spiffe://corp.example"]},
        (
            f"{P}.uri[0]: the URI constraint 'spiffe://corp.example' is no host: "
            "write 'corp.example'"
        ),
    ),
    "constraint with a port": (
        {f"{P}.uri": ["corp.example:443"]},
        f"{P}.uri[0]: the URI constraint 'corp.example:443' is no host",
    ),
    "constraint with a wildcard": (
        {f"{P}.dns": ["*.corp.example"]},
        (
            f"{P}.dns[0]: the DNS constraint '*.corp.example' is no host: write "
            "'corp.example'"
        ),
    ),
    "excluded with a scheme": (
        {f"{E}.uri": ["spiffe://corp.example"]},
        f"{E}.uri[0]: the URI constraint",
    ),
    "constraint with a path": ({f"{P}.uri": ["corp.example/ns"]}, f"{P}.uri[0]: "),
    "constraint that ends in a dot": ({f"{P}.dns": ["corp.example."]}, f"{P}.dns[0]"),
    "empty constraint": ({f"{P}.email": [""]}, f"{P}.email[0]: expected a host"),
    "constraint that is no DNS name to rustls": (
        {f"{P}.dns": ["corp.1"]},
        f"{P}.dns[0]: expected a DNS name",
    ),
    "address in place of a host": (
        {f"{P}.uri": ["192.0.2.1"]},
        f"{P}.uri[0]: the URI constraint '192.0.2.1' is no host",
    ),
    "mailboxes with a wildcard": (
        {f"{E}.email": ["*@corp.example"]},
        f"{E}.email[0]: the e-mail constraint '*@corp.example' is no mailbox",
    ),
    "mailbox without a host": ({f"{P}.email": ["ops@"]}, f"{P}.email[0]: "),
    "address without its mask": (
        {f"{E}.ip": ["10.0.0.1"]},
        f'{E}.ip[0]: expected a network: write "10.0.0.1/32"',
    ),
    "network with host bits": ({f"{E}.ip": ["10.0.0.1/8"]}, f"{E}.ip[0]: expected a"),
    "directory name": (
        {f"{P}.directory": ["O=Corp"]},
        f"{P}: leave directory out: ztunnel and linkerd2-proxy reject every path",
    ),
    "no constraint at all": (
        {"cas.eu.name_constraints": {}},
        "cas.eu.name_constraints: expected a constraint: leave name_constraints out",
    ),
    "RSA-1024": (
        {f"{K}.algorithm": "rsa1024"},
        f"{K}.algorithm: expected one of p256, p384, p521, rsa2048",
    ),
    "a pin with colons": (
        {f"{K}.spki_sha256": ":".join(32 * ["0A"])},
        f"{K}.spki_sha256: expected the SHA-256 of the public key",
    ),
    "unknown backend": ({f"{K}.backend": "kms"}, f"{K}: "),
    "PIN in the URI": (
        {K: TOKEN | {"uri": f"{URI}?pin-value=1234"}},
        f"{K}.uri: expected a PKCS#11 URI without pin-value and pin-source",
    ),
    "PIN beside the URI": ({K: TOKEN | {"pin": "1234"}}, f"{K}.pin: unknown key"),
    "URI without a token": (
        {K: TOKEN | {"uri": "pkcs11:object=root"}},
        f"{K}.uri: expected a PKCS#11 URI such as",
    ),
    "URI with a slot": (
        {K: TOKEN | {"uri": f"{URI};slot-id=1"}},
        f"{K}.uri: expected a PKCS#11 URI such as",
    ),
    "URI of another scheme": ({K: TOKEN | {"uri": "file:x"}}, f"{K}.uri: expected a"),
    "key of Transit without TLS": (
        {
            K: {
                "backend": "vault-transit",
                "address": "http://vault.corp.example",
                "name": "eu",
                "algorithm": "p256",
            }
        },
        f"{K}.address: Vault is asked over https:// only: expected https://HOST:PORT",
    ),
    "two ends": (
        {"cas.eu.validity": {"years": 1, "days": 1}},
        "cas.eu.validity: expected exactly one of years, days and not_after",
    ),
    "no end": ({"cas.eu.validity": {}}, "cas.eu.validity: expected exactly one of"),
    "end before its begin": (
        {"cas.eu.validity": {"not_before": "2028-01-01", "not_after": "2027-01-01"}},
        "cas.eu.validity: expected not_after above not_before",
    ),
    "time without its zone": (
        {"cas.eu.validity": {"not_after": "2028-01-01T00:00:00"}},
        "cas.eu.validity.not_after: expected a time such as",
    ),
    "CRL over TLS": (
        {"cas.eu.crl_url": "https://crl.corp.example/eu.crl"},
        "cas.eu.crl_url: expected http://HOST/PATH",
    ),
    "policy that is no OID": ({"cas.eu.policies": ["gold"]}, "cas.eu.policies[0]: exp"),
    "name with a blank at its end": (
        {"cas.eu.common_name": "Corp CA "},
        "cas.eu.common_name: expected printable characters, and no blank at an end",
    ),
    "quorum above the officers": (
        {"officers": [OFFICER], "quorum": 2},
        "quorum: expected 1 to 1, the number of officers",
    ),
    "officers without a quorum": ({"officers": [OFFICER]}, "quorum: expected 1 to 1"),
    "quorum without officers": ({"quorum": 1}, "quorum: expected 0 without officers"),
    "accepted of no CA": (
        {"accepted": [{"rule": "validity.long", "ca": "us", "reason": "old"}]},
        "accepted[0].ca: expected the name of a CA",
    ),
    "accepted without a reason": (
        {"accepted": [{"rule": "validity.long", "ca": "eu"}]},
        "accepted[0].reason: is required",
    ),
}


@pytest.mark.parametrize(("changes", "told"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_by_the_path_of_the_key(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"hierarchy.yaml: {told}")) as got:
        loaded(changes)
    assert got.value.rule == "hierarchy.schema"
    assert "1234" not in str(got.value)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (2, "use the release of meshca that the file was made for, or a later one"),
        (0, "write `version: 1`"),
        ("1", "write `version: 1`"),
        (True, "write `version: 1`"),
        (None, "write `version: 1`"),
    ],
)
def test_another_version_is_refused_before_its_unknown_keys(
    version: object, told: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as got:
        loaded({"version": version, "regions": []})
    assert got.value.rule == "hierarchy.version"
    assert "regions" not in str(got.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"\xff", "not YAML"), (b"a: [", "not YAML"), (b"- 1", "expected a mapping")],
)
def test_what_is_no_file_of_ours_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(content, Path("hierarchy.yaml"))


def test_a_file_of_three_hundred_cas_is_not_too_long() -> None:
    more = {f"cas.prod-{number}": ca(f"p{number}", "eu") for number in range(300)}
    for number, entry in enumerate(more.values()):
        hosts = [f"{host}.{number}.example" for host in "abcdefghijklmnop"]
        entry["name_constraints"] = {"permitted": {"dns": hosts, "uri": hosts}}
    assert len(loaded(more).file.cas) == 303


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ({"years": 1}, NOW - timedelta(minutes=5), utc(2028, 1, 31, 11, 59, 59)),
        ({"days": 2}, NOW - timedelta(minutes=5), utc(2027, 2, 2, 11, 59, 59)),
        (
            {"not_before": "2028-02-29", "years": 1},
            utc(2028, 2, 29),
            utc(2029, 2, 27, 23, 59, 59),
        ),
        (
            {"not_before": "2027-01-01T01:00:00+01:00", "not_after": "2028-01-01"},
            utc(2027, 1, 1),
            utc(2028, 1, 1),
        ),
    ],
)
def test_the_dates_of_a_certificate_that_is_signed_now(
    given: dict[str, Any], start: datetime, end: datetime
) -> None:
    found = ValidityEntry.model_validate(given).window(NOW)
    assert found == (start, end)


@pytest.mark.parametrize(
    ("given", "parent", "start", "end"),
    [
        # NOW is 12:00.
        ({"days": 1}, utc(2027, 1, 31), utc(2027, 1, 31, 11, 55), None),
        (
            {"days": 1},
            utc(2027, 1, 31, 11, 58),
            utc(2027, 1, 31, 11, 58),
            utc(2027, 2, 1, 12, 2, 59),
        ),
        (
            {"years": 1},
            utc(2028, 1, 1),
            utc(2028, 1, 1),
            utc(2029, 1, 1, 0, 4, 59),
        ),
        (
            {"not_after": "2029-01-01"},
            utc(2028, 1, 1),
            utc(2028, 1, 1),
            utc(2029, 1, 1),
        ),
        (
            {"not_before": "2027-01-01", "days": 1},
            utc(2028, 1, 1),
            utc(2027, 1, 1),
            utc(2027, 1, 1, 23, 59, 59),
        ),
    ],
)
def test_without_a_date_a_certificate_begins_no_sooner_than_its_parent(
    given: dict[str, Any], parent: datetime, start: datetime, end: datetime | None
) -> None:
    found = ValidityEntry.model_validate(given).window(NOW, parent)
    assert found == (start, end or utc(2027, 2, 1, 11, 59, 59))


def test_constraints_become_the_value_of_the_extension() -> None:
    entry = loaded().file.cas["eu"].name_constraints
    assert entry is not None
    permitted, excluded = (
        entry.value().permitted_subtrees,
        entry.value().excluded_subtrees,
    )
    assert permitted is not None
    assert excluded is not None
    assert x509.UniformResourceIdentifier(".corp.example") in permitted
    assert [str(name.value) for name in excluded] == ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize("key", [*hierarchy.all_keys()], ids=lambda one: one.path)
def test_a_key_is_documented_as_it_is_declared(key: Key) -> None:
    text = (ROOT / "docs/reference/hierarchy.md").read_text("utf-8")
    assert key.meaning
    assert text.splitlines().count(f"| {' | '.join(key.row)} |") == 1, "make docs"


def test_the_document_is_what_make_docs_writes(tmp_path: Path) -> None:
    document = ROOT / "docs/reference/hierarchy.md"
    copy = tmp_path / "hierarchy.md"
    copy.write_bytes(document.read_bytes())
    fill(copy, hierarchy.parts())
    assert copy.read_bytes() == document.read_bytes()
