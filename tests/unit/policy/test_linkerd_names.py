"""Linkerd's rules for a request. Over the wire: tests/integration/linkerd."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bridge.errors import (
    CSRError,
    DeniedError,
    MismatchError,
    SubjectError,
)
from bridge.policy.linkerd_names import (
    LinkerdNames,
    read_csr,
    require_csr_names,
    subject_error,
)
from bridge.spiffe import SpiffeID, TrustDomain
from tests.support.clients.linkerd_raw import new_csr
from tests.vectors.generate_linkerd import IDENTITY

DOMAIN = TrustDomain("corp.example")
WEB = SpiffeID.of_service_account(DOMAIN, "shop", "web")
NAMES = LinkerdNames(
    cluster="a",
    control_plane_namespace="linkerd",
    trust_domain=DOMAIN,
    with_uri=False,
)
BOTH = replace(NAMES, with_uri=True)
DNS, URI = x509.DNSName(IDENTITY), x509.UniformResourceIdentifier(str(WEB))


def test_an_identity_is_account_namespace_and_the_mesh() -> None:
    assert NAMES.identity("shop", "web") == IDENTITY


@pytest.mark.parametrize("part", ["", "a.b", "A", "-a", "a-", "a_b", "a" * 64, "é"])
def test_each_part_is_a_label(part: str) -> None:
    with pytest.raises(SubjectError, match=f"^Not a label: {part}$"):
        NAMES.identity("shop", part)
    with pytest.raises(SubjectError, match=f"^Not a label: {part}$"):
        NAMES.identity(part, "web")


def test_a_label_may_have_63_characters_and_begin_with_a_digit() -> None:
    label = "0" * 63
    assert NAMES.identity(label, label).startswith(f"{label}.{label}.service")


def test_a_leaf_has_the_dns_name_first() -> None:
    assert NAMES.leaf_names(IDENTITY, WEB) == (DNS,)
    assert BOTH.leaf_names(IDENTITY, WEB) == (DNS, URI)


def test_a_leafs_name_is_no_longer_than_a_dns_name() -> None:
    assert NAMES.leaf_names("a" * 253, WEB)
    with pytest.raises(DeniedError, match="more than 253 characters"):
        NAMES.leaf_names("a" * 254, WEB)


def test_the_meshs_own_names_pass() -> None:
    BOTH.require_own((DNS, URI))


@pytest.mark.parametrize(
    "name",
    [
        x509.DNSName(IDENTITY.replace("corp", "other")),
        x509.DNSName(IDENTITY.replace(".linkerd.", ".other.")),
        x509.DNSName(f"{IDENTITY}.other"),
        x509.DNSName(IDENTITY.replace(".serviceaccount", ".user")),
        x509.UniformResourceIdentifier("spiffe://corp.example.other/ns/shop/sa/web"),
        x509.UniformResourceIdentifier("spiffe://other/ns/shop/sa/web"),
        x509.DNSName(str(WEB)),
    ],
    ids=lambda name: name.value,
)
def test_a_name_of_another_mesh_does_not(name: x509.GeneralName) -> None:
    with pytest.raises(DeniedError, match="trust domain"):
        BOTH.require_own((DNS, name))


def test_a_csr_is_not_read_that_no_proxy_would_need() -> None:
    longest = ".".join(("a" * 63, "b" * 63, "c" * 63, "d" * 61))
    require_csr_names(read_csr(new_csr(longest)), longest)
    many = new_csr(*(f"{number}.{IDENTITY}" for number in range(80)))
    with pytest.raises(CSRError, match="the CSR has more than 4096 bytes") as refusal:
        read_csr(many)
    assert refusal.value.rule == "csr.size"


MAIL, IP = x509.RFC822Name("web@corp.example"), x509.IPAddress(ip_address("::1"))
STRANGER, THIRD = x509.DNSName("api.shop"), x509.DNSName("db.shop")


@pytest.mark.parametrize(
    ("common_name", "names", "rule"),
    [
        pytest.param("api.shop", [STRANGER, THIRD], "dns-names", id="7 before 8 and 9"),
        pytest.param("db.shop", [STRANGER, MAIL], "csr-name", id="8 before 9 and 10"),
        pytest.param(
            "db.shop", [URI, IP, MAIL, DNS], "common-name", id="9 before 10 to 12"
        ),
        pytest.param("", [URI, IP, MAIL, DNS], "emails", id="10 before 11 and 12"),
        pytest.param("", [URI, IP, DNS], "ips", id="11 before 12"),
    ],
)
def test_of_several_errors_the_first_is_reported(
    common_name: str, names: list[x509.GeneralName], rule: str
) -> None:
    csr = read_csr(csr_of(common_name, names))
    with pytest.raises(MismatchError, match=r"^(CSR|invalid|cannot) ") as refusal:
        require_csr_names(csr, IDENTITY)
    assert refusal.value.rule == f"linkerd.{rule}"


def csr_of(common_name: str, names: list[x509.GeneralName]) -> bytes:
    given = [common_name] if common_name else []
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, one) for one in given]
    return (
        x509.CertificateSigningRequestBuilder(x509.Name(subject))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def test_a_subject_is_not_repeated_without_end() -> None:
    assert len(str(subject_error("x" * 100_000))) < 400
    assert len(str(subject_error(f"system:a:b:{'X' * 100_000}"))) < 400
