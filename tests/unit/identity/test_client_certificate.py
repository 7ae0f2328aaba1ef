"""The SPIFFE ID of a client certificate."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import AuthenticationError
from bridge.identity.client_certificate import spiffe_id_of

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
NAME = "spiffe://corp.example/ns/shop/sa/web"


@cache
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def leaf(
    *names: x509.GeneralName, ca: bool | None = False, ends: timedelta = HOUR
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key().public_key())
        .serial_number(7)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + ends)
    )
    if names:
        san = x509.SubjectAlternativeName(names)
        builder = builder.add_extension(san, critical=True)
    if ca is not None:
        basic = x509.BasicConstraints(ca=ca, path_length=None)
        builder = builder.add_extension(basic, critical=True)
    return builder.sign(key(), hashes.SHA256()).public_bytes(Encoding.DER)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def pem(*ders: bytes) -> bytes:
    certificates = [x509.load_der_x509_certificate(der) for der in ders]
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


@pytest.mark.parametrize(
    "names",
    [
        [uri(NAME)],
        [
            x509.DNSName("web.shop"),
            uri(NAME),
            x509.DNSName("a"),
            x509.RFC822Name("a@b"),
        ],
    ],
)
def test_the_one_uri_is_the_name(names: Sequence[x509.GeneralName]) -> None:
    der = leaf(*names)
    assert str(spiffe_id_of(der, now=NOW)) == NAME
    assert spiffe_id_of(pem(der), now=NOW) == spiffe_id_of(der, now=NOW)


def test_a_leaf_may_leave_basic_constraints_out() -> None:
    assert str(spiffe_id_of(leaf(uri(NAME), ca=None), now=NOW)) == NAME


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ([], "certificate.san"),
        ([x509.DNSName(NAME)], "certificate.san"),
        ([uri(NAME), uri(NAME)], "certificate.san"),
        ([uri(NAME), uri("https://corp.example")], "certificate.san"),
        ([uri("https://corp.example/ns/shop/sa/web")], "certificate.san"),
        ([uri("spiffe://corp.example")], "certificate.san"),
        ([uri("spiffe://corp.example/")], "certificate.san"),
        ([uri("spiffe://corp.example/web")], "certificate.san"),
        ([uri("spiffe://corp.example/ns/shop/sa/web/x")], "certificate.san"),
        ([uri("spiffe://corp.example/ns/Shop/sa/web")], "certificate.san"),
        ([uri("spiffe://corp.example/ns/a.b/sa/web")], "certificate.san"),
        ([uri("spiffe://corp.example/ns/shop/sa/We_b")], "certificate.san"),
        ([uri("spiffe://corp.example/ns/shop/sa/a,b")], "certificate.san"),
        ([uri("spiffe://Corp.example/ns/shop/sa/web")], "certificate.san"),
    ],
)
def test_any_other_names_are_refused(
    names: Sequence[x509.GeneralName], rule: str
) -> None:
    der = leaf(*names)
    with pytest.raises(AuthenticationError, match=r"URI SAN|SPIFFE ID") as caught:
        spiffe_id_of(der, now=NOW)
    assert caught.value.rule == rule
    uris = [one.value for one in names if isinstance(one, type(uri(NAME)))]
    assert (repr(uris[0]) if uris else "found 0: none") in caught.value.detail


def test_a_ca_certificate_is_refused() -> None:
    der = leaf(uri(NAME), ca=True)
    with pytest.raises(AuthenticationError, match="CA certificate"):
        spiffe_id_of(der, now=NOW)


@pytest.mark.parametrize("after", [-HOUR * 2, HOUR + timedelta(seconds=1)])
def test_a_certificate_may_expire_under_its_connection(after: timedelta) -> None:
    der = leaf(uri(NAME))
    with pytest.raises(AuthenticationError, match="not valid now") as caught:
        spiffe_id_of(der, now=NOW + after)
    assert caught.value.detail == (
        f"valid from 2030-01-02T02:04:05Z to 2030-01-02T04:04:05Z, and it is "
        f"{NOW + after:%Y-%m-%dT%H:%M:%SZ}"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        leaf(uri(NAME))[:-1],
        leaf(uri(NAME)) + b"x",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        pem(leaf(uri(NAME)), leaf(uri(NAME))),
        b"0" * 70_000,
    ],
)
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(AuthenticationError, match=r"read|large") as caught:
        spiffe_id_of(data, now=NOW)
    assert caught.value.rule == "certificate.parse"


def test_a_second_san_extension_is_refused() -> None:
    one = leaf(uri(NAME), uri("spiffe://corp.example/ns/shop/sa/web2"))
    # subjectAltName's OID in place of basicConstraints': the extension comes twice.
    twice = one.replace(b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x11")
    with pytest.raises(AuthenticationError, match="cannot be read"):
        spiffe_id_of(twice, now=NOW)
