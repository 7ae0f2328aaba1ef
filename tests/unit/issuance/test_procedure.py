import hashlib
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import (
    AuthenticationError,
    BackendBrokenError,
    BackendUnavailableError,
    BarredError,
    BridgeError,
    CSRError,
    DeniedError,
    OverloadedError,
    RequestError,
    TTLError,
)
from bridge.identity.caller import Caller, TokenCredential
from bridge.ledger.events import Ending, Intent
from bridge.policy.bars import BarKind
from bridge.resilience.budget import Budget
from bridge.snapshot.revocation import RevocationLists
from bridge.spi import Prepared
from bridge.spiffe import SpiffeID, TrustDomain
from bridge.x509.crl.revocation_list import parse_lists
from bridge.x509.pem import parse_certificates
from tests.support.harness.core import (
    CALLER,
    TOKENS,
    World,
    csr,
    kinds,
    leaf_of,
    two_authorities,
)
from tests.support.harness.fake_ca import Answer
from tests.support.parts.pki import NOW, new_key, revoking

URI = x509.UniformResourceIdentifier(CALLER)
CLUSTER = {
    "name": "Kubernetes",
    "tokens": {"verify": "jwks", "file": "jwks.json", "issuer": TOKENS.issuer},
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


# What a good call leaves behind.


@pytest.mark.parametrize("fake", [True, False], ids=["fake", "file"])
def test_a_call_is_answered_and_on_record(tmp_path: Path, *, fake: bool) -> None:
    key = new_key()
    with World(tmp_path, fake=fake) as world:
        issued = world.issue(pem=csr(key=key))
        intent, outcome = world.ended()
    leaf = leaf_of(issued.leaf_pem)
    der = leaf.public_bytes(Encoding.DER)
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=1)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [*names.value] == [URI]
    assert intent["kind"] == "intent"
    assert (
        intent["tbs_sha256"] == hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()
    )
    assert intent["serial"] == outcome["serial"] == f"{leaf.serial_number:x}"
    assert intent["names"] == [f"URI:{CALLER}"]
    assert intent["not_after"] == int(leaf.not_valid_after_utc.timestamp())
    assert (intent["pod_namespace"], intent["pod_name"]) == ("shop", "web-0")
    assert intent["pod_uid"]
    assert intent["verified_by"] == "jwks"
    assert intent["proven_at"] == int(NOW.timestamp())
    assert intent["requester"] == outcome["requester"] == ""
    assert outcome["kind"] == "issued"
    assert outcome["attempt"] == intent["attempt"]
    assert outcome["certificate_sha256"] == hashlib.sha256(der).hexdigest()
    for row in (intent, outcome):
        assert row["caller"] == CALLER
        assert row["cluster"] == "Kubernetes"
        assert row["issuing_ca"] == "a"
        assert row["purpose"] == "workload"
        assert row["front"] == "istio"


def test_the_answer_has_the_chain_and_the_anchors(world: World) -> None:
    issued = world.issue()
    authority = world.authorities["a"]
    assert [leaf_of(pem) for pem in issued.chain_pem] == [*authority.chain]
    assert parse_certificates(issued.anchors_pem.encode(), "x") == (authority.root,)
    for text in (issued.leaf_pem, *issued.chain_pem, issued.anchors_pem):
        assert text.endswith("-----END CERTIFICATE-----\n")


def test_the_intent_is_on_disk_before_the_key_is_used(world: World) -> None:
    seen: list[dict[str, Any]] = []
    world.cas["a"].hook = lambda _: seen.extend(world.rows())
    world.issue()
    (row,) = seen
    assert row["kind"] == "intent"
    (prepared,) = world.cas["a"].called
    assert row["tbs_sha256"] == hashlib.sha256(prepared.tbs).hexdigest()


def test_where_the_backend_builds_the_outcome_is_on_disk_before_the_reply(
    world: World,
) -> None:
    def late(answer: Answer) -> None:
        answer.not_before += timedelta(seconds=20)
        answer.not_after += timedelta(seconds=3)

    world.cas["a"].builds_tbs, world.cas["a"].lie = True, late
    leaf = leaf_of(world.issue().leaf_pem)
    intent, outcome = world.rows()
    assert intent["serial"] == intent["tbs_sha256"] == ""
    assert outcome["serial"] == f"{leaf.serial_number:x}"
    assert outcome["kind"] == "issued"
    # The backend may not have kept it, and it is revoked by showing it.
    assert b64decode(outcome["certificate"]) == leaf.public_bytes(Encoding.DER)
    assert outcome["not_before"] == intent["not_before"] + 20
    assert outcome["not_after"] == intent["not_after"] + 3


@pytest.mark.parametrize(("builds", "seconds"), [(False, 0), (True, 5)])
def test_a_leaf_that_a_backend_dates_is_requested_to_end_before_its_chain(
    tmp_path: Path, seconds: int, *, builds: bool
) -> None:
    # It may end the leaf up to 5 s later than requested.
    ends = NOW + timedelta(hours=6)
    with World(tmp_path, authorities=two_authorities(not_after=ends)) as world:
        old = world.snapshot.issuers["a"].description
        description = replace(old, chooses_serial=builds)
        world.snapshot = world.replace_issuer(
            "a", lambda issuer: replace(issuer, description=description)
        )
        world.cas["a"].builds_tbs = builds
        world.issue(ttl_seconds=86400)
        (prepared,) = world.cas["a"].called
    assert prepared.request.not_after == ends - timedelta(seconds=seconds)


def test_where_the_bridge_builds_the_outcome_is_small(world: World) -> None:
    world.issue()
    _, outcome = world.ended()
    assert outcome.keys().isdisjoint({"certificate", "not_before", "not_after"})


# Refusals: nobody signs, and one row says why.

REFUSALS: list[tuple[str, dict[str, Any], type[BridgeError], str, str]] = [
    ("no token", {"token": ""}, AuthenticationError, "token.", "UNAUTHENTICATED"),
    (
        "another audience",
        {"audiences": frozenset({"other"})},
        AuthenticationError,
        "token.audience",
        "UNAUTHENTICATED",
    ),
    (
        "an unknown cluster",
        {"cluster": "moon"},
        AuthenticationError,
        "cluster.unknown",
        "UNAUTHENTICATED",
    ),
    (
        "no header",
        {"credential": TokenCredential((), ())},
        AuthenticationError,
        "",
        "UNAUTHENTICATED",
    ),
    (
        "impersonation",
        {"impersonated": "spiffe://corp.example/ns/shop/sa/other"},
        DeniedError,
        "impersonation",
        "PERMISSION_DENIED",
    ),
    (
        "impersonation of nobody",
        {"impersonated": ""},
        DeniedError,
        "impersonation",
        "PERMISSION_DENIED",
    ),
    (
        "too long a life",
        {"ttl_seconds": 86_401},
        TTLError,
        "ttl.maximum",
        "INVALID_ARGUMENT",
    ),
    (
        "too short a life",
        {"ttl_seconds": 299},
        TTLError,
        "ttl.minimum",
        "INVALID_ARGUMENT",
    ),
    (
        "an unknown signer",
        {"cert_signer": "x"},
        RequestError,
        "signer.unknown",
        "INVALID_ARGUMENT",
    ),
    ("no CSR", {"pem": ""}, CSRError, "csr.pem", "INVALID_ARGUMENT"),
    (
        "a weak key",
        {"pem": csr(key=new_key("p521"))},
        CSRError,
        "csr.curve",
        "INVALID_ARGUMENT",
    ),
]


@pytest.mark.parametrize(
    ("changed", "error", "rule", "status"),
    [pytest.param(*row[1:], id=row[0]) for row in REFUSALS],
)
def test_a_refusal_is_one_row_and_no_signature(
    world: World,
    changed: dict[str, Any],
    error: type[BridgeError],
    rule: str,
    status: str,
) -> None:
    call = world.call(**changed)
    with pytest.raises(error, match=r"\w") as refusal:  # its rule is what counts
        world.issuance.issue(call)
    (row,) = world.ended()
    assert type(refusal.value) is error
    assert refusal.value.rule.startswith(rule)
    assert row["kind"] == "refused"
    assert row["rule"] == refusal.value.rule
    assert row["status"] == status
    assert row["attempt"] == ""
    assert row["caller"] == ("" if error is AuthenticationError else CALLER)
    assert not world.cas["a"].called


def test_an_unauthenticated_call_goes_through_the_meter(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    metered: list[Ending] = []
    monkeypatch.setattr(world.ledger, "refuse_unauthenticated", metered.append)
    with pytest.raises(AuthenticationError, match="token"):
        world.issue(audiences=frozenset({"other"}))
    assert len(metered) == 1
    assert world.ended() == []


def test_a_refusal_is_a_line_of_the_log_when_it_is_a_row(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused: list[bool] = [True, False]
    monkeypatch.setattr(
        world.ledger, "refuse_unauthenticated", lambda _: refused.pop(0)
    )
    with caplog.at_level("INFO", "bridge.issuance.procedure"):
        for _ in range(2):
            with pytest.raises(AuthenticationError, match="token"):
                world.issue(audiences=frozenset({"other"}))
        world.issuance.refuse(OverloadedError("no"), front="istio")
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.message.startswith(
        "refused token.audience: the token is for another audience: aud ['istio-ca'], "
        "expected one of other (front istio, caller unknown, status "
        "UNAUTHENTICATED, request "
    )


def test_the_line_of_a_caller_that_is_known_names_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("INFO", "bridge.issuance.procedure"),
        pytest.raises(TTLError, match="lifetime"),
    ):
        world.issue(ttl_seconds=10**8)
    assert f"{CALLER}, status INVALID_ARGUMENT" in caplog.text


def test_a_call_that_a_front_could_not_read_is_a_row(world: World) -> None:
    world.issuance.refuse(RequestError("bad", rule="istio.message"), front="istio")
    (row,) = world.ended()
    assert (row["kind"], row["rule"]) == ("refused", "istio.message")


def test_another_namespace_than_the_clusters_is_denied(tmp_path: Path) -> None:
    clusters = [CLUSTER | {"name": "c", "namespaces": ["pay"]}]
    with World(tmp_path, overrides={"clusters": clusters}) as world:
        with pytest.raises(DeniedError, match="names of this namespace"):
            world.issue()
        rows = world.ended()
    assert rows[-1]["rule"] == "cluster.namespace"


def test_the_trust_domain_is_held_although_no_chain_constrains_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TrustDomain("other.example")
    monkeypatch.setattr(world.snapshot.clusters, "trust_domain_of", lambda _: other)
    with pytest.raises(DeniedError, match="names of this trust domain"):
        world.issue()
    (row,) = world.ended()
    assert row["rule"] == "cluster.trust-domain"
    assert not world.cas["a"].called


def test_a_name_outside_the_constraints_of_the_chain_is_denied(tmp_path: Path) -> None:
    elsewhere = x509.UniformResourceIdentifier("other.example")
    constraints = x509.NameConstraints([elsewhere], None)
    with World(tmp_path, authorities=two_authorities(constraints)) as world:
        with pytest.raises(DeniedError, match="outside what the certificate") as found:
            world.issue()
        (row,) = world.ended()
    assert found.value.rule == row["rule"] == "constraint.permitted"
    assert row["kind"] == "refused"


@pytest.mark.parametrize(
    ("names", "is_good"),
    [
        ((), False),
        ((URI,), True),
        ((x509.UniformResourceIdentifier(CALLER + "x"),), False),
        ((URI, x509.DNSName("a.example")), False),
        ((x509.DNSName(CALLER),), False),
    ],
)
@pytest.mark.parametrize("mode", ["strict", "ignore"])
def test_names_in_a_csr(
    tmp_path: Path, names: tuple[x509.GeneralName, ...], mode: str, *, is_good: bool
) -> None:
    overrides = {"issuance": {"csr_names": mode}}
    with World(tmp_path, overrides=overrides) as world:
        if is_good or mode == "ignore":
            leaf = leaf_of(world.issue(pem=csr(*names)).leaf_pem)
            san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            assert [*san.value] == [URI]
            return
        with pytest.raises(CSRError, match="the CSR asks for"):
            world.issue(pem=csr(*names))


def test_a_signer_of_istio_leads_to_its_issuing_cas(tmp_path: Path) -> None:
    overrides = {"issuance": {"cert_signers": {"istio.io/b": ["b"]}}}
    with World(tmp_path, overrides=overrides) as world:
        world.issue(cert_signer="istio.io/b")
        assert len(world.cas["b"].called) == 1
        world.issue()
        assert len(world.cas["a"].called) == 1


def test_a_lifetime_is_clamped_where_the_policy_says_so(tmp_path: Path) -> None:
    overrides = {"issuance": {"on_excess_ttl": "clamp", "max_ttl": "24h"}}
    with World(tmp_path, overrides=overrides) as world:
        leaf = leaf_of(world.issue(ttl_seconds=2**62).leaf_pem)
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=24)


# A chain that ends.


def test_a_leaf_does_not_outlive_its_chain(tmp_path: Path) -> None:
    ends = NOW + timedelta(minutes=30)
    with World(tmp_path, authorities=two_authorities(not_after=ends)) as world:
        leaf = leaf_of(world.issue().leaf_pem)
    assert leaf.not_valid_after_utc == ends


@pytest.mark.parametrize(
    ("left", "level"), [(timedelta(minutes=30), "WARNING"), (timedelta(days=9), "")]
)
def test_a_lifetime_that_the_chain_cuts_short_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: timedelta, level: str
) -> None:
    with World(tmp_path, authorities=two_authorities(not_after=NOW + left)) as world:
        caplog.set_level("INFO", "bridge.issuance.procedure")
        world.issue()
    told = {
        one.levelname: one.getMessage()
        for one in caplog.records
        if "was shortened" in one.getMessage()
    }
    assert [*told] == ([level] if level else [])
    assert all("the chain expires then" in text for text in told.values())


def test_a_chain_that_ends_too_soon_is_refused_at_once(tmp_path: Path) -> None:
    ends = NOW + timedelta(minutes=2)
    with World(tmp_path, authorities=two_authorities(not_after=ends)) as world:
        budget = Budget.of_seconds(30)
        with pytest.raises(BackendUnavailableError, match="expires too soon") as found:
            world.issue(budget=budget)
        assert budget.remaining() > 20
        (row,) = world.ended()
    assert found.value.rule == row["rule"] == "issuer.expiring"
    assert row["kind"] == "failed"


def test_another_chain_stands_in_for_one_that_ends_too_soon(tmp_path: Path) -> None:
    both = two_authorities()
    soon = both["a"].above[0].issue_ca("soon", not_after=NOW + timedelta(minutes=1))
    with World(tmp_path, authorities={"a": soon, "b": both["b"]}) as world:
        world.issue()
        assert [row["issuing_ca"] for row in world.ended()] == ["b", "b"]


# Shedding: counted, not written.


def test_a_spent_budget_sheds_the_call_before_anything(world: World) -> None:
    with pytest.raises(OverloadedError, match="time is nearly spent"):
        world.issue(budget=Budget.of_seconds(0.05))
    assert world.ended() == []
    assert not world.cas["a"].called


@pytest.mark.parametrize("checks", [1, 2])
def test_a_caller_that_has_gone_is_not_signed_for(world: World, checks: int) -> None:
    answers = iter([True] * checks)  # there at first, gone before the intent
    whole = Budget.of_seconds(30)
    gone = Budget(whole.deadline, lambda: next(answers, False))
    with pytest.raises(OverloadedError, match="caller has gone"):
        world.issue(budget=gone)
    assert world.ended() == []
    assert not world.cas["a"].called


def test_a_caller_that_goes_after_the_intent_leaves_a_failed_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = [True]
    intend = world.ledger.intend

    def intend_and_go(intent: Intent) -> None:
        intend(intent)
        is_there[0] = False

    monkeypatch.setattr(world.ledger, "intend", intend_and_go)
    budget = Budget(Budget.of_seconds(30).deadline, lambda: is_there[0])
    with pytest.raises(OverloadedError, match="caller has gone"):
        world.issue(budget=budget)
    intent, outcome = world.ended()
    assert (outcome["kind"], outcome["rule"]) == ("failed", "overload.gone")
    assert outcome["attempt"] == intent["attempt"]
    assert not world.cas["a"].called


# One snapshot a request.


def test_a_swap_in_mid_request_does_not_mix_two_chains(world: World) -> None:
    old = world.authorities["a"]
    new = two_authorities()["a"]

    def swap(_: Prepared) -> None:
        world.write_authority("a", new)
        (world.folder / "roots.pem").write_bytes(new.root.public_bytes(Encoding.PEM))
        assembly = world.assembly
        issuer = assembly.issuer("a", assembly.bundle())
        world.snapshot = replace(
            world.replace_issuer("a", lambda _: issuer),
            bundle=assembly.bundle(),
        )

    world.cas["a"].hook = swap
    issued = world.issue()
    assert leaf_of(issued.leaf_pem).issuer == old.certificate.subject
    assert [leaf_of(pem) for pem in issued.chain_pem] == [*old.chain]
    assert leaf_of(issued.anchors_pem) == old.root
    after = world.issue()
    assert [leaf_of(pem) for pem in after.chain_pem] == [*new.chain]
    assert leaf_of(after.anchors_pem) == new.root
    assert [row["generation"] for row in world.ended() if "generation" in row] == [1, 2]


def test_calls_at_the_same_time_do_not_share_anything(world: World) -> None:
    with ThreadPoolExecutor(8) as pool:
        issued = [*pool.map(lambda _: world.issue(), range(16))]
    serials = {leaf_of(one.leaf_pem).serial_number for one in issued}
    assert len(serials) == 16
    rows = world.ended()
    assert sorted(kinds(rows)) == ["intent"] * 16 + ["issued"] * 16
    assert len({row["request"] for row in rows}) == 16


def test_what_happens_is_counted(world: World) -> None:
    def value(counter: Any) -> float:
        found: float = counter._value.get()
        return found

    citadel = world.metrics.citadel
    world.issue()
    with pytest.raises(CSRError, match="not in PEM"):
        world.issue(pem="")
    with pytest.raises(AuthenticationError, match="token"):
        world.issue(audiences=frozenset({"other"}))
    assert value(citadel.csr_count) == 3
    assert value(citadel.success_cert_issuance_count) == 1
    assert value(citadel.authentication_failure_count) == 1
    assert value(citadel.csr_sign_err_count["CSR_ERROR"]) == 1


def revoke(world: World, *names: str) -> None:
    """Put a list in force that revokes issuing CAs, as a change of its file does."""
    region = world.authorities["a"].above[0]
    content = revoking(region, *(world.authorities[name] for name in names))
    world.snapshot = world.snapshot.under(RevocationLists(parse_lists(content, "x")))


def test_another_chain_stands_in_for_a_revoked_one(world: World) -> None:
    revoke(world, "a")
    world.issue()
    assert not world.cas["a"].called
    assert world.cas["b"].called


def test_nothing_is_issued_under_a_revoked_chain(world: World) -> None:
    revoke(world, "a", "b")
    with pytest.raises(BackendBrokenError, match="chain is revoked") as found:
        world.issue()
    (row,) = world.ended()
    assert found.value.rule == row["rule"] == "issuer.revoked"
    for issuer in world.snapshot.issuers.values():
        with pytest.raises(BackendBrokenError, match="chain is revoked"):
            world.own.probe(issuer, world.snapshot, timeout=1)
    with pytest.raises(BackendBrokenError, match="chain is revoked"):
        world.own.issue_serving(["meshca.example"], timedelta(hours=1))
    assert not any(ca.called for ca in world.cas.values())


# A proxy that asks for a pod of its node. Whether it may is not decided here.


OTHER = "spiffe://corp.example/ns/pay/sa/api"


def ask_for_others(world: World) -> None:
    """Let each caller act for whomever it names."""

    def acting_for(requester: Caller, wanted: str, **_: Budget) -> Caller:
        return requester.acting_for(SpiffeID.parse(wanted))

    world.snapshot.clusters.acting_for = acting_for  # type: ignore[method-assign]


def token_of_pod(name: str) -> str:
    """Return the token of another pod of the same account."""
    return TOKENS.token(now=NOW, pod=(name, f"uid-of-{name}"))


@pytest.fixture
def ztunnel(world: World) -> World:
    ask_for_others(world)
    return world


def test_who_acts_for_another_gets_its_name_and_stays_on_record(ztunnel: World) -> None:
    issued = ztunnel.issue(impersonated=OTHER)
    intent, outcome = ztunnel.ended()
    names = leaf_of(issued.leaf_pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [*names.value] == [x509.UniformResourceIdentifier(OTHER)]
    for row in (intent, outcome):
        assert (row["caller"], row["requester"]) == (OTHER, CALLER)
    # The pod is the one that asked.
    assert (intent["pod_namespace"], intent["pod_name"]) == ("shop", "web-0")


@pytest.mark.parametrize("barred", [CALLER, OTHER], ids=["who asks", "for whom"])
def test_bars_of_both_hold_where_one_acts_for_another(
    ztunnel: World, barred: str
) -> None:
    ztunnel.issue(impersonated=OTHER)
    ztunnel.bar(BarKind.IDENTITY, barred)
    with pytest.raises(BarredError, match="identity is barred"):
        ztunnel.issue(impersonated=OTHER)
    refused = ztunnel.ended()[-1]
    assert (refused["kind"], refused["rule"]) == ("refused", "bar.identity")
    assert (refused["caller"], refused["requester"]) == (OTHER, CALLER)


@pytest.mark.parametrize(
    ("overrides", "error", "rule"),
    [
        pytest.param(
            {"issuance": {"rules": [{"namespaces": ["pay"], "refuse": True}]}},
            DeniedError,
            "rule.refuse",
            id="a rule",
        ),
        pytest.param(
            {"clusters": [CLUSTER | {"namespaces": ["shop"]}]},
            DeniedError,
            "cluster.namespace",
            id="the namespaces of the cluster",
        ),
        pytest.param(
            {"limits": {"per_identity": {"rate": 0.001, "burst": 1}}},
            OverloadedError,
            "overload.identity",
            id="the rate limit of an identity, whoever asks",
        ),
    ],
)
def test_rules_go_by_the_name_that_the_certificate_is_for(
    tmp_path: Path,
    overrides: dict[str, Any],
    error: type[BridgeError],
    rule: str,
) -> None:
    with World(tmp_path, overrides=overrides) as world:
        ask_for_others(world)
        world.issue()  # the proxy for itself
        if error is OverloadedError:
            world.issue(impersonated=OTHER, token=token_of_pod("web-1"))
        with pytest.raises(error, match=r"\w") as refused:
            world.issue(impersonated=OTHER)
        row = world.ended()[-1]
    assert refused.value.rule == row["rule"] == rule
    assert (row["caller"], row["requester"]) == (OTHER, CALLER)
    assert (row["pod_name"], row["verified_by"]) == ("web-0", "jwks")


def test_a_refused_impersonation_counts_against_who_asked(tmp_path: Path) -> None:
    limits = {"per_identity": {"rate": 0.001, "burst": 1}}
    with World(tmp_path, overrides={"limits": limits}) as world:
        with pytest.raises(DeniedError, match="another workload"):
            world.issue(impersonated=OTHER)
        with pytest.raises(OverloadedError, match="identity asks too often"):
            world.issue(impersonated=OTHER, token=token_of_pod("web-1"))
        with pytest.raises(OverloadedError, match="identity asks too often"):
            world.issue()


def test_each_proxy_has_a_rate_of_its_own(tmp_path: Path) -> None:
    limits = {"per_identity": {"rate": 0.001, "burst": 2}}
    identities = [OTHER, CALLER, "spiffe://corp.example/ns/pay/sa/web"]
    with World(tmp_path, overrides={"limits": limits}) as world:
        ask_for_others(world)
        for identity in identities[:2]:
            world.issue(impersonated=identity)
        with pytest.raises(OverloadedError, match="for other workloads") as refused:
            world.issue(impersonated=identities[2])
        # Another pod of the same account has its own, and so has a call for itself.
        world.issue(impersonated=identities[2], token=token_of_pod("web-1"))
        world.issue()
        rows = world.ended()
    (row,) = [one for one in rows if one["kind"] == "refused"]
    assert refused.value.rule == row["rule"] == "overload.requester"
    assert (row["caller"], row["pod_name"]) == (CALLER, "web-0")


def test_who_is_acted_for_does_not_renew_by_certificate(tmp_path: Path) -> None:
    fronts = {
        "istio": {
            "mtls_listen": "127.0.0.1:0",
            "mtls_identities": [{"namespaces": ["pay"]}],
        }
    }
    with World(tmp_path, overrides={"fronts": fronts}, fake=False) as world:
        ask_for_others(world)
        issued = world.issue(impersonated=OTHER)
        # No token of its own has proved it: the node's proxy has the key.
        with pytest.raises(DeniedError, match="no token has proved") as refused:
            world.renew(issued)
        (intent,) = [row for row in world.ended() if row["kind"] == "intent"]
    assert refused.value.rule == "renewal.age"
    assert (intent["caller"], intent["proven_at"]) == (OTHER, 0)
