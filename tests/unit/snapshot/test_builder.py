import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from bridge.errors import BackendUnavailableError, ConfigError
from bridge.hierarchy.replica import replicate
from bridge.metrics.instruments import Metrics
from bridge.snapshot import builder
from bridge.snapshot.builder import Assembly
from bridge.snapshot.model import Issuer
from bridge.snapshot.trust_bundle import TrustBundle
from bridge.spi import IssuingCA, PluginContext
from bridge.x509.algorithm import CAPrivateKey
from bridge.x509.certificate import readable
from bridge.x509.path import verify_leaf_signature
from tests.interop.planes.certificates import build, private_key
from tests.interop.planes.oddities import change_of
from tests.support.harness.core import World, leaf_of, two_authorities
from tests.support.harness.fake_ca import LyingCA
from tests.support.parts.pki import NOW, Authority, bundle, new_root, revoking

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "trust_anchors: .*roots.pem: cannot be read: No such file"),
        (b"", "roots.pem: expected one or more CERTIFICATE blocks"),
        (b"\xff", "roots.pem: expected PEM certificates, found binary"),
    ],
)
def test_without_trust_anchors_there_is_no_snapshot(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    world = World(tmp_path, fake=False)
    (tmp_path / "roots.pem").unlink()
    if content is not None:
        (tmp_path / "roots.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        world.assembly.snapshot()


def test_a_chain_to_another_anchor_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, fake=False)
    (tmp_path / "roots.pem").write_bytes(bundle(new_root("region").certificate))
    with pytest.raises(ConfigError, match=r"issuing_cas\.a"):
        world.assembly.snapshot()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("issuing_cas", {"issuing_cas": ["a", "b"]}),
        ("cert_signers.istio.io/x", {"cert_signers": {"istio.io/x": ["b", "a"]}}),
        ("rules[0].issuing_cas", {"rules": [{"issuing_cas": ["b", "a"]}]}),
    ],
)
def test_issuing_cas_of_two_assurances_do_not_stand_in_for_each_other(
    tmp_path: Path, path: str, more: dict[str, Any]
) -> None:
    issuance = {"issuing_cas": ["a"]} | more
    world = World(tmp_path, overrides={"issuance": issuance})
    with world:
        hsm = replace(world.snapshot.issuers["b"].description, assurance="hsm")
        mixed = world.replace_issuer("b", lambda old: replace(old, description=hsm))
        (problem,) = world.assembly._unequal(mixed.issuers)
        assert f"issuance.{path}: expected issuing CAs of one assurance" in str(problem)
        assert "found file, hsm" in str(problem)
        assert world.assembly._unequal(world.snapshot.issuers) == []


@pytest.mark.parametrize(
    ("own", "declared", "found"),
    [
        (("hsm", "service"), {}, "found hsm, service"),
        (("hsm", "service"), {"b": {"assurance": "hsm"}}, ""),
        (("service", "hsm"), {"b": {"assurance": "service"}}, ""),
        (("hsm", "file"), {"b": {"assurance": "hsm"}}, "found file, hsm"),
    ],
    ids=["not declared", "a service as an HSM", "an HSM as a service", "a file"],
)
def test_issuing_cas_that_are_declared_equals_stand_in_for_each_other(
    tmp_path: Path, own: tuple[str, str], declared: dict[str, Any], found: str
) -> None:
    issuance = {"issuing_cas": ["a", "b"]}
    world = World(tmp_path, overrides={"issuance": issuance, "issuing_cas": declared})
    with world:
        issuers = {
            name: replace(one, description=replace(one.description, assurance=kind))
            for (name, one), kind in zip(
                sorted(world.snapshot.issuers.items()), own, strict=True
            )
        }
        problems = world.assembly._unequal(issuers)
        assert [found in str(one) for one in problems] == [True] * bool(found)


def test_the_file_backend_warns_that_it_is_for_development(tmp_path: Path) -> None:
    with World(tmp_path, fake=False) as world:
        assert len([text for text in world.warnings if "for development" in text]) == 2


def rules_to_a(lifetime: str, longest: str = "24h") -> dict[str, Any]:
    rule = {"namespaces": ["shop"], "issuing_cas": ["a"], "max_ttl": lifetime}
    return {"issuance": {"issuing_cas": ["b"], "max_ttl": longest, "rules": [rule]}}


BUDGETS: dict[str, tuple[timedelta, timedelta, dict[str, Any], str]] = {
    # How long `a` lives, and the CA above it; what is configured; what is said.
    "six days and half an hour": (
        *(6 * DAY + 30 * MINUTE, 365 * DAY, {}),
        r"issuing_cas\.a\b.* \(CN=a\) lives 144h30m, .*: expected more than 144h30m",
    ),
    "a minute more": (6 * DAY + 31 * MINUTE, 365 * DAY, {}, ""),
    "the CA above ends": (
        *(365 * DAY, 6 * DAY, {}),
        r"lives 144h, to the end of the intermediate",
    ),
    "certificates of 90 days": (
        *(365 * DAY, 365 * DAY, {"issuance": {"max_ttl": "2160h"}}),
        r"up to 2160h: expected more than 12960h30m",
    ),
    "certificates of 90 days, of a CA of two years": (
        *(730 * DAY, 730 * DAY),
        *({"issuance": {"max_ttl": "2160h"}}, ""),
    ),
    "longer ones by a rule": (
        *(30 * DAY, 30 * DAY, rules_to_a("240h", "240h")),
        r"issuing_cas\.a.* of up to 240h",
    ),
    "shorter ones by a rule": (5 * DAY, 30 * DAY, rules_to_a("12h"), ""),
    "no caller": (DAY, 30 * DAY, {"issuance": {"issuing_cas": ["b"]}}, ""),
}


@pytest.mark.parametrize(
    ("lives", "above", "overrides", "says"), BUDGETS.values(), ids=BUDGETS
)
def test_an_issuing_ca_that_lives_too_short_for_its_leaves_is_refused(
    tmp_path: Path,
    lives: timedelta,
    above: timedelta,
    overrides: dict[str, Any],
    says: str,
) -> None:
    began = NOW - HOUR
    region = new_root(not_before=began).issue_ca(
        "region", path_length=1, not_after=began + above
    )
    lasting = new_root("lasting").issue_ca("b", path_length=0)
    made = {
        "a": region.issue_ca("a", path_length=0, not_after=began + lives),
        "b": lasting,
    }
    world = World(tmp_path, authorities=made, overrides=overrides)
    if not says:
        world.assembly.snapshot().close()
        return
    with pytest.raises(ConfigError, match=says) as refusal:
        world.assembly.snapshot()
    assert "issuing_cas.b" not in str(refusal.value)


@pytest.mark.parametrize("left", [25 * HOUR, HOUR, -HOUR], ids=str)
def test_what_once_served_is_not_refused_while_it_comes_to_its_end(
    tmp_path: Path, left: timedelta
) -> None:
    ends = NOW + 30 * DAY
    root = new_root(not_before=NOW - HOUR)
    made = {
        "a": root.issue_ca("a", path_length=0, not_after=ends),
        "b": root.issue_ca("b", path_length=0),
    }
    world = World(tmp_path, authorities=made)
    world.assembly.snapshot().close()
    world.clock.now = ends - left
    world.assembly.snapshot().close()


def ending(*names: str) -> dict[str, Authority]:
    root = new_root(not_before=NOW - 30 * DAY, not_after=NOW + 3 * DAY)
    upper = root.issue_ca("upper", path_length=1)
    return {
        name: upper.issue_ca(
            name, path_length=0, not_after=NOW + DAY if name in names else None
        )
        for name in ("a", "b")
    }


LINKERD_OF_A = {
    "fronts": {"linkerd": {"listen": "127.0.0.1:0", "trust_domain": "corp.example"}},
    "issuance": {
        "issuing_cas": ["b", "a"],
        "rules": [{"fronts": ["linkerd"], "issuing_cas": ["a"]}],
    },
}


@pytest.mark.parametrize(
    ("ended", "issuance", "refused"),
    [
        (["a"], {}, []),
        (["b"], {}, []),
        (["a"], {"issuance": {"issuing_cas": ["b"]}}, []),
        (["a"], {"issuance": {"issuing_cas": ["a"]}}, ["a"]),
        (["a", "b"], {}, ["a", "b"]),
        (["a"], LINKERD_OF_A, ["a"]),
        (["b"], LINKERD_OF_A, []),
    ],
    ids=[
        *("another one lasts", "the second has ended", "the other one is not used"),
        *("only the other one is not used", "both", "the only one of a front"),
        "the front of it has another one",
    ],
)
def test_a_chain_that_has_ended_refuses_no_front_that_has_another_one(
    tmp_path: Path, ended: list[str], issuance: dict[str, Any], refused: list[str]
) -> None:
    world = World(tmp_path, fake=False, authorities=ending(*ended), overrides=issuance)
    world.clock.forward(days=2)
    if not refused:
        with world:
            issuers = world.snapshot.issuers.values()
            assert [one.name for one in issuers if one.ended] == ended
        return
    with pytest.raises(ConfigError, match="expired on") as caught:
        world.assembly.snapshot()
    assert re.findall(r"issuing_cas\.(\w)\.", str(caught.value)) == refused


@pytest.mark.parametrize(
    ("days", "says"), [(-40, "is not valid before"), (2, "issued by itself")]
)
def test_only_the_end_of_a_chain_is_forgiven(
    tmp_path: Path, days: int, says: str
) -> None:
    world = World(tmp_path, fake=False, authorities=ending("a"))
    if days > 0:
        alone = new_root("alone", not_after=NOW + DAY)
        world.write_authority("a", replace(alone, above=(alone,)))
    world.clock.forward(days=days)
    with pytest.raises(ConfigError, match=says):
        world.assembly.snapshot()


def test_a_changed_chain_that_has_ended_is_refused(tmp_path: Path) -> None:
    with World(tmp_path, fake=False, authorities=ending("a")) as world:
        world.clock.forward(days=2)
        with pytest.raises(ConfigError, match="expired on"):
            world.assembly.issuer("a", world.snapshot.bundle)


def test_every_problem_is_told_at_once_with_the_file_and_the_key_first(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, fake=False)
    for name in ("a.key", "b.pem", "jwks.json", "roots.pem"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="No such file") as refusal:
        world.assembly.snapshot()
    why = "cannot be read: No such file or directory"
    file = world.config.path
    assert str(refusal.value).splitlines() == [
        f"{file}: trust_anchors: {tmp_path}/roots.pem: {why}",
        f"{file}: issuing_cas.a.options.key: {tmp_path}/a.key: {why}",
        f"{file}: issuing_cas.b.chain: {tmp_path}/b.pem: {why}",
        f"{file}: clusters[0].tokens.file: {tmp_path}/jwks.json: {why}",
    ]


def test_a_chain_that_ends_early_asks_for_an_intermediate(tmp_path: Path) -> None:
    world = World(tmp_path, fake=False)
    (tmp_path / "roots.pem").write_bytes(bundle(new_root("another").certificate))
    where = rf"issuing_cas\.a\.chain: {tmp_path}/a\.pem: certificate"
    with pytest.raises(ConfigError, match=where) as refusal:
        world.assembly.snapshot()
    assert "add the certificate of this issuer (CN=" in str(refusal.value)


def test_a_chain_in_any_order_is_served_in_order_and_the_rest_is_told(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, fake=False)
    ca, stranger = world.authorities["a"], new_root("stranger").certificate
    (tmp_path / "a.pem").write_bytes(bundle(stranger, ca.root, *reversed(ca.chain)))
    with world:
        issuer = world.snapshot.issuers["a"]
        answer = world.issue()
    assert issuer.chain.tiers()[-1] == ("trust anchor", ca.root)
    assert answer.chain == issuer.served
    served = [x509.load_der_x509_certificate(one) for one in answer.chain]
    assert served == [*ca.chain]
    assert "".join(answer.chain_pem).encode() == bundle(*ca.chain)
    (told,) = [text for text in world.warnings if "not served" in text]
    assert told.startswith(f"issuing_cas.a.chain: {tmp_path}/a.pem: not on the path to")
    assert f": CN=stranger (serial {stranger.serial_number:x});" in told
    assert f"; CN=root (serial {ca.root.serial_number:x}, a trust anchor);" in told


def test_the_other_half_of_the_issuing_ca_is_served(tmp_path: Path) -> None:
    world = World(tmp_path, fake=False)
    ca = world.authorities["a"]
    half = new_root("untrusted").issue_ca("issuing a", key=ca.key)
    (tmp_path / "a.pem").write_bytes(bundle(half.certificate, *ca.chain))
    with world:
        answer = world.issue()
    served = [x509.load_der_x509_certificate(one) for one in answer.chain]
    assert served == [*ca.chain]
    leaf_of(answer.leaf_pem).verify_directly_issued_by(ca.certificate)


def test_a_plugin_that_cannot_be_loaded_is_reported_with_its_key(
    tmp_path: Path,
) -> None:
    issuing_cas = {"a": {"plugin": "theirs"}, "b": {"plugin": "ours"}}
    world = World(tmp_path, fake=False, overrides={"issuing_cas": issuing_cas})
    with pytest.raises(ConfigError, match=r"issuing_cas\.a\.plugin: ") as refusal:
        world.assembly.snapshot()
    installed = "file, pkcs11, vault-pki, vault-transit (see meshca plugins)"
    assert str(refusal.value).splitlines() == [
        f"{world.config.path}: issuing_cas.{ca}.plugin: no backend {name!r} is "
        f"installed here; installed: {installed}"
        for ca, name in (("a", "theirs"), ("b", "ours"))
    ]


# What the proxies of a mesh cannot verify is refused, where calls are led to it.

LINKERD = {"fronts": {"linkerd": {"listen": "127.0.0.1:0"}}}
WITH_URI = {
    "fronts": {
        "istio": None,
        "linkerd": {"listen": "127.0.0.1:0", "spiffe_uri": True},
    }
}
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuing b")])
DIRECTORY = x509.NameConstraints([x509.DirectoryName(SUBJECT)], None)
URI = x509.NameConstraints([x509.UniformResourceIdentifier("corp.example")], None)


def led(**issuing_cas: str) -> dict[str, Any]:
    """Return rules that lead each front to one issuing CA."""
    rules = [
        {"fronts": [front], "issuing_cas": [name]}
        for front, name in issuing_cas.items()
    ]
    return {**LINKERD, "issuance": {"rules": rules}}


def one_of_two(constraints: x509.NameConstraints) -> dict[str, Authority]:
    """Return issuing CAs of which the second, `b`, has these constraints."""
    region = new_root().issue_ca("region")
    return {
        "a": region.issue_ca("issuing a"),
        "b": region.issue_ca("issuing b", constraints=constraints),
    }


@pytest.mark.parametrize(
    ("overrides", "constraints", "says"),
    [
        (LINKERD, DIRECTORY, "a directory name constraint, under which linkerd2-proxy"),
        (WITH_URI, URI, "a URI constraint, under which linkerd2-proxy rejects every"),
        (led(linkerd="b", istio="a"), DIRECTORY, "a directory name constraint"),
    ],
)
def test_a_chain_that_linkerds_proxies_cannot_verify_is_refused(
    tmp_path: Path,
    overrides: dict[str, Any],
    constraints: x509.NameConstraints,
    says: str,
) -> None:
    authorities = one_of_two(constraints)
    world = World(tmp_path, authorities=authorities, overrides=overrides, fake=False)
    with pytest.raises(ConfigError, match=f"certificate 1 .* has {says}") as refusal:
        world.assembly.snapshot()
    (line,) = str(refusal.value).splitlines()
    assert f"issuing_cas.b.chain: {tmp_path / 'b.pem'}: " in line


@pytest.mark.parametrize(
    ("overrides", "constraints"),
    [
        ({}, DIRECTORY),  # no front for Linkerd
        (LINKERD, URI),  # no URI name in its leaves
        (led(linkerd="a", istio="b"), DIRECTORY),  # its calls are led elsewhere
    ],
)
def test_what_linkerds_proxies_do_not_meet_is_not_refused(
    tmp_path: Path, overrides: dict[str, Any], constraints: x509.NameConstraints
) -> None:
    authorities = one_of_two(constraints)
    world = World(tmp_path, authorities=authorities, overrides=overrides, fake=False)
    world.assembly.snapshot().close()


AMBIENT: dict[str, Any] = {"fronts": {"istio": {"data_planes": ["ambient"]}}}
BOTH: dict[str, Any] = {"fronts": {"istio": {"data_planes": ["sidecar", "ambient"]}}}


def odd(oddity: str) -> dict[str, Authority]:
    """Return one issuing CA whose certificate is odd."""
    change = change_of(oddity, "issuing")
    chain = build(change, NOW)
    issuing, intermediate, anchor = (
        x509.load_der_x509_certificate(one) for one in chain.cas
    )
    key = private_key(change["issuing"].key, "issuing")
    assert isinstance(key, CAPrivateKey)
    above = (Authority(intermediate, key), Authority(anchor, key))
    return {"a": Authority(issuing, key, above)}


@pytest.mark.parametrize(
    ("overrides", "oddity", "says"),
    [
        (AMBIENT, "critical-policies", "has critical certificatePolicies"),
        (BOTH, "critical-policies", "has critical certificatePolicies"),
        (LINKERD, "critical-policies", "has critical certificatePolicies"),
        (LINKERD, "pss-sha256-signature", "which linkerd2-proxy does not accept"),
        ({}, "latin-1-in-utf8-policy-notice", "a text .* that Envoy cannot read"),
        ({}, "rsa-pss-key", "restricted to RSA-PSS, which no data plane reads"),
        ({}, "explicit-parameters-key", "a way that no data plane reads"),
    ],
)
def test_a_chain_that_a_served_data_plane_rejects_is_refused(
    tmp_path: Path, overrides: dict[str, Any], oddity: str, says: str
) -> None:
    world = World(tmp_path, authorities=odd(oddity), overrides=overrides, fake=False)
    with pytest.raises(ConfigError, match=f"a.pem: certificate 1 .*{says}"):
        world.assembly.snapshot()


@pytest.mark.parametrize(
    ("overrides", "oddity", "says"),
    [
        ({}, "critical-policies", "has critical certificatePolicies, which ztunnel"),
        ({}, "pss-sha256-signature", "which linkerd2-proxy does not accept"),
        (AMBIENT, "pss-sha256-signature", "which linkerd2-proxy does not accept"),
        (BOTH, "compressed-point-key", "programs in Go"),
        (AMBIENT, "latin-1-in-utf8-policy-notice", "that Envoy cannot read"),
        (BOTH, "latin-1-in-ia5-subject", "of a type that does not hold its"),
        ({}, "universal-subject", "programs in Go"),
    ],
)
def test_what_other_data_planes_reject_is_a_warning(
    tmp_path: Path, overrides: dict[str, Any], oddity: str, says: str
) -> None:
    world = World(tmp_path, authorities=odd(oddity), overrides=overrides, fake=False)
    world.assembly.snapshot().close()
    (line,) = [one for one in world.warnings if "certificate 1" in one]
    assert f"issuing_cas.a.chain: {tmp_path / 'a.pem'}: " in line
    assert says in line


@pytest.mark.parametrize(
    "oddity", ["latin-1-in-teletex-subject", "latin-1-in-policy-notice"]
)
def test_an_issuing_ca_in_latin_1_issues(tmp_path: Path, oddity: str) -> None:
    with World(tmp_path, authorities=odd(oddity), fake=False) as world:
        leaf = leaf_of(world.issue().leaf_pem)
        chain = world.snapshot.issuers["a"].chain
        assert verify_leaf_signature(leaf, chain.issuing)
        subject = readable(chain.issuing).subject
        assert replicate(chain).certificates[0].subject == subject
        first, *_ = world.snapshot.expiries(world.snapshot.issuers["a"])
        assert first.subject == subject.rfc4514_string()


def test_a_uri_constraint_is_refused_for_ztunnel(tmp_path: Path) -> None:
    world = World(tmp_path, authorities=one_of_two(URI), overrides=AMBIENT, fake=False)
    with pytest.raises(ConfigError, match="has a URI constraint, under which ztunnel"):
        world.assembly.snapshot()


@pytest.mark.parametrize(
    ("builds", "first"), [(False, "meshca_probe.shop"), (True, "shop")]
)
def test_a_probe_is_for_names_of_those_who_are_led_to_an_issuing_ca(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    builds: bool,  # noqa: FBT001 - a parameter
    first: str,
) -> None:
    monkeypatch.setattr(Issuer, "chooses_serial", builds)
    rules = [
        {"fronts": ["linkerd"], "namespaces": ["shop"], "issuing_cas": ["b"]},
        {"fronts": ["linkerd"], "issuing_cas": ["c"]},
    ]
    root = new_root()
    world = World(
        tmp_path,
        authorities={name: root.issue_ca(f"issuing {name}") for name in "abcd"},
        overrides={**LINKERD, "issuance": {"issuing_cas": ["a"], "rules": rules}},
        fake=False,
    )
    snapshot = world.assembly.snapshot()
    snapshot.close()
    told = {
        issuer: [str(name.value) for name in names]
        for issuer, names in snapshot.probe_names.items()
    }
    suffix = "serviceaccount.identity.linkerd.corp.example"
    uri = "spiffe://corp.example/meshca/probe"
    assert told == {
        "a": [uri],
        # Its chain may permit the names of this namespace alone.
        "b": [f"{first}.{suffix}"],
        "c": [f"meshca-probe.{suffix}"],
        "d": [uri, f"meshca-probe.{suffix}"],  # nobody
    }


CEILING = {"rate": 1, "burst": 1}


@pytest.mark.parametrize(
    ("limits", "made"),
    [
        ({}, []),
        ({"per_identity": CEILING}, ["ceilings"]),
        ({"per_cluster": CEILING}, ["ceilings"]),
    ],
)
def test_a_worker_shares_a_file_only_where_there_is_a_ceiling(
    tmp_path: Path, limits: dict[str, Any], made: list[str]
) -> None:
    with World(tmp_path, overrides={"limits": limits}) as world:
        replace(world.assembly, shared=tmp_path / "ceilings").snapshot().close()
    assert [path.name for path in tmp_path.glob("ceil*")] == made


def contexts(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> list[PluginContext]:
    """Build every issuing CA, and return what the factories were handed."""
    seen: list[PluginContext] = []

    def factory(_: object, context: PluginContext) -> IssuingCA:
        seen.append(context)
        raise BackendUnavailableError("not today")

    monkeypatch.setattr(builder, "load", lambda _: factory)
    with pytest.raises(ConfigError, match="not today"):
        assembly.snapshot()
    return seen


def test_a_plugin_gets_the_hosts_latch_and_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, overrides={"workers": 3})
    state = tmp_path / "journal/state"
    counted = Metrics()
    assembly = replace(world.assembly, state=state, plugin_metrics=counted.plugin)
    first, second = contexts(assembly, monkeypatch)
    assert [first.latch.path, first.latch.issuing_ca] == [state / "latch.json", "a"]
    assert [first.state, second.state] == [state / "a", state / "b"]
    assert {each.stat().st_mode & 0o777 for each in (state, state / "a")} == {0o700}
    assert first.workers == 3
    second.metrics.count("logins")
    name, labels = "meshca_plugin_events_total", {"issuing_ca": "b", "name": "logins"}
    assert counted.registry.get_sample_value(name, labels) == 1
    contexts(assembly, monkeypatch)  # a start after the first finds its folders


def test_a_plugin_that_keeps_nothing_gets_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    assert [each.state for each in contexts(world.assembly, monkeypatch)] == [None] * 2
    assert not (tmp_path / "journal").exists()


def test_a_folder_that_cannot_be_made_is_told_with_its_key(tmp_path: Path) -> None:
    world = World(tmp_path, fake=False)
    (tmp_path / "journal/state").mkdir(parents=True)
    (tmp_path / "journal/state/a").write_text("a file")
    assembly = replace(world.assembly, state=tmp_path / "journal/state")
    with pytest.raises(ConfigError, match=r"issuing_cas\.a: .*/state/a: expected a"):
        assembly.snapshot()


def test_a_leaf_is_held_to_what_the_backend_says_and_to_the_whole_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intermediate = new_root().issue_ca("region", not_after=NOW + timedelta(days=9))
    issuing = intermediate.issue_ca("a", not_after=NOW + timedelta(days=90))
    place = x509.UniformResourceIdentifier("http://pki.example/ca")
    description = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS, place
    )
    added = x509.AuthorityInformationAccess([description])
    ca = LyingCA(issuing, builds_tbs=True)
    said = replace(
        ca.describe(),
        added_extensions=(x509.Extension(added.oid, critical=False, value=added),),
    )
    monkeypatch.setattr(ca, "describe", lambda: said)
    monkeypatch.setattr(builder, "load", lambda _: lambda *_: ca)
    world = World(tmp_path, fake=False)
    issuer = world.assembly.issuer("a", TrustBundle([issuing.root]))
    assert issuer.pinned.extensions[added.oid] == (False, added)
    assert issuer.pinned.ends == intermediate.certificate.not_valid_after_utc


def revoked_at_the_start(
    folder: Path, content: bytes, made: dict[str, Authority]
) -> World:
    (folder / "x.crl").write_bytes(content)
    overrides = {"crls": ["x.crl"]}
    return World(folder, fake=False, authorities=made, overrides=overrides)


def test_a_front_whose_chains_are_all_revoked_is_refused_at_the_start(
    tmp_path: Path,
) -> None:
    made = two_authorities()
    _, region, root = (made["a"], *made["a"].above)
    world = revoked_at_the_start(tmp_path, revoking(root, region), made)
    with pytest.raises(ConfigError, match=r"issuing_cas\.a: the certificate .*revoked"):
        world.assembly.snapshot()


def test_a_revoked_issuing_ca_is_left_out_where_there_is_another(
    tmp_path: Path,
) -> None:
    made = two_authorities()
    content = revoking(made["a"].above[0], made["a"])
    with revoked_at_the_start(tmp_path, content, made) as world:
        issuers = world.snapshot.issuers
        assert issuers["a"].revoked
        assert not issuers["b"].revoked


@pytest.mark.parametrize("is_forged", [True, False], ids=["forged", "unreadable"])
def test_a_list_that_cannot_be_used_is_refused_at_the_start(
    tmp_path: Path, *, is_forged: bool
) -> None:
    made = two_authorities()
    forged = revoking(made["a"].above[0], key=made["a"].key)
    world = revoked_at_the_start(tmp_path, forged if is_forged else b"", made)
    with pytest.raises(ConfigError, match=r"crls: .*x\.crl.*: expected .*list"):
        world.assembly.snapshot()
