import sys
import warnings
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from bridge.client.linkerd import proxy_csr
from bridge.errors import CSRError
from bridge.x509.csr import (
    CSR,
    AskedNames,
    asked_names,
    asks_for_nothing_else,
    parse_csr_der,
)
from tests.vectors import generate_csrs, generate_linkerd
from tests.vectors.generate_csrs import asks, attribute, csr, dns, san, seq, tlv, uri
from tests.vectors.generate_linkerd import FOLDER, IDENTITY

P256 = generate_csrs.with_ec(ec.SECP256R1())
NAME = asks(san(dns("a")))
BITS = seq(tlv(0x31, seq(generate_csrs.oid("2.5.4.3"), tlv(3, b"\0\xff"))))
BITS_IN_A_NAME = tlv(0xA4, BITS)
"""A directory name with a common name that is a BIT STRING."""
FEATURES = generate_csrs.oid("1.3.6.1.5.5.7.1.24")
UNKNOWN_FEATURE = seq(FEATURES, tlv(4, seq(generate_csrs.integer(99))))
"""A TLS feature that has no name."""


def parsed(*attributes: bytes, subject: bytes = b"\x30\x00") -> CSR:
    return parse_csr_der(csr(P256, *attributes, subject=subject))


def test_the_vectors_are_what_their_generator_writes() -> None:
    written = {path.name: path.read_bytes() for path in FOLDER.glob("*.der")}
    assert generate_linkerd.build() == written


def test_names_are_read_by_form_and_in_order() -> None:
    names = san(
        dns("b"),
        uri("spiffe://c/d"),
        dns("a"),
        tlv(0x81, b"x@y"),
        tlv(0x87, bytes((10, 0, 0, 1))),
        dns("b"),
    )
    assert asked_names(parsed(asks(names))) == AskedNames(
        common_names=(),
        dns=("b", "a", "b"),
        emails=("x@y",),
        ips=("10.0.0.1",),
        uris=("spiffe://c/d",),
    )


def test_without_a_subject_alternative_name_there_is_none() -> None:
    assert asked_names(parsed(asks())).dns == ()
    assert asked_names(parsed(generate_csrs.CHALLENGE)).dns == ()


def test_a_long_common_name_is_read_without_a_warning() -> None:
    long = f"{'a' * 63}.{IDENTITY}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = asked_names(parsed(NAME, subject=seq(attribute("3", long, 19))))
    assert found.common_names == (long,)


@pytest.mark.parametrize(
    ("tag", "content", "name"),
    [
        (0x0C, "é".encode(), "é"),
        (0x13, b"a", "a"),
        (0x16, b"a", "a"),
        (0x1E, b"\0a\0b", "ab"),
        (0x14, b"\xe9", "é"),
    ],
    ids=["UTF8", "Printable", "IA5", "BMP", "Teletex"],
)
def test_a_common_name_is_read_by_its_type(tag: int, content: bytes, name: str) -> None:
    text = tlv(0x31, seq(generate_csrs.oid("2.5.4.3"), tlv(tag, content)))
    assert asked_names(parsed(NAME, subject=seq(text))).common_names == (name,)


def test_every_common_name_is_read_wherever_it_stands() -> None:
    kind = generate_csrs.oid("2.5.4.3")
    both = tlv(0x31, seq(kind, tlv(12, b"a")), seq(kind, tlv(12, b"b")))
    subject = seq(attribute("10", "x"), both, attribute("3", "c"))
    assert asked_names(parsed(NAME, subject=subject)).common_names == ("a", "b", "c")


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: parsed(NAME, asks(san(dns("b")))), id="asked twice"),
        pytest.param(lambda: parsed(asks(san(dns("a")), san(dns("b")))), id="two"),
        pytest.param(lambda: parsed(asks(san(tlv(0x9F, b"x")))), id="unknown form"),
        pytest.param(lambda: parsed(asks(san(dns("é")))), id="no ASCII"),
        # `cryptography` raises a TypeError and a KeyError for these.
        pytest.param(lambda: parsed(asks(san(BITS_IN_A_NAME))), id="bits in a name"),
        pytest.param(lambda: parsed(asks(UNKNOWN_FEATURE)), id="unknown feature"),
        pytest.param(
            lambda: parsed(
                NAME,
                subject=seq(
                    tlv(0x31, seq(generate_csrs.oid("2.5.4.3"), tlv(12, b"\xff")))
                ),
            ),
            id="common name is no UTF-8",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(made: object) -> None:
    assert callable(made)
    with pytest.raises(CSRError, match="the CSR cannot be read: its") as refusal:
        asked_names(made())
    assert refusal.value.rule == "csr.names"


PLAIN = asks(seq(generate_csrs.oid("2.5.29.17"), tlv(4, seq(dns("a")))))
"""As Go writes it, not critical."""
CALLED_A = seq(attribute("3", "a", 19))


@pytest.mark.parametrize("subject", [seq(), CALLED_A], ids=["nobody", "a"])
def test_a_csr_of_a_proxy_is_known_by_its_bytes(subject: bytes) -> None:
    made = parsed(PLAIN, subject=subject)
    assert asks_for_nothing_else(made, "a")
    assert asked_names(made).dns == ("a",)
    assert asked_names(made).common_names in {(), ("a",)}


def test_the_csr_that_proxy_identity_makes_is_known_by_its_bytes() -> None:
    made = proxy_csr(ec.generate_private_key(ec.SECP256R1()), IDENTITY)
    assert asks_for_nothing_else(parse_csr_der(made), IDENTITY)


@pytest.mark.parametrize(
    ("attributes", "subject", "name"),
    [
        pytest.param([PLAIN], seq(), "b", id="another name"),
        pytest.param([PLAIN], seq(), "A", id="another case"),
        pytest.param([PLAIN], seq(attribute("3", "b", 19)), "a", id="another subject"),
        pytest.param([PLAIN], seq(attribute("10", "a", 19)), "a", id="not a CN"),
        pytest.param([PLAIN, generate_csrs.CHALLENGE], seq(), "a", id="more"),
        pytest.param([asks(san(dns("a"), dns("a")))], seq(), "a", id="twice"),
        pytest.param([asks(san(uri("a")))], seq(), "a", id="a URI"),
        pytest.param([asks()], seq(), "", id="no name"),
        pytest.param([asks(san(dns("é")))], seq(), "é", id="no ASCII"),
    ],
)
def test_any_other_csr_is_not(
    attributes: list[bytes], subject: bytes, name: str
) -> None:
    assert not asks_for_nothing_else(parsed(*attributes, subject=subject), name)


@pytest.mark.parametrize("name", ["a" * 254, "é", "\ud800", ""])
def test_a_csr_without_attributes_asks_for_no_name_however_odd_that_is(
    name: str,
) -> None:
    bare = replace(parsed(PLAIN), attributes=b"", subject=b"")
    assert not asks_for_nothing_else(bare, name)


def test_no_name_is_kept_that_is_longer_than_a_dns_name() -> None:
    # It comes before the token is looked at, and may be as long as a message.
    name = "".join(["a", "b" * 253])
    before = sys.getrefcount(name)
    assert not asks_for_nothing_else(parsed(PLAIN), name)
    assert sys.getrefcount(name) == before


@given(
    asked=st.text("ab.-A", min_size=1, max_size=300),
    name=st.text("ab.-A", max_size=300),
    same=st.booleans(),
)
def test_what_is_known_by_its_bytes_is_what_would_be_read(
    asked: str, name: str, *, same: bool
) -> None:
    wanted = asked if same else name
    plain = asks(seq(generate_csrs.oid("2.5.29.17"), tlv(4, seq(dns(asked)))))
    made = parsed(plain, subject=seq(attribute("3", wanted, 19)))
    if asks_for_nothing_else(made, wanted):
        assert asked_names(made) == AskedNames((wanted,), (wanted,), (), (), ())
    else:
        assert asked != wanted or len(asked) > 253


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_nothing_but_the_intended_error_escapes(name: bytes, subject: bytes) -> None:
    try:
        request = parsed(
            asks(san(tlv(0x82, name))),
            subject=seq(tlv(0x31, seq(generate_csrs.oid("2.5.4.3"), tlv(12, subject)))),
        )
        asked_names(request)
    except CSRError:
        pass
