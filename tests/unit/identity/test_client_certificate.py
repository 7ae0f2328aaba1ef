"""The SPIFFE ID of a client certificate, and its path to a trust anchor."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import AuthenticationError
from bridge.identity.caller import CertificateCredential
from bridge.identity.client_certificate import spiffe_id_of, trusted_path
from tests.support.parts.pki import (
    Authority,
    Key,
    bundle,
    new_chain,
    new_key,
    new_root,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
LONG_AGO = NOW - timedelta(days=30)
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


# The path to a trust anchor in service.


@dataclass(frozen=True)
class Shown:
    """A certificate as a client shows it, and the trust anchors in service."""

    issuer: Authority
    anchors: tuple[x509.Certificate, ...]
    key: Key | None = None
    names: tuple[x509.GeneralName, ...] = (uri(NAME),)
    ends: timedelta = HOUR
    chain: tuple[x509.Certificate, ...] | None = None
    """What is sent beside it; by default that of `issuer`."""

    def path(self) -> tuple[x509.Certificate, ...]:
        begins = NOW - HOUR
        leaf = self.issuer.issue_leaf(
            *self.names, key=self.key, not_before=begins, not_after=NOW + self.ends
        )
        sent = self.issuer.chain if self.chain is None else self.chain
        credential = CertificateCredential(bundle(leaf), bundle(*sent))
        return trusted_path(credential, self.anchors, now=NOW)


def under_constraint(*excluded: str) -> Authority:
    root = new_root(not_before=LONG_AGO)
    constraints = x509.NameConstraints(
        permitted_subtrees=None, excluded_subtrees=[*map(uri, excluded)]
    )
    return root.issue_ca("issuing", constraints=constraints, path_length=0)


def shown_by(issuer: Authority, **changed: Any) -> Shown:
    values: dict[str, Any] = {"issuer": issuer, "anchors": (issuer.root,)}
    return Shown(**(values | changed))


def test_a_path_leads_from_the_certificate_to_an_anchor_in_service() -> None:
    issuer = new_chain(not_before=LONG_AGO)
    other = new_root("other", not_before=LONG_AGO).certificate
    path = shown_by(issuer, anchors=(other, issuer.root)).path()
    assert path[1:] == (*issuer.chain, issuer.root)


def test_a_client_may_send_more_than_its_chain() -> None:
    issuer = new_chain(not_before=LONG_AGO)
    sent = (issuer.root, *reversed(issuer.chain), issuer.certificate)
    assert shown_by(issuer, chain=sent).path()[1:-1] == issuer.chain


def cases_without_a_path() -> Iterator[tuple[str, Shown, str]]:
    issuer = new_chain(not_before=LONG_AGO)
    other = new_root("other", not_before=LONG_AGO)
    one, namesake = (
        new_root("root", not_before=LONG_AGO).issue_ca("issuing", path_length=0)
        for _ in range(2)
    )
    ended = new_root(not_before=LONG_AGO).issue_ca(
        "ended", path_length=0, not_after=NOW - timedelta(seconds=1)
    )
    yield (
        "the anchor was removed",
        shown_by(issuer, anchors=(other.certificate,)),
        "certificate.chain: its chain: certificate 2 .* none of the trust anchors",
    )
    yield (
        "an anchor of the same name",
        shown_by(one, anchors=(namesake.root,)),
        "certificate.chain: .* named as issued by a trust anchor",
    )
    yield (
        "the chain of a namesake",
        shown_by(one, chain=namesake.chain, anchors=(namesake.root,)),
        "certificate.chain: its signature is not one of the key of its issuer",
    )
    missing = "certificate.chain: none of the certificates .* has issued it"
    yield "no chain is sent", shown_by(issuer, chain=()), missing
    yield "issued by an anchor", shown_by(other, chain=()), missing
    yield "the issuing CA has ended", shown_by(ended), "certificate.chain: .*expired"
    # Of an excluded URI, the domain itself and what is below it are excluded.
    for excluded in ("corp.example", "example"):
        yield (
            f"{excluded} is excluded",
            shown_by(under_constraint(excluded)),
            "certificate.constraints: .* is excluded by",
        )
    weak, odd = new_key("rsa1024"), new_key("p521")
    yield "a weak key", shown_by(issuer, key=weak), "certificate.key: "
    yield "a key of no workload", shown_by(issuer, key=odd), "certificate.key: "
    yield (
        "a long chain",
        shown_by(issuer, chain=(*issuer.chain, *[issuer.root] * 600)),
        "certificate.parse: ",
    )


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        pytest.param(shown, told, id=name)
        for name, shown, told in cases_without_a_path()
    ],
)
def test_a_certificate_without_a_good_path_is_refused(shown: Shown, told: str) -> None:
    with pytest.raises(AuthenticationError, match="certificate") as caught:
        shown.path()
    assert re.match(told, f"{caught.value.rule}: {caught.value.detail}")


@pytest.mark.parametrize("which", ["leaf", "chain"])
def test_what_is_no_certificate_has_no_path(which: str) -> None:
    issuer = new_chain(not_before=LONG_AGO)
    sent = {"leaf": bundle(issuer.certificate), "chain": bundle(*issuer.chain)}
    credential = CertificateCredential(**(sent | {which: b"x"}))
    with pytest.raises(AuthenticationError, match="cannot be read") as caught:
        trusted_path(credential, (issuer.root,), now=NOW)
    assert caught.value.rule == "certificate.parse"
