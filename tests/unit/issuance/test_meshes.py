"""The rules of both meshes: Linkerd's order of checks, Istio's second port."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import (
    AuthenticationError,
    BackendBrokenError,
    BackendUnavailableError,
    BarredError,
    BridgeError,
    CSRError,
    DeniedError,
    MisissuedError,
    MismatchError,
    OverloadedError,
    RequestError,
    ReviewError,
    SubjectError,
)
from bridge.identity.caller import TokenCredential
from bridge.issuance.call import Call, Issued
from bridge.policy.bars import BarKind
from bridge.policy.certificate_renewal import key_sha256
from bridge.policy.linkerd_names import LinkerdNames
from bridge.resilience.budget import Budget
from bridge.snapshot.revocation import RevocationLists
from bridge.snapshot.trust_bundle import TrustBundle
from bridge.spiffe import TrustDomain
from bridge.x509.crl.revocation_list import parse_lists
from bridge.x509.csr import parse_csr_der
from tests.support.clients.linkerd_raw import AUDIENCE, new_csr, vector
from tests.support.harness.core import CALLER, TOKENS, World, csr, two_authorities
from tests.support.harness.fake_ca import Answer, lie_called
from tests.support.parts.pki import NOW, bundle, new_key, new_root, revoking
from tests.support.parts.tokens import TokenIssuer
from tests.vectors.generate_linkerd import IDENTITY, OTHER

FRONTS = {"fronts": {"linkerd": {"listen": "127.0.0.1:0"}}}
DNS = x509.DNSName(IDENTITY)
LAST_HOUR = timedelta(hours=1)
KEY_OF_VECTOR = hashlib.sha256(parse_csr_der(vector()).spki).hexdigest()


def token(account: str = "web", *, namespace: str = "shop", **changed: Any) -> str:
    values: dict[str, Any] = {"now": NOW, "audiences": [AUDIENCE]}
    return TOKENS.token(namespace, account, **values | changed)


def call(
    *,
    identity: str = IDENTITY,
    shown: str | None = None,
    csr: bytes | None = None,
    budget: Budget | None = None,
) -> Call:
    found = token() if shown is None else shown
    return Call(
        front="linkerd",
        csr=vector() if csr is None else csr,
        credential=TokenCredential((f"Bearer {found}",) if found else (), ("",)),
        audiences=frozenset({AUDIENCE}),
        identity=identity,
        budget=budget or Budget.of_seconds(30),
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, overrides=FRONTS) as made:
        yield made


def names(issued: Issued) -> list[x509.GeneralName]:
    leaf = x509.load_der_x509_certificate(issued.leaf)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [*san.value]


def test_a_call_is_answered_and_on_record(world: World) -> None:
    issued = world.issuance.issue(call())
    assert names(issued) == [DNS]
    assert [x509.load_der_x509_certificate(one) for one in issued.chain] == [
        *world.authorities["a"].chain
    ]
    intent, outcome = world.ended()
    assert intent["names"] == [f"DNS:{IDENTITY}"]
    for row in (intent, outcome):
        assert (row["front"], row["caller"]) == ("linkerd", CALLER)
        assert (row["cluster"], row["purpose"]) == ("Kubernetes", "workload")


def test_the_lifetime_is_the_default(world: World) -> None:
    leaf = x509.load_der_x509_certificate(world.issuance.issue(call()).leaf)
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=24)


@pytest.mark.parametrize(("draw", "share"), [(0.0, 0.99), (1.0, 0.95)])
def test_a_proxy_is_given_an_expiry_some_percent_before_the_end(
    world: World, draw: float, share: float
) -> None:
    world.draw = draw
    issued = world.issuance.issue(call())
    assert issued.valid_until == NOW + timedelta(hours=24) * share


@pytest.mark.parametrize("tier", [0, 1, 2], ids=["anchor", "intermediate", "issuing"])
def test_no_expiry_is_after_that_of_the_chain_or_the_anchor(
    tmp_path: Path, tier: int
) -> None:
    ends = [NOW + timedelta(days=365)] * 3
    ends[tier] = NOW + LAST_HOUR
    root = new_root(not_before=NOW - timedelta(days=30), not_after=ends[0])
    intermediate = root.issue_ca("region", path_length=1, not_after=ends[1])
    issuing = intermediate.issue_ca("issuing", path_length=0, not_after=ends[2])
    with World(tmp_path, authorities={"a": issuing}, overrides=FRONTS) as world:
        world.draw = 1.0
        issued = world.issuance.issue(call())
    leaf = x509.load_der_x509_certificate(issued.leaf)
    assert leaf.not_valid_after_utc == NOW + LAST_HOUR
    assert NOW < issued.valid_until == NOW + LAST_HOUR * 0.95


def test_a_leaf_may_have_its_spiffe_id_behind_the_dns_name(tmp_path: Path) -> None:
    fronts = {"linkerd": {"listen": "127.0.0.1:0", "spiffe_uri": True}, "istio": None}
    with World(tmp_path, overrides={"fronts": fronts}) as world:
        issued = world.issuance.issue(call())
    assert names(issued) == [DNS, x509.UniformResourceIdentifier(CALLER)]


# The order of the checks: each call is wrong in its row, and in every later one.

WRONG_TOKEN = "no token"  # noqa: S105 - what the test is about
WRONG_CSR = b"no CSR"


def odd(name: str) -> Callable[[], Call]:
    """Return what makes a call with a CSR that is good but for its names."""
    return lambda: call(shown=WRONG_TOKEN, csr=vector(f"odd-{name}"))


@pytest.mark.parametrize(
    ("made", "kind", "rule"),
    [
        pytest.param(
            lambda: call(identity="", shown="", csr=b""),
            RequestError,
            "linkerd.identity",
            id="2",
        ),
        pytest.param(
            lambda: call(shown="", csr=b""), RequestError, "linkerd.token", id="3"
        ),
        pytest.param(
            lambda: call(shown=WRONG_TOKEN, csr=b""),
            RequestError,
            "linkerd.csr",
            id="4",
        ),
        pytest.param(
            lambda: call(shown=WRONG_TOKEN, csr=WRONG_CSR), CSRError, "csr.der", id="5"
        ),
        pytest.param(odd("two-dns-names"), MismatchError, "linkerd.dns-names", id="7"),
        pytest.param(odd("other-name-only"), MismatchError, "linkerd.csr-name", id="8"),
        pytest.param(
            odd("other-common-name"), MismatchError, "linkerd.common-name", id="9"
        ),
        pytest.param(odd("email"), MismatchError, "linkerd.emails", id="10"),
        pytest.param(odd("ip"), MismatchError, "linkerd.ips", id="11"),
        pytest.param(odd("uri"), MismatchError, "linkerd.uris", id="12"),
        pytest.param(
            lambda: call(identity=OTHER, csr=new_csr(OTHER), shown=WRONG_TOKEN),
            AuthenticationError,
            "token.format",
            id="13",
        ),
        pytest.param(
            lambda: call(shown=token("a.b")), SubjectError, "linkerd.label", id="14"
        ),
        pytest.param(
            lambda: call(identity=OTHER, csr=new_csr(OTHER)),
            MismatchError,
            "linkerd.identity-mismatch",
            id="16",
        ),
    ],
)
def test_the_first_error_is_reported(
    world: World, made: Callable[[], Call], kind: type[BridgeError], rule: str
) -> None:
    with pytest.raises(kind, match=r".") as refusal:
        world.issuance.issue(made())
    assert refusal.value.rule == rule
    (row,) = world.ended()
    assert (row["kind"], row["rule"], row["front"]) == ("refused", rule, "linkerd")
    assert not any(ca.called for ca in world.cas.values())


def test_row_1_comes_before_everything(world: World) -> None:
    world.is_ready = False
    with pytest.raises(BackendUnavailableError, match=r"^cert issuer not ready yet$"):
        world.issuance.issue(call(identity="", shown="", csr=b""))
    (row,) = world.ended()
    assert (row["kind"], row["status"]) == ("failed", "UNAVAILABLE")


def test_row_6_stands_between_the_csr_and_its_names(world: World) -> None:
    world.clock.now = NOW + timedelta(days=365)
    with pytest.raises(CSRError, match="DER"):
        world.issuance.issue(call(csr=WRONG_CSR))
    with pytest.raises(BackendUnavailableError, match="expires too soon"):
        world.issuance.issue(call(csr=vector("odd-two-dns-names")))


def test_row_15_keys_that_cannot_be_had_are_not_the_callers_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ReviewError("the keys cannot be had")

    monkeypatch.setattr(type(world.snapshot.clusters), "identify", gone)
    with pytest.raises(ReviewError, match=f"^error validating token for {IDENTITY}: "):
        world.issuance.issue(call())
    (row,) = world.ended()
    assert (row["kind"], row["status"]) == ("failed", "INTERNAL")


# What the built-in does not look at.


def test_a_namespace_that_the_cluster_may_not_have(tmp_path: Path) -> None:
    tokens = {"verify": "jwks", "file": "jwks.json", "issuer": TOKENS.issuer}
    cluster = {"name": "Kubernetes", "tokens": tokens, "namespaces": ["payments"]}
    with World(tmp_path, overrides=FRONTS | {"clusters": [cluster]}) as world:
        with pytest.raises(DeniedError, match="this namespace"):
            world.issuance.issue(call())
        (row,) = world.ended()
    assert (row["rule"], row["caller"]) == ("cluster.namespace", CALLER)


def test_the_cluster_is_the_one_that_the_configuration_names(world: World) -> None:
    # Whatever a front hands over as its own; the name comes from there alone.
    foreign = replace(
        call(), credential=TokenCredential((f"Bearer {token()}",), ("x",))
    )
    with pytest.raises(AuthenticationError, match="no cluster"):
        world.issuance.issue(foreign)


def test_a_token_of_a_cluster_that_is_linkerds_no_more_has_no_name(
    tmp_path: Path,
) -> None:
    # A call that came before a reload, with the cluster that the front had then.
    tokens = {"verify": "jwks", "issuer": TOKENS.issuer, "file": "jwks.json"}
    other = TokenIssuer(algorithm="ES256")
    other.write_jwks(tmp_path / "other.json")
    clusters = [
        {"name": "before", "tokens": tokens},
        {"name": "now", "tokens": tokens | {"file": "other.json"}},
    ]
    fronts = {"linkerd": {"listen": "127.0.0.1:0", "cluster": "now"}}
    with World(tmp_path, overrides={"fronts": fronts, "clusters": clusters}) as world:
        shown = TokenCredential((f"Bearer {token()}",), ("before",))
        with pytest.raises(AuthenticationError, match="another cluster") as refusal:
            world.issuance.issue(replace(call(), credential=shown))
        (row,) = world.ended()
    assert refusal.value.rule == row["rule"] == "cluster.other"


@pytest.mark.parametrize(
    ("permitted", "excluded", "rule"),
    [
        (["identity.linkerd.corp.example"], [], ""),
        (["corp.example"], [f"payments{IDENTITY.partition('.shop')[2]}"], ""),
        (["other.example"], [], "constraint.permitted"),
        ([], [IDENTITY.partition(".")[2]], "constraint.excluded"),
        ([], [IDENTITY], "constraint.excluded"),
    ],
)
def test_the_name_is_held_to_the_constraints_of_the_chain(
    tmp_path: Path, permitted: list[str], excluded: list[str], rule: str
) -> None:
    constraints = x509.NameConstraints(
        [x509.DNSName(name) for name in permitted] or None,
        [x509.DNSName(name) for name in excluded] or None,
    )
    authorities = two_authorities(constraints)
    with World(tmp_path, authorities=authorities, overrides=FRONTS) as world:
        if not rule:
            assert names(world.issuance.issue(call())) == [DNS]
            return
        with pytest.raises(DeniedError, match="the name is") as refusal:
            world.issuance.issue(call())
        assert refusal.value.rule == rule
        assert not any(ca.called for ca in world.cas.values())


def test_names_of_another_trust_domain_are_stopped_before_the_constraints(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = x509.DNSName(IDENTITY.replace("corp", "other"))
    monkeypatch.setattr(LinkerdNames, "leaf_names", lambda *_: (other,))
    with pytest.raises(DeniedError, match="trust domain") as refusal:
        world.issuance.issue(call())
    assert refusal.value.rule == "cluster.trust-domain"


def test_the_trust_domain_may_be_another_than_the_clusters(tmp_path: Path) -> None:
    fronts = {"linkerd": {"listen": "127.0.0.1:0", "trust_domain": "cluster.local"}}
    identity = IDENTITY.replace("corp.example", "cluster.local")
    with World(tmp_path, overrides={"fronts": fronts}) as world:
        assert world.snapshot.linkerd is not None
        assert world.snapshot.linkerd.trust_domain == TrustDomain("cluster.local")
        issued = world.issuance.issue(call(identity=identity, csr=new_csr(identity)))
        assert names(issued) == [x509.DNSName(identity)]
        row, _ = world.ended()
    assert row["caller"] == "spiffe://cluster.local/ns/shop/sa/web"


def test_a_ceiling_holds_for_this_mesh_too(tmp_path: Path) -> None:
    limits = {"limits": {"per_identity": {"rate": 0.001, "burst": 1}}}
    with World(tmp_path, overrides=FRONTS | limits) as world:
        world.issuance.issue(call())
        with pytest.raises(OverloadedError, match="asks too often"):
            world.issuance.issue(call())


def retyped(answer: Answer) -> None:
    answer.names = [x509.UniformResourceIdentifier(IDENTITY)]


@pytest.mark.parametrize(
    "lie",
    [
        *map(lie_called, ("a subject", "other name", "extra DNS name", "extra name")),
        *map(lie_called, ("names not critical", "later notAfter")),
        retyped,
    ],
)
@pytest.mark.parametrize("builds_tbs", [False, True])
def test_what_differs_from_the_request_is_never_released(
    world: World, lie: Callable[[Answer], None], *, builds_tbs: bool
) -> None:
    for ca in world.cas.values():
        ca.lie, ca.builds_tbs = lie, builds_tbs
    with pytest.raises(MisissuedError, match="the issued certificate is refused"):
        world.issuance.issue(call())
    _, outcome = world.ended()
    assert (outcome["kind"], outcome["front"]) == ("unknown", "linkerd")


def test_an_issuing_ca_that_is_stopped_within_the_second_is_not_passed_over(
    world: World,
) -> None:
    # Whether one can sign at all is looked into once a second, and comes before names.
    world.issuance.issue(call())
    with pytest.raises(MismatchError):
        world.issuance.issue(call(identity=OTHER))
    for ca in world.cas.values():
        ca.lie = lie_called("a subject")
    for _ in world.cas:
        with pytest.raises(MisissuedError):
            world.issuance.issue(call())
    with pytest.raises(BackendBrokenError, match="stopped"):
        world.issuance.issue(call(identity=OTHER))


def test_another_snapshot_or_another_second_is_checked_again(world: World) -> None:
    world.issuance.issue(call())
    served, now = world.snapshot, world.clock()
    world.snapshot = replace(served, issuers={})
    with pytest.raises(BackendUnavailableError, match="no issuing CA is ready"):
        world.issuance.issue(call(identity=OTHER))
    world.snapshot = served
    with pytest.raises(MismatchError):
        world.issuance.issue(call(identity=OTHER))
    ends = min(issuer.chain.not_after for issuer in served.issuers.values())
    world.clock.now = ends - timedelta(seconds=1)
    assert world.clock() > now
    with pytest.raises(BackendUnavailableError, match="expires too soon"):
        world.issuance.issue(call(identity=OTHER, shown=token(now=world.clock())))


def test_istios_counters_do_not_count_linkerds_calls(world: World) -> None:
    world.issuance.issue(call())
    with pytest.raises(CSRError, match="DER"):
        world.issuance.issue(call(csr=WRONG_CSR))
    assert world.metrics.citadel.csr_count._value.get() == 0
    assert world.metrics.citadel.success_cert_issuance_count._value.get() == 0


def test_without_the_front_no_caller_has_a_linkerd_identity(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        assert world.snapshot.linkerd is None


# Renewal by certificate, at Istio's second port.


SECOND_PORT = {
    "fronts": {
        "istio": {
            "mtls_listen": "127.0.0.1:0",
            "mtls_identities": [{"namespaces": ["shop"]}],
            "mtls_max_age": "48h",
        }
    }
}


@pytest.fixture
def second_port(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, overrides=SECOND_PORT) as made:
        yield made


def test_each_renewal_leads_back_to_the_token(second_port: World) -> None:
    world, keys = second_port, [new_key() for _ in range(3)]
    began = int(world.clock().timestamp())
    shown = world.issue(pem=csr(key=keys[0]), ttl_seconds=0)
    for key in keys[1:]:
        world.clock.forward(hours=20)
        shown = world.renew(shown, key=key)
    intents = [row for row in world.rows() if row["kind"] == "intent"]
    credentials = [row["credential"] for row in intents]
    assert credentials == ["token", "certificate", "certificate"]
    assert [row["proven_at"] for row in intents] == [began] * 3
    world.clock.forward(hours=9)
    with pytest.raises(DeniedError, match="show one") as caught:
        world.renew(shown)
    assert caught.value.rule == "renewal.age"
    # A token begins another lineage.
    world.renew(world.issue())


def test_nobody_renews_by_default(tmp_path: Path) -> None:
    listens = {"fronts": {"istio": {"mtls_listen": "127.0.0.1:0"}}}
    with World(tmp_path, overrides=listens) as world:
        shown = world.issue()
        with pytest.raises(DeniedError, match="may not renew") as caught:
            world.renew(shown)
        assert caught.value.rule == "renewal.identity"
        refused = world.ended()[-1]
    assert (refused["rule"], refused["caller"]) == ("renewal.identity", "")


def test_a_certificate_of_our_own_ca_that_the_ledger_lacks_is_refused(
    second_port: World,
) -> None:
    world = second_port
    shown = world.issue()
    for authority in world.authorities.values():
        leaf = authority.issue_leaf(
            x509.UniformResourceIdentifier(CALLER),
            not_before=NOW - LAST_HOUR,
            not_after=NOW + LAST_HOUR,
        )
        forged = replace(
            shown,
            leaf=leaf.public_bytes(Encoding.DER),
            chain_pem=tuple(bundle(one).decode() for one in authority.chain),
        )
        with pytest.raises(AuthenticationError, match="no such certificate"):
            world.renew(forged)


def test_the_anchors_in_service_judge_each_call(second_port: World) -> None:
    world = second_port
    shown = world.issue()
    world.renew(shown)
    other = TrustBundle([new_root("other").certificate])
    world.snapshot = replace(world.snapshot, bundle=other)
    with pytest.raises(AuthenticationError, match="no trust anchor") as caught:
        world.renew(shown)
    assert caught.value.rule == "certificate.chain"


def test_a_revoked_chain_proves_nobody(second_port: World) -> None:
    world = second_port
    shown = world.issue()
    authority = world.authorities["a"]
    lists = RevocationLists(parse_lists(revoking(authority.above[0], authority), "l"))
    world.snapshot = world.snapshot.under(lists)
    with pytest.raises(AuthenticationError, match="is revoked") as caught:
        world.renew(shown)
    assert caught.value.rule == "certificate.revoked"


# What an operator barred.


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (BarKind.SERIAL, "bar.certificate"),
        (BarKind.CERTIFICATE, "bar.certificate"),
        (BarKind.KEY, "bar.key"),
    ],
)
def test_a_barred_certificate_renews_nothing(
    second_port: World, kind: BarKind, rule: str
) -> None:
    world = second_port
    shown, other = world.issue(), world.issue()
    leaf = x509.load_der_x509_certificate(shown.leaf)
    values = {
        BarKind.SERIAL: f"{leaf.serial_number:x}",
        BarKind.CERTIFICATE: leaf.fingerprint(SHA256()).hex(),
        BarKind.KEY: key_sha256(leaf),
    }
    world.renew(shown)
    world.bar(kind, values[kind])
    with pytest.raises(BarredError, match="is barred") as caught:
        world.renew(shown)
    assert caught.value.rule == rule
    # The token, and other certificates of the same identity, are no worse.
    world.issue()
    world.renew(other)
    refused = [row for row in world.ended() if row["kind"] == "refused"]
    assert [(row["rule"], row["status"]) for row in refused] == [
        (rule, "PERMISSION_DENIED")
    ]


@pytest.mark.parametrize(
    ("kind", "value", "rule"),
    [
        (BarKind.IDENTITY, CALLER, "bar.identity"),
        (BarKind.SERVICE_ACCOUNT, "shop/web", "bar.service-account"),
        (BarKind.KEY, KEY_OF_VECTOR, "bar.key"),
    ],
)
def test_bars_hold_on_linkerds_front_too(
    world: World, kind: BarKind, value: str, rule: str
) -> None:
    world.issuance.issue(call())
    world.bar(kind, value)
    with pytest.raises(BarredError, match="is barred") as caught:
        world.issuance.issue(call())
    refused = world.ended()[-1]
    assert caught.value.rule == refused["rule"] == rule
    assert (refused["status"], refused["caller"]) == ("PERMISSION_DENIED", CALLER)
