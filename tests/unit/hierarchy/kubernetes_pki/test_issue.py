"""What is issued for a cluster, and what is refused before anything is signed."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import ConfigError
from bridge.hierarchy.kubernetes_pki.issue import LeafIssuer, issue_all
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spiffe import TrustDomain
from bridge.x509.certificate import value_in
from bridge.x509.path import verify_leaf_signature
from tests.support.parts.cluster_pki import cluster, issuer_of, new_issuers
from tests.support.parts.pki import NOW, new_key, new_root

CLUSTER = cluster()
SPKI = Encoding.DER, PublicFormat.SubjectPublicKeyInfo


def test_each_certificate_is_a_leaf_of_its_ca() -> None:
    issuers = new_issuers(NOW)
    found = issue_all(CLUSTER, issuers, clock=lambda: NOW)
    for leaf in found:
        ca = issuers[leaf.planned.profile.ca].certificate
        assert verify_leaf_signature(leaf.certificate, ca)
        basic = leaf.certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        )
        assert (basic.value.ca, basic.critical) == (False, True)
        assert leaf.certificate.public_key() == leaf.key.public_key()
    keys = {leaf.certificate.public_key().public_bytes(*SPKI) for leaf in found}
    assert len(keys) == len(found)
    assert len({leaf.certificate.serial_number for leaf in found}) == len(found)


@pytest.mark.parametrize(
    ("days", "end"),
    [(365, NOW + timedelta(days=365)), (3660, NOW + timedelta(days=3649))],
)
def test_a_certificate_ends_with_its_ca_at_the_latest(days: int, end: object) -> None:
    (leaf, *_) = issue_all(cluster(days=days), new_issuers(NOW), clock=lambda: NOW)
    assert leaf.certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert leaf.certificate.not_valid_after_utc == end


def _never(_: bytes) -> bytes:
    raise AssertionError("something was signed")


def test_under_the_constraints_of_a_mesh_no_server_of_a_cluster_is_signed() -> None:
    domains = (TrustDomain("corp.example"),)
    throwaway = make(ThrowawaySpec(trust_domains=domains))
    found = throwaway.intermediate.certificate.extensions
    mesh = value_in(found, x509.NameConstraints)
    region = new_root().issue_ca("eu", path_length=1, constraints=mesh)
    issuers = new_issuers(NOW)
    issuers["kubernetes"] = replace(
        issuer_of(region.issue_ca("kubernetes", path_length=0)), sign=_never
    )
    with pytest.raises(ConfigError, match=r"10\.96\.0\.1") as caught:
        issue_all(CLUSTER, issuers, clock=lambda: NOW)
    text = str(caught.value)
    assert "cp-1/apiserver: the name is inside what the certificate of tier 2" in text
    assert "'kubernetes'" in text
    assert "worker-1/kubelet-server" in text


def test_a_ca_that_has_ended_signs_nothing() -> None:
    issuers = {
        name: replace(one, sign=_never) for name, one in new_issuers(NOW).items()
    }
    late = NOW + timedelta(days=3650)
    with pytest.raises(ConfigError, match=r"has ended at .* sign a new certificate"):
        issue_all(CLUSTER, issuers, clock=lambda: late)


def test_a_signature_of_another_key_makes_no_certificate() -> None:
    issuers = new_issuers(NOW)
    other = new_root("other", key=new_key())
    wrong = LeafIssuer(issuers["kubernetes"].chain, issuer_of(other).sign)
    with pytest.raises(ConfigError, match="the signature is not of the key of"):
        issue_all(CLUSTER, issuers | {"kubernetes": wrong}, clock=lambda: NOW)
