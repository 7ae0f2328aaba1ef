"""What a proxy gets from Linkerd's front, and what it does not get."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from bridge.server import istio, linkerd
from tests.support.clients import istio_raw
from tests.support.clients.linkerd_raw import (
    AUDIENCE,
    SUFFIX,
    Certify,
    new_csr,
    token,
    vector,
)
from tests.support.harness.real_process import Bridge
from tests.vectors.generate_linkerd import IDENTITY, issued

pytestmark = pytest.mark.xdist_group("linkerd-certificates")

CORPUS = sorted(f"good-{name}" for name in issued())
MOST_SECONDS = 86_400
LEAST_SHARE, MOST_SHARE = 0.01, 0.05


def extension(leaf: x509.Certificate, kind: type) -> x509.Extension:  # type: ignore[type-arg]  # the test's own kinds
    return leaf.extensions.get_extension_for_class(kind)


@pytest.mark.parametrize("name", CORPUS)
def test_a_csr_gets_its_identity_and_nothing_else_that_it_asks_for(
    certify: Certify, name: str
) -> None:
    csr = vector(name)
    leaf = certify.ask(csr=csr).leaf
    assert not leaf.subject.rdns  # whatever the CSR's is
    san = extension(leaf, x509.SubjectAlternativeName)
    assert (san.critical, [*san.value]) == (True, [x509.DNSName(IDENTITY)])
    basic = extension(leaf, x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    usage = extension(leaf, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert {*extension(leaf, x509.ExtendedKeyUsage).value} == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    extension(leaf, x509.AuthorityKeyIdentifier)
    assert len(leaf.extensions) == 5
    assert leaf.public_key() == x509.load_der_x509_csr(csr).public_key()
    row = certify.new_outcome()
    assert (row["kind"], row["status"], row["front"]) == ("issued", "OK", "linkerd")
    assert row["serial"] == f"{leaf.serial_number:x}"


def test_the_answer_is_leaf_issuing_ca_and_intermediates_without_a_root(
    bridge: Bridge, certify: Certify
) -> None:
    answer = certify.ask()
    wanted = x509.load_pem_x509_certificates(bridge.chain.read_bytes())
    assert answer.chain == wanted
    answer.leaf.verify_directly_issued_by(answer.chain[0])
    (root,) = x509.load_pem_x509_certificates(bridge.roots.read_bytes())
    assert root not in answer.chain
    answer.chain[-1].verify_directly_issued_by(root)


def test_times_are_backdated_and_a_proxy_comes_back_before_the_end(
    certify: Certify,
) -> None:
    before = datetime.now(UTC)
    answers = [certify.ask() for _ in range(8)]
    after = datetime.now(UTC)
    spread = set()
    for answer in answers:
        leaf = answer.leaf
        assert leaf.not_valid_before_utc <= before - timedelta(seconds=119)
        ends = leaf.not_valid_after_utc
        least, most = (
            (1 - share) * MOST_SECONDS for share in (MOST_SHARE, LEAST_SHARE)
        )
        left = (answer.valid_until - before).total_seconds()
        assert least - 1 <= left <= most + (after - before).total_seconds() + 1
        assert after < answer.valid_until < ends
        spread.add(answer.valid_until)
    assert len(spread) == len(answers)


def test_serial_numbers_are_random_and_none_is_repeated(certify: Certify) -> None:
    serials = [certify.ask().leaf.serial_number for _ in range(20)]
    assert len({*serials}) == 20
    assert all(serial.bit_length() == 127 for serial in serials)


def test_the_record_names_caller_cluster_and_names(
    bridge: Bridge, certify: Certify
) -> None:
    account = f"web-{uuid.uuid4()}"
    identity = f"{account}.shop{SUFFIX}"
    certify.ask(
        identity=identity, csr=new_csr(identity), credential=token(account=account)
    )
    assert certify.new_outcome()["kind"] == "issued"
    caller = f"spiffe://corp.example/ns/shop/sa/{account}"
    (intent,) = bridge.rows(kind="intent", caller=caller)
    assert (intent["front"], intent["cluster"]) == ("linkerd", "Kubernetes")
    assert intent["names"] == [f"DNS:{identity}"]
    assert intent["credential"] == "token"


def test_a_token_of_one_mesh_is_none_for_the_other(
    bridge: Bridge, certify: Certify
) -> None:
    with istio_raw.Wire(bridge) as tls:
        foreign = tls.ask(istio_raw.bearer(token()))
        assert foreign.code == "UNAUTHENTICATED"
        assert foreign.text == "token.audience: the token is for another audience"
        row = tls.new_outcome()
        assert (row["front"], row["rule"]) == ("istio", "token.audience")
    answer = certify.ask(credential=istio_raw.token())
    assert answer.text == "authentication token could not be authenticated"
    row = certify.new_outcome()
    assert (row["front"], row["rule"]) == ("linkerd", "token.audience")


def test_a_token_for_both_meshes_is_good_for_both(
    bridge: Bridge, certify: Certify
) -> None:
    both = token(audiences=["istio-ca", AUDIENCE])
    with istio_raw.Wire(bridge) as tls:
        assert tls.ask(istio_raw.bearer(both)).code == "OK"
    assert certify.ask(credential=both).names == [x509.DNSName(IDENTITY)]


def test_a_csr_of_a_mebibyte_is_the_transports_to_refuse(certify: Certify) -> None:
    answer = certify.ask(csr=vector() + bytes(1024 * 1024))
    assert answer.code == "RESOURCE_EXHAUSTED"
    assert answer.text.startswith("SERVER: Received message larger than max")
    certify.require_healthy()  # and has no outcome of the other


def test_a_csr_above_its_own_bound_is_not_read(certify: Certify) -> None:
    answer = certify.ask(csr=vector() + bytes(4 * 1024))
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.text == "csr.size: the CSR has more than 4096 bytes"
    assert certify.new_outcome()["rule"] == "csr.size"


@pytest.mark.parametrize("message", [b"\xff\xff", b"\x0a\x03\xc3\x28\x28", b"\x12\x7f"])
def test_what_is_no_message_is_our_refusal(certify: Certify, message: bytes) -> None:
    answer = certify.send(message)
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.text == "request.protobuf: the message is not a CertifyRequest"
    assert certify.new_outcome()["rule"] == "request.protobuf"


@pytest.mark.parametrize("method", ["CreateCertificate", "certify", ""])
def test_there_is_no_other_method(certify: Certify, method: str) -> None:
    path = f"/io.linkerd.proxy.identity.Identity/{method}"
    assert certify.send(b"", method=path).code == "UNIMPLEMENTED"


def test_istios_api_is_not_served_in_the_clear(certify: Certify) -> None:
    answer = certify.send(istio_raw.request(), method=istio.METHOD)
    assert answer.code == "UNIMPLEMENTED"


def test_linkerds_api_is_not_served_on_istios_port(bridge: Bridge) -> None:
    with istio_raw.Wire(bridge) as tls:
        assert tls.send(b"", method=linkerd.METHOD).code == "UNIMPLEMENTED"
