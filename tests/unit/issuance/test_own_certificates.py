import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from bridge.errors import (
    BackendBrokenError,
    BackendError,
    BackendUnavailableError,
    DeniedError,
    LedgerError,
    MisissuedError,
)
from bridge.snapshot.model import Issuer
from bridge.x509.csr import CSR, parse_csr_der
from bridge.x509.pem import parse_certificates
from tests.support.harness.core import World, two_authorities
from tests.support.harness.fake_ca import Answer, lie_called
from tests.support.parts.pki import NOW

HOST = "meshca.istio-system.svc"
DAY = timedelta(hours=24)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def built_by_backend(world: World) -> Issuer:
    """Have issuing CA `a` build its TBSCertificates itself."""
    world.cas["a"].builds_tbs = True
    issuer = world.snapshot.issuers["a"]
    description = replace(issuer.description, chooses_serial=True)
    return replace(issuer, description=description)


def requested_names(csr: CSR) -> list[x509.GeneralName]:
    try:
        san = csr.request.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return []
    return [*san.value]


def test_the_listener_gets_a_certificate_that_is_on_record(world: World) -> None:
    pair = world.own.issue_serving([HOST, "other.example"], DAY)
    leaf, *chain = parse_certificates(pair.certificate_chain_pem, "the pair")
    key = load_pem_private_key(pair.private_key_pem, None)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert leaf.public_key() == key.public_key()
    assert [*san] == [x509.DNSName(HOST), x509.DNSName("other.example")]
    assert chain == [*world.authorities["a"].chain]
    assert pair.not_before == leaf.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert pair.not_after == leaf.not_valid_after_utc == NOW + DAY
    intent, outcome = world.ended()
    assert intent["names"] == [f"DNS:{HOST}", "DNS:other.example"]
    assert (
        intent["tbs_sha256"] == hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()
    )
    for row in (intent, outcome):
        assert (row["purpose"], row["front"], row["caller"]) == ("serving", "", "")
    assert intent["credential"] == "self"
    assert outcome["kind"] == "issued"


@pytest.mark.parametrize("is_inside", [True, False])
def test_the_names_of_the_listener_are_held_to_the_constraints(
    tmp_path: Path, *, is_inside: bool
) -> None:
    constraints = x509.NameConstraints([x509.DNSName("svc")], None)
    with World(tmp_path, authorities=two_authorities(constraints)) as world:
        if is_inside:
            world.own.issue_serving([HOST], DAY)
            return
        with pytest.raises(DeniedError, match="outside what the certificate"):
            world.own.issue_serving([HOST, "other.example"], DAY)
        assert not world.cas["a"].called
        assert world.ended() == []


def test_the_listener_is_served_by_the_issuing_ca_that_stands_in(world: World) -> None:
    world.cas["a"].error = BackendUnavailableError("down")
    world.own.issue_serving([HOST], DAY)
    assert [row["kind"] for row in world.ended()] == [
        *("intent", "failed", "intent", "issued")
    ]


def test_the_listeners_certificate_is_verified_like_any_other(world: World) -> None:
    world.cas["a"].lie = lie_called("extra name")
    with pytest.raises(MisissuedError, match="issued certificate is refused"):
        world.own.issue_serving([HOST], DAY)
    assert world.signing.stopped(world.snapshot.issuers["a"]) is not None


@pytest.mark.parametrize("what", ["serving", "probe"])
def test_what_the_bridge_asks_for_itself_brings_a_csr_of_its_key(
    world: World, what: str
) -> None:
    world.cas["a"].error = BackendUnavailableError("down")
    if what == "serving":
        world.own.issue_serving([HOST], DAY)
    else:
        with pytest.raises(BackendUnavailableError, match="down"):
            world.own.probe(world.snapshot.issuers["a"], world.snapshot, timeout=5)
    requests = [one.request for ca in world.cas.values() for one in ca.called]
    (der,) = {request.csr for request in requests}  # one a key, whoever is asked
    csr = parse_csr_der(der)  # verifies the proof of possession
    assert {request.spki for request in requests} == {csr.spki}
    assert requested_names(csr) == []


def test_an_issuing_ca_whose_chain_has_ended_is_not_asked(world: World) -> None:
    issuer = world.snapshot.issuers["a"]
    world.clock.now = issuer.chain.not_after
    with pytest.raises(BackendUnavailableError, match="chain has ended"):
        world.own.probe(issuer, world.snapshot, timeout=5)
    assert world.cas["a"].called == []


def test_a_probe_of_a_backend_that_cannot_date_back_is_valid_for_a_minute(
    world: World,
) -> None:
    issuer = built_by_backend(world)
    world.own.probe(issuer, world.snapshot, timeout=5)
    (prepared,) = world.cas["a"].called
    # A role dates every leaf back by the same time.
    assert prepared.request.not_before == NOW - timedelta(minutes=2)
    assert prepared.request.not_after == NOW + timedelta(minutes=1)


def test_a_backend_like_vault_passes_its_first_probe(tmp_path: Path) -> None:
    # With a probe for a name of each mesh, Vault writes the DNS name first, dates the
    # leaf by its own clock, and adds the leaf's key identifier.
    def as_vault(answer: Answer) -> None:
        answer.names.sort(key=lambda name: not isinstance(name, x509.DNSName))
        answer.not_before += timedelta(seconds=2)
        answer.not_after += timedelta(seconds=1)
        identifier = x509.SubjectKeyIdentifier.from_public_key(answer.public_key)
        answer.extensions.append((identifier, False))

    fronts = {"fronts": {"linkerd": {"listen": "127.0.0.1:0"}}}
    with World(tmp_path, overrides=fronts) as world:
        issuer = built_by_backend(world)
        world.cas["a"].lie = as_vault
        assert len(world.snapshot.probe_names["a"]) == 2
        world.own.probe(issuer, world.snapshot, timeout=5)
        intent, outcome = world.ended()
    assert outcome["kind"] == "issued"
    assert outcome["not_after"] == intent["not_after"] + 1


def test_a_probe_that_is_valid_expires_with_its_chain(world: World) -> None:
    issuer = built_by_backend(world)
    ends = NOW + timedelta(seconds=20)
    issuer = replace(issuer, chain=replace(issuer.chain, not_after=ends))
    world.own.probe(issuer, world.snapshot, timeout=5)
    (prepared,) = world.cas["a"].called
    # The backend may end it 5 s later.
    assert prepared.request.not_after == ends - timedelta(seconds=5)


def test_a_probe_is_a_certificate_of_the_past_on_record(world: World) -> None:
    world.own.probe(world.snapshot.issuers["a"], world.snapshot, timeout=5)
    (prepared,) = world.cas["a"].called
    request = prepared.request
    assert [str(name.value) for name in request.names] == [
        "spiffe://corp.example/meshca/probe"
    ]
    assert request.not_after < NOW
    assert request.not_before < request.not_after
    intent, outcome = world.ended()
    assert intent["purpose"] == outcome["purpose"] == "probe"
    assert intent["issuing_ca"] == "a"
    assert outcome["kind"] == "issued"


@pytest.mark.parametrize(
    "error", [BackendBrokenError("gone"), BackendUnavailableError("down")]
)
def test_a_probe_of_a_ca_that_cannot_sign_fails(
    world: World, error: BackendError
) -> None:
    world.cas["a"].error = error
    with pytest.raises(type(error), match=str(error)):
        world.own.probe(world.snapshot.issuers["a"], world.snapshot, timeout=5)
    assert [row["kind"] for row in world.ended()] == ["intent", "failed"]


def test_a_probe_of_a_ca_that_does_not_answer_signs_nothing(world: World) -> None:
    world.cas["a"].check_error = BackendUnavailableError("down")
    with pytest.raises(BackendUnavailableError, match="down"):
        world.own.probe(world.snapshot.issuers["a"], world.snapshot, timeout=5)
    assert world.ended() == []
    assert not world.cas["a"].called


def test_a_probe_detects_a_misissuance(world: World) -> None:
    world.cas["a"].lie = lie_called("CA:TRUE")
    with pytest.raises(MisissuedError, match="issued certificate is refused"):
        world.own.probe(world.snapshot.issuers["a"], world.snapshot, timeout=5)
    assert world.signing.stopped(world.snapshot.issuers["a"]) is not None


def test_a_probe_of_a_stopped_ca_asks_nobody_and_leaves_no_row(world: World) -> None:
    world.cas["a"].lie = lie_called("other key")
    issuer = world.snapshot.issuers["a"]
    with pytest.raises(MisissuedError, match="issued certificate is refused"):
        world.own.probe(issuer, world.snapshot, timeout=5)
    rows = world.ended()
    world.cas["a"].check_error = AssertionError("asked")
    with pytest.raises(BackendBrokenError, match="stopped after a mis-issuance"):
        world.own.probe(issuer, world.snapshot, timeout=5)
    assert world.ended() == rows


def test_a_probe_of_a_ca_that_may_not_sign_for_the_trust_domain_signs_nothing(
    tmp_path: Path,
) -> None:
    elsewhere = x509.UniformResourceIdentifier("other.example")
    constraints = x509.NameConstraints([elsewhere], None)
    with World(tmp_path, authorities=two_authorities(constraints)) as world:
        with pytest.raises(DeniedError, match="outside what the certificate"):
            world.own.probe(world.snapshot.issuers["a"], world.snapshot, timeout=5)
        assert not world.cas["a"].called


def test_without_a_ledger_there_is_no_probe_and_no_listener(world: World) -> None:
    world.ledger.close()
    with pytest.raises(LedgerError, match="ledger"):
        world.own.probe(world.snapshot.issuers["a"], world.snapshot, timeout=5)
    with pytest.raises(LedgerError, match="ledger"):
        world.own.issue_serving([HOST], DAY)
    assert not world.cas["a"].called


def test_two_listeners_do_not_share_a_key(world: World) -> None:
    pairs = [world.own.issue_serving([HOST], DAY) for _ in range(2)]
    keys = {
        parse_certificates(pair.certificate_chain_pem, "x")[0]
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for pair in pairs
    }
    assert len(keys) == 2
