import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from typer.testing import CliRunner

from bridge.checks.findings import (
    _linkerd_names,
    _once,
    fronts,
    second_certificates,
)
from bridge.cli.command_line import app
from bridge.cli.demo_setup import scenario as demo_scenario
from bridge.errors import BackendCredentialError
from bridge.hierarchy.export import write
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rules import RoutedCaller
from bridge.resilience.latch import Latch
from bridge.resilience.quarantine import StoppedCAs
from bridge.spiffe import TrustDomain
from bridge.system.clock import system_clock
from tests.support.harness.core import World
from tests.support.harness.in_process_server import ListenerCA
from tests.support.parts.pki import bundle, new_root

Change = Callable[[dict[str, Any], Path], None]


@cache
def _scenario() -> "TemporaryDirectory[str]":
    """Return a folder with the demo, made once: most of a test's time goes there."""
    made = TemporaryDirectory()
    demo_scenario.prepare(Path(made.name), system_clock)
    return made


def written(folder: Path, change: Change | None = None) -> Path:
    shutil.copytree(_scenario().name, folder, dirs_exist_ok=True)
    configuration = folder / "bridge.yaml"
    tree = yaml.safe_load(configuration.read_text())
    if change is not None:
        change(tree, folder)
    configuration.write_text(yaml.safe_dump(tree))
    return configuration


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.stdout


def names(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_configuration_that_can_serve_passes_and_nothing_is_made(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    before = names(tmp_path)
    status, out = run("-c", path)
    assert status == 0
    assert names(tmp_path) == before
    for key in ("journal", "archive", "heads.sink", "heads.key"):
        assert f"ledger.{key}" in out
    assert "FAILED" not in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def ledger(**values: object) -> Change:
    return lambda tree, _: tree["ledger"].update(values)


def no_folder(tree: dict[str, Any], folder: Path) -> None:
    (folder / "file").write_text("")
    tree["ledger"]["journal"] = "file/journal"


def text_archive(tree: dict[str, Any], folder: Path) -> None:
    (folder / "text.db").write_text("this is no database")
    tree["ledger"]["archive"] = "sqlite:///text.db"


def folder_archive(tree: dict[str, Any], folder: Path) -> None:
    (folder / "archive.db").mkdir()
    tree["ledger"]["archive"] = "sqlite:///archive.db"


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (
            ledger(archive="postgresql://x/y"),
            "archive",
            "; install it into the bridge's environment",
        ),
        (
            ledger(archive="sqlite:///no/a.db"),
            "archive",
            "/no does not exist: make the",
        ),
        (ledger(archive="sqlite://"), "archive", "expected a file: sqlite:///FILE"),
        (ledger(archive="archive.db"), "archive", "expected a SQLAlchemy URL"),
        (ledger(archive="what:///archive.db"), "archive", "expected a SQLAlchemy URL"),
        (
            text_archive,
            "archive",
            "expected a database of SQLite, or no file (found another",
        ),
        (folder_archive, "archive", "archive.db: expected a file"),
        (ledger(heads={"sink": "no/h"}), "heads.sink", "/no does not exist: make the"),
        (ledger(heads={"sink": "hierarchy"}), "heads.sink", "expected a file"),
        (ledger(heads={"sink": "/proc/x"}), "heads.sink", "cannot write in /proc: "),
        (
            ledger(heads={"sink": "h", "key": "no.key"}),
            "heads.key",
            "no.key: cannot be read: No such file",
        ),
        (ledger(journal="/proc/x/y"), "journal", "cannot write in /proc: "),
        (no_folder, "journal", "/file is not a folder"),
    ],
)
def test_a_place_that_cannot_be_written_fails(
    tmp_path: Path, change: Change, key: str, says: str
) -> None:
    path = written(tmp_path, change)
    before = names(tmp_path)
    status, out = run("-c", path, "-o", "json")
    assert status == 1
    assert names(tmp_path) == before
    (failed,) = [
        found for found in json.loads(out)["findings"] if found["result"] == "FAILED"
    ]
    assert failed["what"] == f"ledger.{key}"
    assert says in failed["detail"]


def given(certificate: str, key: str) -> Change:
    tls = {"certificate": f"hierarchy/{certificate}", "key": f"hierarchy/{key}"}
    return lambda tree, _: tree["fronts"]["istio"].update(tls=tls)


@pytest.mark.parametrize(
    ("change", "result", "says"),
    [
        (given("issuing.pem", "issuing.key"), "ok", "its key belongs to it"),
        (given("issuing.pem", "root.key"), "FAILED", "root.key: is not the key of"),
        (given("no.pem", "root.key"), "FAILED", "no.pem: cannot be read: No such file"),
        (given("issuing.pem", "root.pem"), "FAILED", "0600 or 0440 (found 0644)"),
    ],
)
def test_a_serving_certificate_that_is_given_is_looked_at(
    tmp_path: Path, change: Change, result: str, says: str
) -> None:
    _, out = run("-c", written(tmp_path, change), "-o", "json")
    (found,) = [
        one
        for one in json.loads(out)["findings"]
        if one["what"] == "serving certificate"
    ]
    assert found["result"] == result
    assert says in found["detail"]


DAY = timedelta(days=1)


def lasting(
    root: timedelta = 3650 * DAY,
    intermediate: timedelta = 1825 * DAY,
    issuing: timedelta = 365 * DAY,
    *,
    age: timedelta = timedelta(),
) -> Change:
    def change(_: dict[str, Any], folder: Path) -> None:
        shutil.rmtree(folder / "hierarchy")
        spec = ThrowawaySpec(
            trust_domains=(TrustDomain(demo_scenario.TRUST_DOMAIN),),
            root_ttl=root,
            intermediate_ttl=intermediate,
            issuing_ttl=issuing,
        )
        hierarchy = make(spec, clock=lambda: system_clock() - age)
        write(hierarchy, folder / "hierarchy")

    return change


def ending_pair(tree: dict[str, Any], folder: Path) -> None:
    given("given.pem", "given.key")(tree, folder)
    pair = ListenerCA().issue([x509.DNSName("a")], timedelta(days=1), system_clock())
    (folder / "hierarchy/given.pem").write_bytes(pair.certificate_chain_pem)
    key = folder / "hierarchy/given.key"
    key.touch(0o600)
    key.write_bytes(pair.private_key_pem)


ENDS: list[tuple[Change | None, str, str]] = [
    (None, "issuing CA", "ok"),
    (lasting(age=182 * DAY), "issuing CA", "ok"),
    (lasting(age=183 * DAY), "issuing CA", "note"),
    (lasting(age=293 * DAY), "issuing CA", "warning"),
    (lasting(age=347 * DAY), "issuing CA", "FAILED"),
    (lasting(intermediate=400 * DAY, age=300 * DAY), "intermediate", "note"),
    (lasting(intermediate=400 * DAY, age=321 * DAY), "intermediate", "warning"),
    (lasting(intermediate=366 * DAY, age=349 * DAY), "intermediate", "FAILED"),
    (lasting(400 * DAY, 400 * DAY, age=300 * DAY), "trust anchor", "note"),
    (lasting(400 * DAY, 400 * DAY, age=321 * DAY), "trust anchor", "warning"),
    (lasting(366 * DAY, 366 * DAY, age=349 * DAY), "trust anchor", "FAILED"),
    (lasting(issuing=7 * DAY, age=6 * DAY), "issuing CA", "FAILED"),
    (ending_pair, "serving certificate", "ok"),
]


@pytest.mark.parametrize(("change", "tier", "result"), ENDS)
def test_an_expiry_has_a_level_and_an_error_fails_the_check(
    tmp_path: Path, change: Change | None, tier: str, result: str
) -> None:
    status, out = run("-c", written(tmp_path, change), "-o", "json")
    found = [one for one in json.loads(out)["findings"] if one["what"].startswith(tier)]
    assert [one["result"] for one in found] == [result]
    assert status == (1 if result == "FAILED" else 0)


@pytest.mark.parametrize(
    ("age", "results"), [(0, ["ok"]), (39, ["warning"]), (41, [])], ids=str
)
def test_a_trust_anchor_that_no_chain_leads_to_has_an_expiry_and_fails_nothing(
    tmp_path: Path, age: int, results: list[str]
) -> None:
    def change(tree: dict[str, Any], folder: Path) -> None:
        began = system_clock() - age * DAY
        root = new_root("other", not_before=began, not_after=began + 40 * DAY)
        anchors = (folder / tree["trust_anchors"]).read_bytes()
        (folder / "both.pem").write_bytes(anchors + bundle(root.certificate))
        tree["trust_anchors"] = "both.pem"

    status, out = run("-c", written(tmp_path, change), "-o", "json")
    what = "trust anchor of no chain here (CN=other)"
    found = [one for one in json.loads(out)["findings"] if one["what"] == what]
    assert [one["result"] for one in found] == results
    assert status == 0


@pytest.mark.parametrize("is_old", [True, False])
def test_a_left_over_accept_new_anchors_is_a_warning(
    tmp_path: Path,
    is_old: bool,  # noqa: FBT001 - a parameter
) -> None:
    def change(tree: dict[str, Any], folder: Path) -> None:
        content = (folder / tree["trust_anchors"]).read_bytes()
        digest = hashlib.sha256(b"" if is_old else content).hexdigest()
        tree["accept_new_anchors"] = digest

    _, out = run("-c", written(tmp_path, change), "-o", "json")
    found = [
        (one["what"], one["result"])
        for one in json.loads(out)["findings"]
        if one["what"] == "accept_new_anchors"
    ]
    assert found == [("accept_new_anchors", "warning")] * is_old


def test_an_issuing_ca_that_has_ended_beside_a_good_one_fails_by_its_expiry_alone(
    tmp_path: Path,
) -> None:
    def change(tree: dict[str, Any], folder: Path) -> None:
        old = make(
            ThrowawaySpec(
                trust_domains=(TrustDomain(demo_scenario.TRUST_DOMAIN),),
                issuing_ttl=DAY,
            ),
            clock=lambda: system_clock() - 2 * DAY,
        )
        write(old, folder / "old")
        anchors = folder / "anchors.pem"
        anchors.write_bytes(
            b"".join(one.read_bytes() for one in folder.glob("*/roots.pem"))
        )
        good = tree["issuing_cas"]["demo"]
        changed = json.loads(json.dumps(good).replace("hierarchy/", "old/"))
        tree["issuing_cas"]["old"] = changed
        tree["issuance"]["issuing_cas"] = ["old", "demo"]
        tree["trust_anchors"] = "anchors.pem"

    status, out = run("-c", written(tmp_path, change), "-o", "json")
    found = [one for one in json.loads(out)["findings"] if one["result"] == "FAILED"]
    assert [(one["part"], one["detail"][:6]) for one in found] == [("old", "ended ")]
    assert status == 1


@pytest.mark.parametrize(
    ("days", "says"),
    [(-9, "ended "), (9, "is not valid before ")],
    ids=["ended", "not valid yet"],
)
def test_a_serving_certificate_that_is_not_valid_now_fails(
    tmp_path: Path, days: int, says: str
) -> None:
    path = written(tmp_path, given("given.pem", "given.key"))
    began = system_clock() + timedelta(days=days)
    pair = ListenerCA().issue([x509.DNSName("a")], timedelta(days=1), began)
    (tmp_path / "hierarchy/given.pem").write_bytes(pair.certificate_chain_pem)
    key = tmp_path / "hierarchy/given.key"
    key.touch(0o600)
    key.write_bytes(pair.private_key_pem)
    status, out = run("-c", path, "-o", "json")
    assert status == 1
    (found,) = [
        one
        for one in json.loads(out)["findings"]
        if one["what"] == "serving certificate"
    ]
    assert found["result"] == "FAILED"
    assert found["detail"].startswith(says)
    assert found["detail"].endswith(": expected one that is valid")


def test_backends_and_files_of_good_sections_are_tried_when_another_is_wrong(
    tmp_path: Path,
) -> None:
    def spoil(tree: dict[str, Any], folder: Path) -> None:
        tree["limits"] = {"deadlin": "10s"}
        tree["trust_anchors"] = 7
        tree["issuing_cas"]["demo"]["options"]["kee"] = "a"
        tree["issuing_cas"]["other"] = {"plugin": "nothing"}
        tree["ledger"]["journal"] = "/proc/x"
        (folder / "jwks.json").unlink()

    path = written(tmp_path, spoil)
    result = CliRunner().invoke(app, ["check", "-c", str(path)])
    told = str(result.exception).splitlines()
    assert [line.removeprefix(f"{path}: ").split(": ")[0] for line in told] == [
        "trust_anchors",
        "limits.deadlin",
        "issuing_cas.demo.options.kee",
        "issuing_cas.other.plugin",
        "clusters[0].tokens.file",
        "ledger.journal",
    ]


SPOILED = {
    "trust_domain": "clusters[0].tokens.file",
    "clusters": "clusters[0].tokens.file",
    "issuing_cas": "issuing_cas.other.plugin",
    "ledger": "ledger.journal",
    "trust_anchors": "",
    "remote_secrets": "",
    "fronts": "",
    "issuance": "",
    "limits": "",
    "admin": "",
}


@pytest.mark.parametrize(("section", "hidden"), SPOILED.items())
def test_a_section_that_cannot_be_read_is_not_tried(
    tmp_path: Path, section: str, hidden: str
) -> None:
    def spoil(tree: dict[str, Any], folder: Path) -> None:
        tree["issuing_cas"]["other"] = {"plugin": "nothing"}
        tree["ledger"]["journal"] = "/proc/x"
        (folder / "jwks.json").unlink()
        if isinstance(tree.get(section, {}), dict):
            tree.setdefault(section, {})["unknown"] = 7
        else:
            tree[section] = 7

    path = written(tmp_path, spoil)
    result = CliRunner().invoke(app, ["check", "-c", str(path)])
    told = "\n".join(str(result.exception).splitlines())
    for line in {*SPOILED.values()} - {""}:
        assert (f": {line}: " in told) == (line != hidden)


def test_remote_secrets_that_cannot_be_read_are_no_error_of_a_server(
    tmp_path: Path,
) -> None:
    def spoil(tree: dict[str, Any], _: Path) -> None:
        joined = {"verify": "token_review", "remote_secret": True}
        tree["clusters"].append({"name": "far", "tokens": joined})
        tree["remote_secrets"] = {"namespace": "istio-system", "unknown": 7}

    path = written(tmp_path, spoil)
    result = CliRunner().invoke(app, ["check", "-c", str(path)])
    (told,) = str(result.exception).splitlines()
    assert told.startswith(f"{path}: remote_secrets.unknown: ")


def test_the_same_of_several_tiers_is_told_once() -> None:
    where = "the certificate of tier {} (CN=a (b)) "
    told = _once(
        [
            where.format(1) + "has a constraint; leave it out",
            where.format(2) + "permits the URI host 'a'",
            where.format(2) + "has a constraint; leave it out",
            "something else",
        ]
    )
    assert [*told] == [
        where.format(1) + "has a constraint; leave it out; tier 2 does, too",
        where.format(2) + "permits the URI host 'a'",
        "something else",
    ]


def findings(path: Path, status: int = 0) -> dict[tuple[str, str], dict[str, str]]:
    found, out = run("-c", path, "-o", "json")
    assert found == status, out
    return {(one["part"], one["what"]): one for one in json.loads(out)["findings"]}


def rules(*given: dict[str, Any], **more: Any) -> Change:
    """Give the configuration rules, and a second issuing CA, which is the first."""

    def change(tree: dict[str, Any], _: Path) -> None:
        tree["issuing_cas"]["other"] = tree["issuing_cas"]["demo"]
        tree["issuance"] |= {"rules": [*given], **more}

    return change


def test_it_shows_who_gets_what(tmp_path: Path) -> None:
    change = rules(
        {"namespaces": ["bank"], "service_accounts": ["a", "b"], "refuse": True},
        {"namespaces": list("abcdef"), "max_ttl": "1h", "on_excess_ttl": "clamp"},
        {"fronts": ["linkerd"], "issuing_cas": ["other"]},
        cert_signers={"istio.io/x": ["other", "demo"]},
    )
    found = findings(written(tmp_path, change))
    told = {
        what: one["detail"] for (part, what), one in found.items() if part == "issuance"
    }
    day = "24h by default, 5m to 24h, beyond that refused"
    signer = "; CertSigner istio.io/x: other, then demo"
    linkerd = f"issuing CA other; {day}; CertSigner istio.io/x: other"
    assert told == {
        "rules[0]: namespace bank, service account a|b": "no certificate",
        "rules[1]: namespace a|b|c|d and 2 more": (
            f"issuing CA demo; 1h by default, 5m to 1h, beyond that clamped{signer}"
        ),
        "rules[2]: linkerd": linkerd,
        "istio: everybody else": f"issuing CA demo; {day}{signer}",
        "linkerd: everybody else": linkerd,
    }


def test_without_rules_it_shows_what_everybody_gets(tmp_path: Path) -> None:
    told = {what for part, what in findings(written(tmp_path)) if part == "issuance"}
    assert told == {"istio: everybody", "linkerd: everybody"}


def test_a_name_is_proven_where_its_callers_are_led(tmp_path: Path) -> None:
    led = {"fronts": ["linkerd"], "namespaces": ["shop"], "issuing_cas": ["other"]}
    found = findings(written(tmp_path, rules(led)))
    identity = "serviceaccount.identity.linkerd"
    proven = {
        (part, what.partition(identity)[0]) for part, what in found if identity in what
    }
    assert proven == {("demo", "DNS b.a."), ("other", "DNS b.shop.")}
    uris = {
        part
        for part, what in found
        if what.startswith("URI spiffe://") and "check" not in what
    }
    assert uris == {"demo"}


@pytest.mark.parametrize("account", ["a" * 70, f"{'a' * 64}.b", "a" * 253])
def test_a_rule_for_an_account_without_an_identity_in_linkerd_is_no_failure(
    tmp_path: Path, account: str
) -> None:
    rule = {"namespaces": ["shop"], "service_accounts": [account]}
    terms = {"max_ttl": "1h", "on_excess_ttl": "clamp", "issuing_cas": ["other"]}
    found = findings(written(tmp_path, rules(rule | terms)))
    proven = {what for part, what in found if part == "other"}
    assert any(what.startswith("DNS b.shop.serviceaccount.") for what in proven)
    assert any(what.endswith(f"/sa/{account.partition('.')[0]}") for what in proven)


@pytest.mark.parametrize(
    ("length", "labels"), [(20, [63 * "a"]), (100, ["b"]), (190, [])]
)
def test_an_example_for_linkerd_is_no_longer_than_a_name_can_be(
    length: int, labels: list[str]
) -> None:
    domain = (length // 10 - 1) * "xxxxxxxxx." + 10 * "x"
    linkerd = LinkerdNames(
        cluster="Kubernetes",
        control_plane_namespace="l5d",
        trust_domain=TrustDomain(domain),
        with_uri=False,
    )
    found = _linkerd_names(linkerd, RoutedCaller("n" * 63, "a" * 63 + ".more"))
    assert [name.value.partition(".")[0] for name in found] == labels


def test_an_issuing_ca_that_no_call_is_led_to_is_noted(tmp_path: Path) -> None:
    found = findings(written(tmp_path, rules()))
    assert "no call is routed to it" in found["other", "names"]["detail"]
    assert ("demo", "names") not in found


@pytest.mark.parametrize(
    ("audience", "results"),
    [
        ("identity.l5d.io", ["ok", "ok"]),
        # Then a token of one mesh is one of the other, too.
        ("istio-ca", ["ok", "ok", "note"]),
    ],
)
def test_each_front_is_shown_with_what_it_takes(
    tmp_path: Path, audience: str, results: list[str]
) -> None:
    linkerd = {"listen": "127.0.0.1:0", "audiences": [audience]}
    with World(tmp_path, overrides={"fronts": {"linkerd": linkerd}}) as world:
        found = [*fronts(world.config, world.snapshot)]
    assert [one.result for one in found] == results
    istio, shown, *_ = found
    assert (istio.what, istio.detail) == ("istio", "127.0.0.1:0, tokens for istio-ca")
    assert shown.what == "linkerd"
    assert f"tokens of Kubernetes for {audience}" in shown.detail
    assert ".serviceaccount.identity.linkerd.corp.example" in shown.detail


@pytest.mark.parametrize(
    ("istio", "told"),
    [
        ({}, []),
        (
            {"mtls_listen": "127.0.0.1:0", "mtls_identities": [{"namespaces": ["a"]}]},
            [],
        ),
        ({"mtls_listen": "127.0.0.1:0"}, ["every caller there is refused"]),
        ({"mtls_identities": [{"namespaces": ["a"]}]}, ["no effect without"]),
    ],
)
def test_a_second_port_for_nobody_is_a_warning(
    tmp_path: Path, istio: dict[str, object], told: list[str]
) -> None:
    with World(tmp_path, overrides={"fronts": {"istio": istio}}) as world:
        found = [*fronts(world.config, world.snapshot)]
    warnings = [one.detail for one in found if one.result == "warning"]
    assert len(warnings) == len(told)
    for text, part in zip(warnings, told, strict=True):
        assert part in text


def test_a_refused_credential_fails_the_check_until_another_one_passes(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    latch = Latch(tmp_path / "journal/state/latch.json", issuing_ca="demo")
    refusal = pytest.raises(BackendCredentialError, match="another PIN")
    with refusal, latch.attempt("token 1", b"1234"):
        raise BackendCredentialError("another PIN")
    with refusal, latch.attempt("token 2", b"1234"):
        raise BackendCredentialError("another PIN")
    assert run("-c", path)[0] == 1
    with latch.attempt("token 1", b"4321"):
        pass
    status, out = run("-c", path)
    assert (status, out.count("the credential is refused")) == (1, 1)
    with latch.attempt("token 2", b"4321"):
        pass
    assert run("-c", path)[0] == 0


def test_what_is_latched_fails_the_check(tmp_path: Path) -> None:
    path = written(tmp_path)
    latch = tmp_path / "journal/state/latch.json"
    chain = (tmp_path / "hierarchy/chain.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(chain)
    digest = certificate.fingerprint(hashes.SHA256()).hex()
    StoppedCAs(latch).add("demo", digest, "another name")
    StoppedCAs(latch).add("earlier", "0a", "another key")
    status, out = run("-c", path, "--output", "json")
    found = [each for each in json.loads(out)["findings"] if each["what"] == "latch"]
    assert status == 1
    assert [(each["part"], each["result"]) for each in found] == [
        ("demo", "FAILED"),
        ("earlier", "note"),
    ]
    assert "the issuing CA is stopped: another name" in found[0]["detail"]
    latch.write_bytes(b"{")
    status, out = run("-c", path)
    assert status == 1
    assert f"{latch} holds no latch" in out


@pytest.mark.parametrize(
    ("is_allowed", "builds", "told"),
    [
        (False, True, []),  # the caller asks again
        (True, False, ["true has no effect: no issuing CA here chooses serial num"]),
        (True, True, ["a lost answer of b may be a second certificate"]),
    ],
)
def test_a_second_certificate_is_noted_where_it_may_come(
    tmp_path: Path, told: list[str], *, is_allowed: bool, builds: bool
) -> None:
    overrides = {"issuance": {"second_certificate": is_allowed}}
    with World(tmp_path, overrides=overrides) as world:
        old = world.snapshot.issuers["b"].description
        description = replace(old, chooses_serial=builds)
        snapshot = world.replace_issuer(
            "b", lambda issuer: replace(issuer, description=description)
        )
        found = [*second_certificates(world.config, snapshot)]
    assert [each.result for each in found] == ["note"] * len(told)
    for each, text in zip(found, told, strict=True):
        assert each.detail.startswith(text)


@pytest.mark.parametrize(("others", "status"), [([], 1), (["second"], 0)])
def test_a_front_without_token_keys_fails(
    tmp_path: Path, others: list[str], status: int
) -> None:
    def change(tree: dict[str, Any], _: Path) -> None:
        (good,) = tree["clusters"]
        keys = {"verify": "jwks", "issuer": "https://x", "url": "https://127.0.0.1:1/x"}
        tree["clusters"] = [{"name": "first", "tokens": keys}]
        tree["clusters"] += [{**good, "name": name} for name in others]
        tree["fronts"].pop("linkerd")

    found = findings(written(tmp_path, change), status)
    note = found["cluster", "token keys"]
    assert note["result"] == "note"
    assert note["detail"].startswith("cluster first: has no keys yet: https://127.0.0")
    failed = found.get(("front", "token keys"), {"result": "", "detail": ""})
    assert (failed["result"] == "FAILED") == (status == 1)
    assert (
        f"front istio can verify no token: {note['detail']}" in failed.values()
    ) == (status == 1)
