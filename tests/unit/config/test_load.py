import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.config import (
    SECTIONS,
    BridgeConfig,
    JWKSConfig,
    parse,
    read,
    read_sections,
)
from bridge.errors import ConfigError

FILE = Path("bridge.yaml")

# The shape of the design, without what comes with later parts (Linkerd, PKCS#11).
DESIGN = """
trust_domain: corp.example
workers: 1
fronts:
  istio:
    listen: "0.0.0.0:15012"
    mtls_listen: "0.0.0.0:15013"          # optional
    mtls_identities: [{namespaces: [shop], service_accounts: [vm]}]
    audiences: [istio-ca]
    tls: {dns_names: [meshca.istio-system.svc]}
clusters:                                  # the first is also that of no clusterid
  - name: Kubernetes
    aliases: []
    tokens: {verify: jwks, file: jwks.json, issuer: "https://kubernetes.default.svc", \
max_key_age: 24h}
    namespaces: ["*"]
issuing_cas:
  seoul-1:
    plugin: file
    chain: chain.pem
    options: {key: issuing.key}
  seoul-2: {plugin: file, chain: chain-2.pem, timeout: 500ms}
trust_anchors: roots.pem
issuance: {default_ttl: 24h, min_ttl: 5m, max_ttl: 24h, on_excess_ttl: refuse, \
backdate: 2m, issuing_cas: [seoul-1, seoul-2]}
limits: {in_flight: 512, queue_seconds: 1.5, deadline: 10s}
ledger: {journal: journal/, archive: "sqlite:///archive.db", \
max_lag: {entries: 10000, seconds: 60}, heads: {sink: heads.jsonl}}
admin: {listen: "127.0.0.1:9990"}
""".replace("500ms", "0.5s")


def tree() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(DESIGN)
    return found


def load(changed: dict[str, Any]) -> BridgeConfig:
    return parse(yaml.safe_dump(changed), FILE)


def of_keys(config: BridgeConfig) -> JWKSConfig:
    tokens = config.clusters[0].tokens
    assert isinstance(tokens, JWKSConfig)
    return tokens


def put(
    where: str, value: object, changed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a tree, by default the design's, with `value` at a dotted path."""
    changed = tree() if changed is None else changed
    *above, last = where.split(".")
    node: Any = changed
    for part in above:
        node = node[int(part) if part.isdigit() else part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return changed


def problems(changed: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError, match=re.escape(f"{FILE}: ")) as refusal:
        load(changed)
    return str(refusal.value).splitlines()


def test_the_example_of_the_design_loads() -> None:
    config = parse(DESIGN, FILE)
    assert config.trust_domain == "corp.example"
    assert config.fronts.istio is not None
    assert config.fronts.istio.mtls_listen == "0.0.0.0:15013"
    assert of_keys(config).max_key_age == timedelta(hours=24)
    assert config.issuing_cas["seoul-2"].timeout == timedelta(seconds=0.5)
    assert config.issuance.issuing_cas == ("seoul-1", "seoul-2")
    assert config.limits.queue_seconds == 1.5
    assert config.ledger.max_lag.entries == 10_000


def test_a_file_is_read_and_its_folder_is_the_base(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(DESIGN)
    config = read(path)
    assert config.base == tmp_path
    assert config.trust_anchors == tmp_path / "roots.pem"
    assert config.ledger.archive == f"sqlite:///{tmp_path}/archive.db"


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("sqlite:///a.db", "sqlite:////etc/meshca/a.db"),
        ("sqlite:////var/a.db", "sqlite:////var/a.db"),
        (
            "sqlite+pysqlite:///a.db?timeout=3",
            "sqlite+pysqlite:////etc/meshca/a.db?timeout=3",
        ),
        ("postgresql://db.example/ledger", "postgresql://db.example/ledger"),
    ],
)
def test_the_file_of_a_sqlite_archive_is_made_absolute(
    written: str, read_as: str
) -> None:
    changed = yaml.safe_load(DESIGN)
    changed["ledger"]["archive"] = written
    changed["trust_anchors"] = "/run/roots.pem"
    config = parse(yaml.safe_dump(changed), Path("/etc/meshca/bridge.yaml"))
    assert config.ledger.archive == read_as
    assert config.trust_anchors == Path("/run/roots.pem")


def test_a_sqlite_archive_below_a_question_mark_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ledger\.archive: expected a file in a"):
        parse(DESIGN, Path("/etc/why?/bridge.yaml"))


def test_a_value_cannot_be_changed_after_the_load() -> None:
    config = parse(DESIGN, FILE)
    with pytest.raises(ValueError, match="frozen"):
        config.limits.in_flight = 1  # type: ignore[misc]


LONG_DOMAIN = ".".join(["a" * 63] * 3 + ["a" * 26])
"""As part of a Linkerd identity, one character too long."""

# Path of the key, value, and what the one line of the error says after the key.
REVIEW: dict[str, object] = {"verify": "token_review"}
BOUND: dict[str, object] = {"verify": "bound", "issuer": "https://a.example"}
BAD_VALUES: list[tuple[str, object, str]] = [
    ("trust_domain", ..., "is required (found nothing)"),
    ("trust_domain", "Corp", "a trust domain has 1 to 253 of the characters"),
    ("trust_domain", "corp.example.", "no dot at an end"),
    ("trust_domain", ".corp.example", "no dot at an end"),
    ("trust_domain", "corp..example", "no dot at an end or beside another"),
    ("trust_domain", "10.0.0.1", "is no IP address"),
    ("trust_domain", f"{'a' * 64}.example", "at most 63 characters without a dot"),
    ("trust_domain", "corp.example:443", "a trust domain has 1 to 253"),
    ("trust_domain", "spiffe://corp.example", "a trust domain has 1 to 253"),
    ("trust_domain", "corp.example/ns", "a trust domain has 1 to 253"),
    ("trust_domain", "corp.example\n", "a trust domain has 1 to 253"),
    ("trust_domain", "b\u00fccher.example", "a trust domain has 1 to 253"),
    ("trust_domain", "*.corp.example", "a trust domain has 1 to 253"),
    ("clusters.0.trust_domain", "corp.example.", "no dot at an end"),
    ("trust_domain", 7, "Input should be a valid string (found 7)"),
    ("workers", -1, "Input should be greater than or equal to 1 (found -1)"),
    ("workers", 0, "workers under a parent; write 1 in place of 0 (found 0)"),
    ("workers", False, "Input should be a valid integer (found False)"),
    ("workers", 65, "Input should be less than or equal to 64 (found 65)"),
    ("fronts", {}, "expected a front: istio, linkerd, or both"),
    ("fronts.istio.listen", "15012", "such as \"0.0.0.0:15012\" (found '15012')"),
    ("fronts.istio.listen", ":15012", 'expected "HOST:PORT"'),
    ("fronts.istio.listen", "a:65536", 'expected "HOST:PORT"'),
    ("fronts.istio.listen", "a:-1", 'expected "HOST:PORT"'),
    ("fronts.istio.listen", "a:\u0661", 'expected "HOST:PORT"'),
    ("fronts.istio.listen", "::1:15012", 'expected "HOST:PORT"'),
    ("fronts.istio.listen", "[::1:15012", 'expected "HOST:PORT"'),
    ("fronts.istio.listen", "a:\u00b2", 'expected "HOST:PORT"'),
    ("fronts.istio.audiences", [], "expected one or more (found [])"),
    (
        "fronts.istio.audiences",
        "istio-ca",
        "a list, such as [istio-ca] (found 'istio-ca')",
    ),
    ("fronts.istio.audiences", {}, "expected a list (found {})"),
    ("fronts.istio.audiences", ["istio-ca "], "[0]: expected printable characters"),
    ("fronts.istio.audiences", ["istio\x00ca"], "[0]: expected printable characters"),
    ("clusters.0.aliases", ["a\tb"], "[0]: expected printable characters"),
    ("clusters.0.aliases", [" a"], "[0]: expected printable characters"),
    ("clusters.0.aliases", ["\u00e4"], "[0]: expected ASCII: the header clusterid"),
    ("clusters.0.tokens.issuer", "https://a.example\n", "printable characters"),
    ("fronts.istio.audiences", [""], "[0]: String should have at least 1 character"),
    ("fronts.istio.audiences", ["a", "a"], "expected each entry once"),
    ("fronts.istio.tls", {}, "expected dns_names (the host of caAddress)"),
    ("fronts.istio.tls", {"certificate": "c"}, "given together or not at all"),
    ("fronts.istio.tls", {"key": "k", "dns_names": ["a"]}, "given together or not"),
    ("fronts.istio.tls.ttl", "1.5s", "in whole seconds (found '1.5s')"),
    ("fronts.istio.tls.ttl", "2m", "expected more than issuance.backdate (2m)"),
    ("fronts.istio.tls.dns_names", ["a b"], "[0]: expected a DNS name in lower case"),
    ("fronts.istio.tls.dns_names", ["m\u00e9sh.x"], "[0]: expected a DNS name"),
    ("fronts.istio.tls.dns_names", ["*.a"], "[0]: expected a DNS name in lower case"),
    ("fronts.istio.tls.dns_names", ["https://a"], "[0]: expected a DNS name in lower"),
    ("fronts.istio.tls.dns_names", ["a:15012"], "[0]: expected a DNS name in lower"),
    ("fronts.istio.tls.dns_names", ["10.0.0.1"], "[0]: expected a DNS name in lower"),
    ("fronts.istio.tls.dns_names", ["a", "a"], "expected each entry once"),
    ("clusters", [], "expected one or more"),
    ("clusters.0.name", "a b", "expected a name of 1 to 63 letters"),
    ("clusters.0.name", "a\n", "expected a name of 1 to 63 letters"),
    ("clusters.0.name", "arn:aws:eks:eu-1:1:cluster/a", "an ARN, into its aliases"),
    ("clusters.0.aliases", [""], "[0]: String should have at least 1 character"),
    ("clusters.0.aliases", ["Kubernetes"], "[0]: expected each name and alias in one"),
    (
        "clusters.0.trusted_node_accounts",
        ["ztunnel"],
        "[0]: expected NAMESPACE/NAME of",
    ),
    ("clusters.0.trusted_node_accounts", ["a/b/c"], "[0]: expected NAMESPACE/NAME of"),
    (
        "clusters.0.trusted_node_accounts",
        ["A/b"],
        "such as istio-system/ztunnel (found",
    ),
    ("clusters.0.trusted_node_accounts", ["a/b"] * 2, "expected each entry once"),
    (
        "clusters.0.trusted_node_accounts",
        ["a/b"],
        "token_review or bound beside trusted_",
    ),
    ("clusters.0.tokens.verify", "none", "expected jwks, token_review or bound (found"),
    (
        "clusters.0.tokens",
        REVIEW | {"context": "a"},
        "expected kubeconfig beside conte",
    ),
    (
        "clusters.0.tokens",
        REVIEW | {"remote_secret": True, "kubeconfig": "a"},
        "expected either remote_secret or kubeconfig (found both of them)",
    ),
    (
        "clusters.0.tokens",
        REVIEW | {"remote_secret": True},
        "remote_secret: expected remote_secrets, which says where the secrets are",
    ),
    ("remote_secrets", {"namespace": "a", "allowed_commands": "aws"}, "such as [aws]"),
    ("remote_secrets", {}, "remote_secrets.namespace: is required"),
    (
        "clusters.0.tokens",
        BOUND | {"max_watch_age": "119s"},
        "expected max_watch_age of at least 2m: a watch of what does not change",
    ),
    (
        "clusters.0.tokens",
        REVIEW | {"kubeconfig": "a", "server": "https://a"},
        "expected either kubeconfig or server (found both of them)",
    ),
    (
        "clusters.0.tokens",
        REVIEW | {"kubeconfig": "a", "token_file": "t"},
        "expected either kubeconfig or token_file (found both of them)",
    ),
    ("clusters.0.tokens.issuer", "", "String should have at least 1 character"),
    ("clusters.0.tokens.issuer", ..., "expected issuer, or issuers while it is being"),
    ("clusters.0.tokens.issuers", ["b"], "while it is being changed (found both)"),
    ("clusters.0.tokens.issuers", [], "issuers: expected one or more (found [])"),
    ("clusters.0.tokens.issuers", ["b", "b"], "issuers: expected each entry once"),
    ("clusters.0.tokens.issuers", [""], "[0]: String should have at least 1 char"),
    ("clusters.0.tokens.token_file", "t", "expected token_file beside url or discover"),
    ("clusters.0.tokens.file", ..., "expected one of file, url and discovery: true"),
    ("clusters.0.tokens.url", "https://a", "expected one of file, url and discovery"),
    ("clusters.0.tokens.url", "http://a", "url: keys are fetched from https:// only"),
    ("clusters.0.tokens.url", "https://", "url: keys are fetched from https:// only"),
    ("clusters.0.tokens.url", "https://a:x", "url: keys are fetched from https:// o"),
    ("clusters.0.tokens.url", "https://a b", "url: keys are fetched from https:// o"),
    ("clusters.0.tokens.ca_file", "c", "expected ca_file beside url or discovery onl"),
    ("clusters.0.tokens.max_key_age", "0s", "expected a duration above 0 (found '0s')"),
    ("issuing_cas", {}, "should have at least 1 item"),
    ("issuing_cas.seoul-1.plugin", "File", "should match pattern"),
    ("issuing_cas.seoul-1.plugin", ..., "is required"),
    ("issuing_cas.seoul-1.options", [], "should be a valid dictionary"),
    ("issuing_cas.seoul-1.timeout", "0s", "expected a duration above 0"),
    ("trust_anchors", "", "expected the path of a file"),
    ("trust_anchors", "a\0b", "expected the path of a file, in printable"),
    ("issuance.default_ttl", "25h", "(found min_ttl 5m, default_ttl 25h, max_ttl 24h)"),
    ("issuance.default_ttl", "4m", "expected min_ttl <= default_ttl <= max_ttl"),
    ("issuance.default_ttl", "300.5s", "in whole seconds (found '300.5s')"),
    ("issuance.backdate", "5m", "expected backdate below min_ttl"),
    ("issuance.backdate", "1h0.5s", "in whole seconds"),
    ("issuance.backdate", "5m30s", "(found backdate 5m30s, min_ttl 5m)"),
    ("issuance.backdate", "0.5s", "in whole seconds (found '0.5s')"),
    ("issuance.on_excess_ttl", "cut", "should be 'refuse' or 'clamp'"),
    ("issuance.issuing_cas", [], "expected one or more"),
    (
        "issuance.issuing_cas",
        ["x"],
        "[0]: expected a name under issuing_cas: seoul-1, seoul-2",
    ),
    ("issuance.issuing_cas", ["seoul-1"] * 2, "expected each entry once"),
    ("issuance.cert_signers", {"a/b": []}, "cert_signers.a/b names no issuing CA"),
    ("issuance.cert_signers", {"a": ["x"]}, ".a[0]: expected a name under issuing_cas"),
    ("issuance.csr_names", True, "should be 'ignore' or 'strict' (found True)"),
    ("limits.in_flight", 0, "greater than or equal to 1 (found 0)"),
    ("limits.in_flight", True, "should be a valid integer (found True)"),
    ("limits.in_flight", "1", "should be a valid integer (found '1')"),
    ("limits.in_flight", 1.0, "should be a valid integer (found 1.0)"),
    ("limits.queue_seconds", 0, "greater than 0 (found 0)"),
    ("limits.queue_seconds", 61, "less than or equal to 60 (found 61)"),
    ("limits.queue_seconds", True, "should be a valid number (found True)"),
    ("limits.queue_seconds", "1", "should be a valid number (found '1')"),
    ("limits.deadline", "0s", "expected a duration above 0"),
    ("limits.deadline", 10, "expected a duration such as"),
    ("limits.threads", 257, "less than or equal to 256"),
    ("ledger.max_lag.seconds", float("inf"), "should be a valid number"),
    ("ledger.max_lag.entries", 0, "greater than or equal to 1"),
    ("ledger.heads", {}, ".sink: is required"),
    ("ledger.heads.interval", "61s", "at most 1m (found '61s')"),
    ("ledger.heads.interval", "0s", "expected a duration above 0"),
    ("admin.listen", None, '0.0.0.0:15012" (found nothing)'),
    ("admin.listen", 9990, '0.0.0.0:15012" (found 9990)'),
    ("admin.listen", "0.0.0.0:15012", "another port than that of fronts.istio.listen"),
    ("admin.listen", "h:15013", "another port than that of fronts.istio.mtls_listen"),
    ("fronts.istio.mtls_listen", "0.0.0.0:15012", "another port than that of fronts"),
    ("ledger.archive", 7, "should be a valid string (found 7)"),
    ("ledger.archive", "postgresql://a:hunter2@h/d", "secrets are files"),
    ("ledger.archive", "postgresql://h/d?user=a&password=hunter2", "secrets are"),
]


@pytest.mark.parametrize(("where", "value", "says"), BAD_VALUES)
def test_a_bad_value_is_one_line_with_file_key_and_expectation(
    where: str, value: object, says: str
) -> None:
    (line,) = problems(put(where, value))
    key = re.sub(r"\.(\d+)", r"[\1]", where)
    section = key.rpartition(".")[0]  # rules about a section stand at the section
    assert line.startswith((f"{FILE}: {key}", f"{FILE}: {section}: ", f"{FILE}: clus"))
    assert says in line
    assert "(found " in line


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("issuance.backdate", "0s"),
        ("issuance.max_ttl", "87840h"),
        ("limits.drain", "0s"),
        ("limits.queue_seconds", 60),
        ("fronts.istio.listen", "[::1]:0"),
        ("clusters.0.aliases", ["cn-project-zone-name", "other"]),
        ("issuance.cert_signers", {"clusterissuers.istio.io/a": ["seoul-2"]}),
        ("clusters.0.tokens", BOUND | {"max_watch_age": "2m"}),
    ],
)
def test_a_value_at_the_bound_is_good(where: str, value: object) -> None:
    load(put(where, value))


def test_a_section_that_cannot_be_read_hides_only_what_depends_on_it() -> None:
    changed = put("limits.deadlin", "10s")
    changed["trust_domain"] = "Corp"
    changed["fronts"]["istio"]["tls"]["ttl"] = "1m"
    changed["admin"]["listen"] = "0.0.0.0:15012"
    changed["clusters"].append(changed["clusters"][0])
    changed["issuance"] |= {"rules": [{"fronts": ["linkerd"], "max_ttl": "48h"}]}
    changed["issuance"]["issuing_cas"] = ["other"]
    changed["issuing_cas"]["seoul-1"]["timeout"] = "soon"
    changed["ledger"]["heads"] = {}
    told = sorted(line.split(": ")[1] for line in problems(changed))
    assert told == [
        "admin.listen",
        "clusters[1]",
        "fronts.istio.tls.ttl",
        "issuance.rules[0].fronts[0]",
        "issuance.rules[0].max_ttl",
        "issuing_cas.seoul-1.timeout",
        "ledger.heads.sink",
        "limits.deadlin",
        "trust_domain",
    ]
    changed["issuing_cas"]["seoul-1"]["timeout"] = "1s"
    (more,) = [line for line in problems(changed) if "a name under issuing_cas" in line]
    assert "issuance.issuing_cas[0]" in more


# Two things that are wrong and of which one would bring about the other.
@pytest.mark.parametrize(
    "wrong",
    [
        {"issuance.default_ttl": "x", "issuance.max_ttl": "1h"},
        {"issuance.min_ttl": "x", "issuance.backdate": "6m"},
        {"issuing_cas": ..., "issuance.issuing_cas": ["a"]},
        {"issuing_cas.seoul-1.plugin": ..., "trust_anchors": 7},
        {"issuance.issuing_cas": [], "trust_domain": ...},
        {"clusters.0.name": "a b", "clusters.0.aliases": ["a", "a"]},
        {"clusters": "x", "fronts.linkerd": {"listen": "h:1", "cluster": "nope"}},
        {"clusters.0.tokens.file": "", "admin": 7},
        {"fronts.istio.listen": 15012, "fronts.istio.mtls_listen": "h:x"},
        {"fronts.istio.tls": {"certificate": 7, "key": 7}},
        {"fronts.istio.audiences": [7, 8]},
        {"ledger": 7, "fronts": 7},
        {"limits": {"per_identity": {}}},
        {"limits": {1: 2, "in_flight": 0}},
    ],
    ids=str,
)
def test_an_error_brings_about_no_other(wrong: dict[str, object]) -> None:
    changed = tree()
    for where, value in wrong.items():
        put(where, value, changed)
    with pytest.raises(ValidationError) as refusal:
        BridgeConfig.model_validate(changed)
    found = problems(changed)
    assert len(found) == len(refusal.value.errors())


def _places(node: object, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if above:
        yield above
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from _places(value, (*above, key))


@pytest.mark.parametrize("value", [None, 7, "", "x", [], {}, {1: 2}, [{}]], ids=str)
def test_whatever_stands_anywhere_the_other_sections_are_read(
    tmp_path: Path, value: object
) -> None:
    path = tmp_path / "bridge.yaml"
    for *above, last in _places(tree()):
        changed = node = tree()
        for part in above:
            node = node[part]
        node[last] = value
        path.write_text(yaml.safe_dump(changed))
        found = read_sections(path)
        assert found is not None
        assert found.config.base == tmp_path
        assert found.sections >= SECTIONS - {(*above, last)[0]}, (*above, last)


def test_a_key_that_is_no_text_does_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(yaml.safe_dump(tree() | {1: 2, None: {}}))
    found = read_sections(path)
    assert found is not None
    assert found.sections == SECTIONS


def test_a_file_that_is_no_mapping_has_no_sections(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    assert read_sections(path) is None
    path.write_text("- a")
    assert read_sections(path) is None


def test_a_key_that_is_wrong_is_named_as_it_stands() -> None:
    (line,) = problems(put("issuing_cas.Seoul", {"plugin": "file"}))
    assert line.startswith(f"{FILE}: issuing_cas.Seoul: String should match pattern")


@pytest.mark.parametrize(
    "section",
    [
        *("", "fronts", "fronts.istio", "fronts.istio.tls", "clusters.0"),
        *("clusters.0.tokens", "issuing_cas.seoul-1", "issuance", "limits", "ledger"),
        *("ledger.max_lag", "ledger.heads", "admin"),
    ],
)
def test_an_unknown_key_is_refused_in_every_section(section: str) -> None:
    where = f"{section}.colour".lstrip(".")
    (line,) = problems(put(where, "blue"))
    key = re.sub(r"\.(\d+)", r"[\1]", where)
    assert line == f"{FILE}: {key}: unknown key (found 'blue')"


@pytest.mark.parametrize(
    ("where", "near"),
    [
        ("admn", "admin"),
        ("fronts.istio.listn", "listen"),
        ("clusters.0.tokens.isuer", "issuer"),
        ("issuing_cas.seoul-1.chian", "chain"),
        ("ledger.heads.sinc", "sink"),
        ("limits.per_identity.rat", "rate"),
    ],
)
def test_a_misspelt_key_says_what_was_meant(where: str, near: str) -> None:
    changed = put("limits.per_identity", {"rate": 1, "burst": 1})
    (line,) = problems(put(where, 1, changed))
    last = where.rpartition(".")[2]
    assert line.endswith(f"{last}: unknown key; did you mean {near}? (found 1)")


@pytest.mark.parametrize(
    ("listen", "mtls", "admin"),
    [
        ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"),
        ("[::1]:1", None, "127.0.0.1:1"),
    ],
)
def test_addresses_that_do_not_meet_are_good(
    listen: str, mtls: str | None, admin: str
) -> None:
    changed = put("fronts.istio.listen", listen)
    changed["fronts"]["istio"]["mtls_listen"] = mtls
    changed["admin"]["listen"] = admin
    load(changed)


def test_a_password_in_a_url_is_not_repeated() -> None:
    (line,) = problems(put("ledger.archive", "postgresql://a:hunter2@h/d"))
    assert "hunter2" not in line
    load(put("ledger.archive", "postgresql://a@h:5432/d?service=x"))


@pytest.mark.parametrize("url", ["https://u:hunter2@h/k", "https://u:hunter2@h:x/"])
def test_a_password_in_the_url_of_keys_is_refused_and_not_repeated(url: str) -> None:
    changed = put("clusters.0.tokens.url", url)
    del changed["clusters"][0]["tokens"]["file"]
    (line,) = problems(changed)
    assert "clusters[0].tokens.url: " in line
    assert "without a user or password" in line
    assert "hunter2" not in line


def test_an_issuer_that_is_asked_for_its_keys_is_behind_https() -> None:
    changed = put("clusters.0.tokens.issuer", "kubernetes/serviceaccount")
    load(changed)
    changed["clusters"][0]["tokens"]["discovery"] = True
    del changed["clusters"][0]["tokens"]["file"]
    (line,) = problems(changed)
    assert "keys are fetched from https:// only" in line


def test_a_token_is_shown_only_to_servers_under_given_trust_anchors() -> None:
    changed = put("clusters.0.tokens.url", "https://a")
    del changed["clusters"][0]["tokens"]["file"]
    changed["clusters"][0]["tokens"] |= {"token_file": "token"}
    (line,) = problems(changed)
    assert "expected ca_file beside token_file: the token is sent only to" in line
    changed["clusters"][0]["tokens"]["ca_file"] = "ca.crt"
    tokens = load(changed).clusters[0].tokens
    assert tokens.token_file is not None
    assert tokens.token_file.is_absolute()


def test_the_issuers_of_a_cluster_are_one_or_several_the_current_one_first() -> None:
    changed = put("clusters.0.tokens.issuer", "https://a")
    assert of_keys(load(changed)).accepted_issuers == ("https://a",)
    tokens = changed["clusters"][0]["tokens"]
    del tokens["issuer"]
    tokens["issuers"] = ["https://b", "kubernetes/serviceaccount"]
    assert of_keys(load(changed)).accepted_issuers == (*tokens["issuers"],)
    del tokens["file"]
    tokens["discovery"] = True
    load(changed)
    tokens["issuers"].reverse()
    (line,) = problems(changed)
    assert "keys are fetched from https:// only" in line


@pytest.mark.parametrize("key", ["pin", "user_pin", "passphrase", "token", "Secret"])
def test_a_secret_in_a_wrong_place_is_not_repeated(key: str) -> None:
    (line,) = problems(put(f"issuing_cas.seoul-1.{key}", "hunter2"))
    assert "hunter2" not in line
    assert f"{key}: unknown key" in line
    assert line.endswith("(found a value that is not shown)")


def test_options_reach_the_plugin_as_they_are() -> None:
    options = {"key": "k", "more": [1, {"a": None}], "on": True}
    config = load(put("issuing_cas.seoul-1.options", options))
    assert config.issuing_cas["seoul-1"].options == options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", timedelta(hours=24)),
        ("5m", timedelta(minutes=5)),
        ("1h30m", timedelta(minutes=90)),
        ("1h30m15s", timedelta(seconds=5415)),
        ("0.25s", timedelta(milliseconds=250)),
        ("90m", timedelta(minutes=90)),
    ],
)
def test_a_duration_is_read(text: str, expected: timedelta) -> None:
    assert load(put("limits.deadline", text)).limits.deadline == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "24", "h", "-5m", "+5m", "5 m", "5m ", "30m1h", "1d", "1.5h", "1e3s"),
        *("5M", "\u0663h", "1h\n", "1_0s", ".5s", "1.s", "9" * 10 + "h"),
        "9" * 5000 + "s",
    ],
)
def test_another_spelling_is_no_duration(text: str) -> None:
    (line,) = problems(put("limits.deadline", text))
    assert 'limits.deadline: expected a duration such as "24h"' in line


@pytest.mark.parametrize("text", ["999999999h", "87840h1s"])
def test_a_duration_stays_inside_the_calendar(text: str) -> None:
    (line,) = problems(put("issuance.max_ttl", text))
    assert "at most ten years" in line


# What YAML 1.1 makes of a plain word, and what this reader says of it.
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("in_flight: 512", "in_flight: 0600", "valid integer (found '0600')"),
        ("in_flight: 512", "in_flight: 1:30", "valid integer (found '1:30')"),
        ("in_flight: 512", "in_flight: 0x10", "valid integer (found '0x10')"),
        ("in_flight: 512", "in_flight: 1_000", "valid integer (found '1_000')"),
        ("queue_seconds: 1.5", "queue_seconds: yes", "valid number (found 'yes')"),
        ("queue_seconds: 1.5", "queue_seconds: .inf", "valid number (found '.inf')"),
        ("queue_seconds: 1.5", "queue_seconds: .nan", "valid number (found '.nan')"),
        ("queue_seconds: 1.5", "queue_seconds: 1e999", "finite number (found inf)"),
        ("file: jwks.json", "discovery: on", "valid boolean (found 'on')"),
        ("trust_domain: corp.example", "trust_domain: 1.5", "valid string (found 1.5)"),
    ],
)
def test_yaml_holds_no_surprise(old: str, new: str, says: str) -> None:
    assert DESIGN.count(old) == 1
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse(DESIGN.replace(old, new), FILE)


@pytest.mark.parametrize("word", ["no", "on", "0600", "2026-01-01", "1:30", "=", "<<"])
def test_a_plain_word_that_yaml_1_1_would_change_stays_a_word(word: str) -> None:
    config = parse(DESIGN.replace('namespaces: ["*"]', f"namespaces: [{word}]"), FILE)
    assert config.clusters[0].namespaces == (word,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DESIGN + "workers: 0\n", "'workers' is written twice"),
        ("a: 1\na: 2\n", "not YAML: 'a' is written twice at line 2, column 1"),
        (DESIGN.replace("deadline: 10s", "in_flight: 1"), "'in_flight' is written twi"),
        (DESIGN.replace("options: {key:", 'options: {"key": a, key:'), "written twice"),
        (DESIGN + "---\na: b\n", "expected a single document"),
        (DESIGN + "\tx: y\n", "cannot start any token"),
        ("a: !!int ''", "invalid literal for int"),
        ("a: !!bool maybe", "expected true or false"),
        ("a: !!float x", "could not convert"),
        ("a: !!timestamp x", "could not determine a constructor"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !!set {b}", "could not determine a constructor"),
        ("a: !!map b", "expected a mapping node"),
        ("a: !!seq b", "expected a sequence node"),
        ("? [a]\n: b", "unhashable key"),
        ("a: &b [*b]", "an alias stands for something that holds it"),
        ("a: *b", "found undefined alias"),
        ("[" * 20_000, "nested too deeply"),
        ("a: " + "9" * 5000, "integer string conversion"),
        ("#" * 300_000, "expected at most 262144 characters"),
        ("a: \x00", "special characters are not allowed"),
        ("- a\n- b\n", re.escape("expected a mapping, found ['a', 'b']")),
        ("", "expected a mapping, found nothing"),
        ("7", "expected a mapping, found 7"),
    ],
)
def test_what_is_not_one_plain_mapping_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(text, FILE)


def bomb(levels: int, width: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    for level in range(1, levels):
        below = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{below}]")
    return "\n".join(lines) + "\n"


def test_aliases_that_stand_for_a_billion_values_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="stand for more than 20000 values"):
        parse(DESIGN + bomb(9, 9), FILE)


def test_a_value_that_aliases_make_long_is_shown_in_short() -> None:
    with pytest.raises(ConfigError, match="unknown key") as refusal:
        parse(DESIGN + bomb(4, 9), FILE)
    assert max(map(len, str(refusal.value).splitlines())) < 200


def test_an_alias_may_save_writing() -> None:
    text = DESIGN.replace("options: {key:", "options: &o {key:").replace(
        "chain: chain-2.pem", "chain: chain-2.pem, options: *o"
    )
    config = parse(text, FILE)
    assert config.issuing_cas["seoul-2"].options == {"key": "issuing.key"}


def test_a_key_with_a_line_break_keeps_to_one_line() -> None:
    (line,) = problems(put("a\nb", 1))
    assert line == f"{FILE}: 'a\\nb': unknown key (found 1)"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "No such file"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.write_bytes(b"\xff"), "can't decode byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_configuration_error(
    make: Any, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "bridge.yaml"
    make(path)
    with pytest.raises(ConfigError, match=reason) as refusal:
        read(path)
    assert str(refusal.value).startswith(f"{path}: cannot be read: ")


YAML_TEXT = st.text() | st.text("{}[]:,-&*!|>'\"#%@? \n\tabn0159~.<=ye", max_size=60)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.text(max_size=5), below, max_size=3)
    ),
    max_leaves=8,
)


@given(YAML_TEXT)
def test_any_text_is_a_configuration_or_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{FILE}: ")):
        parse(text, FILE)


@given(where=st.sampled_from([row[0] for row in BAD_VALUES]), value=VALUES)
def test_any_value_at_any_key_is_good_or_a_configuration_error(
    where: str, value: object
) -> None:
    text = yaml.safe_dump(put(where, value))
    try:
        parse(text, FILE)
    except ConfigError as error:
        assert str(error).startswith(f"{FILE}: ")  # noqa: PT017 - it may also be good


# Fronts.


LINKERD = {"listen": "0.0.0.0:8080"}


def fronts(**wanted: Any) -> dict[str, Any]:
    return put("fronts", wanted)


def test_linkerd_alone_is_enough() -> None:
    config = load(fronts(linkerd=LINKERD))
    assert config.fronts.istio is None
    front = config.fronts.linkerd
    assert front is not None
    assert front.audiences == ("identity.l5d.io",)
    assert front.control_plane_namespace == "linkerd"
    assert config.linkerd_trust_domain() == "corp.example"
    cluster = config.linkerd_cluster()
    assert cluster is not None
    assert cluster.name == config.clusters[0].name


@pytest.mark.parametrize(
    ("changed", "key", "says"),
    [
        ({"cluster": "nowhere"}, "cluster", "expected a name under clusters: "),
        ({"control_plane_namespace": "a.b"}, "control_plane_namespace", "pattern"),
        ({"control_plane_namespace": "A"}, "control_plane_namespace", "pattern"),
        ({"trust_domain": "a_b"}, "trust_domain", "a DNS name"),
        ({"trust_domain": "a..b"}, "trust_domain", "no dot at an end"),
        ({"trust_domain": "corp.1"}, "trust_domain", "a DNS name"),
        ({"trust_domain": LONG_DOMAIN}, "trust_domain", "a shorter trust domain"),
        ({"trust_domain": f"a.{'b' * 64}"}, "trust_domain", "at most 63 characters"),
        ({"audiences": []}, "audiences", "one or more"),
        ({"queue_seconds": 40}, "", "queue_seconds below deadline"),
        ({"deadline": "30s"}, "", "queue_seconds 30, deadline 30s"),
        (
            {"events": True},
            "events",
            "expected tokens.verify: token_review or bound of cluster Kubernetes",
        ),
    ],
)
def test_a_linkerd_front_that_cannot_work_is_refused(
    changed: dict[str, Any], key: str, says: str
) -> None:
    (line,) = problems(fronts(linkerd=LINKERD | changed))
    assert line.startswith(f"{FILE}: fronts.linkerd{'.' if key else ''}{key}: ")
    assert says in line


def test_events_are_on_only_where_somebody_takes_them() -> None:
    for changed in {}, {"events": False}:
        load(fronts(linkerd=LINKERD | changed))
    by_review = fronts(linkerd=LINKERD | {"events": True})
    by_review["clusters"][0]["tokens"] = REVIEW
    load(by_review)


def test_two_meshes_do_not_issue_one_spiffe_id() -> None:
    istio = tree()["fronts"]["istio"]
    both = fronts(istio=istio, linkerd=LINKERD | {"spiffe_uri": True})
    (line,) = problems(both)
    assert line.startswith(f"{FILE}: fronts.linkerd.spiffe_uri: expected false")
    assert "corp.example" in line
    other = LINKERD | {"spiffe_uri": True, "trust_domain": "linkerd.example"}
    assert load(fronts(istio=istio, linkerd=other)).linkerd_trust_domain() == (
        "linkerd.example"
    )
    alone = load(fronts(linkerd=LINKERD | {"spiffe_uri": True}))
    assert alone.linkerd_trust_domain() == "corp.example"


def test_two_fronts_do_not_listen_on_one_address() -> None:
    admin = {"listen": "127.0.0.1:8080"}
    (line,) = problems(fronts(linkerd=LINKERD) | {"admin": admin})
    assert "another port than that of fronts.linkerd.listen" in line


def test_tokens_are_reviewed_unless_something_else_is_said() -> None:
    changed = tree()
    changed["clusters"][0]["tokens"] = {"timeout": "2s"}
    assert load(changed).clusters[0].tokens.verify == "token_review"
    # The weaker mode is never taken unsaid.
    changed["clusters"][0]["tokens"] = {"file": "a.json", "issuer": "https://a.example"}
    with pytest.raises(ConfigError, match=r"tokens\.verify: is required"):
        load(changed)
