"""A throwaway hierarchy has the shape and the constraints of a real one."""

import ipaddress
from datetime import timedelta
from functools import cache
from itertools import pairwise

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError, DeniedError
from bridge.hierarchy.throwaway import (
    Hierarchy,
    ThrowawaySpec,
    make,
)
from bridge.spiffe import TrustDomain
from bridge.x509.algorithm import CAPrivateKey, KeyAlgorithm, new_key
from bridge.x509.name_constraints import ChainConstraints, subset_problems
from bridge.x509.path import validate_chain
from tests.support.parts.pki import NOW

SKI = x509.SubjectKeyIdentifier
CORP = (TrustDomain("corp.example"),)
BOTH_WAYS = ("", ".")


@cache
def keys(algorithm: KeyAlgorithm) -> tuple[CAPrivateKey, ...]:
    """RSA takes long: hierarchies of a test process share keys, and no two tiers do."""
    return tuple(new_key(algorithm) for _ in range(3))


def built(
    *planes: DataPlane,
    key: KeyAlgorithm = "p256",
    trust_domains: tuple[TrustDomain, ...] = CORP,
    permitted_dns: tuple[str, ...] = (),
) -> Hierarchy:
    spec = ThrowawaySpec(
        trust_domains=trust_domains,
        data_planes=frozenset(planes or [DataPlane.SIDECAR]),
        key=key,
        permitted_dns=permitted_dns,
    )
    if not key.startswith("rsa"):
        return make(spec, clock=lambda: NOW)
    shared = iter(keys(key))
    return make(spec, clock=lambda: NOW, make_key=lambda _: next(shared))


def certificates(hierarchy: Hierarchy) -> list[x509.Certificate]:
    """Issuing CA first, as a chain stands in a file."""
    tiers = (hierarchy.issuing, hierarchy.intermediate, hierarchy.root)
    return [tier.certificate for tier in tiers]


def test_the_chain_is_one_that_the_bridge_accepts() -> None:
    issuing, intermediate, root = certificates(built())
    found = validate_chain(issuing, [intermediate], [root], now=NOW, source="test")
    assert found.anchor == root


@pytest.mark.parametrize(
    ("key", "kind", "bits"),
    [
        ("p256", ec.EllipticCurvePrivateKey, 256),
        ("p384", ec.EllipticCurvePrivateKey, 384),
        ("p521", ec.EllipticCurvePrivateKey, 521),
        ("rsa2048", rsa.RSAPrivateKey, 2048),
        ("rsa3072", rsa.RSAPrivateKey, 3072),
        ("rsa4096", rsa.RSAPrivateKey, 4096),
        ("ed25519", ed25519.Ed25519PrivateKey, None),
    ],
)
def test_each_key_algorithm_is_that_of_all_tiers(
    key: KeyAlgorithm, kind: type, bits: int | None
) -> None:
    hierarchy = built(key=key)
    for tier in (hierarchy.root, hierarchy.intermediate, hierarchy.issuing):
        assert tier.key is not None
        assert isinstance(tier.key, kind)
        assert getattr(tier.key, "key_size", None) == bits
        assert tier.certificate.public_key() == tier.key.public_key()
    for lower, upper in pairwise(certificates(hierarchy)):
        lower.verify_directly_issued_by(upper)


def test_rsa_keys_are_made_with_the_usual_exponent() -> None:
    made = new_key("rsa2048")
    assert isinstance(made, rsa.RSAPrivateKey)
    assert made.key_size == 2048
    assert made.public_key().public_numbers().e == 65537


def test_tiers_differ_in_name_key_and_serial_also_between_hierarchies() -> None:
    found = [*certificates(built()), *certificates(built())]
    assert len({one.subject.public_bytes() for one in found}) == 6
    keys = [one.extensions.get_extension_for_class(SKI).value.digest for one in found]
    assert len(set(keys)) == 6
    assert len({one.serial_number for one in found}) == 6
    assert all(0 < one.serial_number < 1 << 127 for one in found)


def test_path_lengths_go_down_and_every_tier_may_sign_certificates_and_crls() -> None:
    lengths = []
    for one in certificates(built()):
        basic = one.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = one.extensions.get_extension_for_class(x509.KeyUsage)
        assert (basic.critical, basic.value.ca) == (True, True)
        assert usage.critical
        assert (usage.value.key_cert_sign, usage.value.crl_sign) == (True, True)
        assert not usage.value.digital_signature
        lengths.append(basic.value.path_length)
        # rustls holds an EKU of an intermediate against the path.
        with pytest.raises(x509.ExtensionNotFound, match="ExtendedKeyUsage"):
            one.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert lengths == [0, 1, 2]


def test_key_identifiers_join_the_tiers() -> None:
    for lower, upper in pairwise(certificates(built())):
        aki = lower.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        ski = upper.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        assert aki.value.key_identifier == ski.value.digest


def test_validity_starts_before_now_and_ends_tier_by_tier() -> None:
    found = certificates(built())
    start = NOW - timedelta(minutes=5)
    assert {one.not_valid_before_utc for one in found} == {start}
    days = [(one.not_valid_after_utc - start).days for one in found]
    assert days == [365, 5 * 365, 10 * 365]


def test_intermediate_and_issuing_ca_are_constrained_alike_and_critically() -> None:
    issuing, intermediate, root = certificates(built())
    extensions = [
        one.extensions.get_extension_for_class(x509.NameConstraints)
        for one in (issuing, intermediate)
    ]
    assert all(extension.critical for extension in extensions)
    assert extensions[0].value == extensions[1].value
    assert subset_problems(issuing, intermediate) == []
    with pytest.raises(x509.ExtensionNotFound, match="NameConstraints"):
        root.extensions.get_extension_for_class(x509.NameConstraints)


def uri(host: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(f"spiffe://{host}/ns/shop/sa/cart")


@pytest.mark.parametrize(
    "name",
    [
        uri("corp.example"),
        uri("eu.corp.example"),
        x509.DNSName("corp.example"),
        x509.DNSName("api.corp.example"),
        x509.DNSName("meshca.istio-system.svc"),
        x509.DNSName("cart.shop.serviceaccount.identity.linkerd.cluster.local"),
        x509.DNSName("localhost"),
        x509.DNSName("vm.extra.example"),
    ],
)
def test_a_name_of_the_mesh_is_permitted(name: x509.GeneralName) -> None:
    chain = certificates(built(permitted_dns=("extra.example",)))
    ChainConstraints.of_chain(chain).require_permitted([name])


@pytest.mark.parametrize(
    "name",
    [
        uri("evil.example"),
        uri("corp.example.evil"),
        uri("xcorp.example"),
        x509.DNSName("evil.example"),
        x509.DNSName("extra.example"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
        x509.RFC822Name("root@corp.example"),
    ],
)
def test_another_name_is_not_permitted(name: x509.GeneralName) -> None:
    constraints = ChainConstraints.of_chain(certificates(built()))
    with pytest.raises(DeniedError, match=r"."):
        constraints.require_permitted([name])


@pytest.mark.parametrize(
    ("planes", "constrains_uris"),
    [
        ([DataPlane.SIDECAR], True),
        ([DataPlane.AMBIENT], False),
        ([DataPlane.LINKERD], False),
        ([DataPlane.SIDECAR, DataPlane.AMBIENT], False),
    ],
)
def test_no_uri_constraint_meets_a_rustls_peer(
    planes: list[DataPlane], *, constrains_uris: bool
) -> None:
    hierarchy = built(*planes)
    chain = ChainConstraints.of_chain(certificates(hierarchy))
    assert (x509.UniformResourceIdentifier in chain.constrained) is constrains_uris
    told = any("URI names are not constrained" in note for note in hierarchy.notes)
    assert told is not constrains_uris


def test_each_host_stands_there_alone_and_with_a_leading_dot() -> None:
    several = (*CORP, TrustDomain("cluster.local"))
    issuing = certificates(built(trust_domains=several))[0]
    extension = issuing.extensions.get_extension_for_class(x509.NameConstraints)
    permitted = extension.value.permitted_subtrees or []
    dns = [name.value for name in permitted if isinstance(name, x509.DNSName)]
    hosts = ("corp.example", "cluster.local", "svc", "localhost")
    assert dns == [f"{dot}{host}" for host in hosts for dot in BOTH_WAYS]
    uris = [
        name.value
        for name in permitted
        if isinstance(name, x509.UniformResourceIdentifier)
    ]
    assert uris == [f"{dot}{host}" for host in hosts[:2] for dot in BOTH_WAYS]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"trust_domains": ()}, r"trust domains: expected at least one"),
        ({"data_planes": frozenset()}, r"data planes: expected at least one"),
        ({"region": ""}, r"region: expected 1 to 32 .*\(found ''\)"),
        ({"region": "Europe"}, r"region: expected .*\(found 'Europe'\)"),
        (
            {"trust_domains": (TrustDomain("-corp.example"),)},
            r"expected a name such as corp\.example.*\(found '-corp\.example'\)",
        ),
        (
            {"trust_domains": (TrustDomain("corp.1"),)},
            r"expected a name .*\(found 'corp\.1'\)",
        ),
        ({"permitted_dns": ("*.corp.example",)}, r"\(found '\*\.corp\.example'\)"),
        ({"permitted_dns": ("Corp",)}, r"\(found 'Corp'\)"),
        ({"issuing_ttl": timedelta(0)}, r"validity: expected 0 < issuing CA"),
        ({"issuing_ttl": timedelta(days=9999)}, r"validity: expected .*intermediate"),
        ({"root_ttl": timedelta(days=366)}, r"validity: expected .*<= root"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(
    change: dict[str, object], complaint: str
) -> None:
    fields = {"trust_domains": CORP, **change}
    with pytest.raises(ConfigError, match=complaint):
        ThrowawaySpec(**fields)  # type: ignore[arg-type]


def test_no_key_is_in_the_text_of_a_hierarchy() -> None:
    assert "key=" not in repr(built())
