"""What is accepted as a CSR, and each way in which one is refused."""

import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import CSRError
from bridge.x509.csr import (
    CSR,
    LONGEST_CSR,
    AskedNames,
    asked_names,
    parse_csr,
    parse_csr_der,
    require_only_names,
)
from bridge.x509.pem import parse_one
from tests.vectors import csr_keys, generate_csrs, generate_linkerd
from tests.vectors.generate_csrs import asks, attribute, csr, dns, san, seq, tlv, uri
from tests.vectors.generate_linkerd import IDENTITY

FOLDER = Path(generate_csrs.FOLDER)
OWN = (x509.UniformResourceIdentifier(generate_csrs.AGENT),)


def read(name: str) -> str:
    return (FOLDER / f"{name}.pem").read_bytes().decode("ascii")


def der_of(name: str) -> bytes:
    return parse_one(read(name), "CERTIFICATE REQUEST")


GOOD = [
    ("good-p256-istio-agent", 256),  # ECC_SIGNATURE_ALGORITHM=ECDSA
    ("good-p256-ztunnel", 256),  # no subject at all
    ("good-p256-linkerd", 256),  # a CN of more than 64 characters, one dNSName
    ("good-p256-sha512", 256),
    ("good-p384-istio-agent", 384),
    ("good-p384-sha256", 384),
    ("good-rsa-2048-istio-agent", 2048),  # istio-agent's default
    ("good-rsa-3072-sha384", 3072),
    ("good-rsa-4096-sha512", 4096),
    ("good-pem-crlf", 256),
    ("good-pem-one-line", 256),
    ("good-pem-blank-lines-around", 256),
    ("good-pem-no-final-newline", 256),
]

TEXT = "csr.pem"
DER = "csr.der"
ENCODING = "csr.key-encoding"
SIGNATURE = "csr.signature-algorithm"
POSSESSION = "csr.possession"

BAD = [
    # Text: a lenient reader would find a CSR in most of these.
    ("pem-text-before", TEXT, "before"),
    ("pem-text-after", TEXT, "does not end"),
    ("pem-two-blocks", TEXT, "more than one"),
    ("pem-headers", TEXT, "headers"),
    ("pem-other-label", TEXT, "does not start"),
    ("pem-old-label", TEXT, "does not start"),
    ("pem-no-end", TEXT, "does not end"),
    ("pem-nul", TEXT, "NUL"),
    ("pem-foreign-character", TEXT, "base64"),
    ("pem-no-body", TEXT, "empty"),
    ("pem-cut-base64", TEXT, "base64"),
    # DER: one CertificationRequest, and not a byte more.
    ("der-empty-sequence", DER, "DER"),
    ("der-trailing-byte", DER, "DER"),
    ("der-two-requests", DER, "DER"),
    ("der-cut", DER, "DER"),
    ("der-long-length", DER, "DER"),
    ("der-version-1", DER, "DER"),
    ("der-unsorted-attributes", DER, "DER"),
    ("der-other-structure", DER, "DER"),
    # The key's kind and size.
    ("key-rsa-512", "csr.rsa-size", "bits"),
    ("key-rsa-1024", "csr.rsa-size", "bits"),
    ("key-rsa-2047", "csr.rsa-size", "bits"),
    ("key-rsa-2056", "csr.rsa-size", "bits"),
    ("key-rsa-8192", "csr.rsa-size", "bits"),  # and no work is done for it
    ("key-rsa-exponent-3", "csr.rsa-exponent", "65537"),
    ("key-rsa-close-primes", "csr.rsa-close-primes", "close"),
    ("key-rsa-small-factor", "csr.rsa-small-factor", "small factor"),
    ("key-rsa-roca", "csr.rsa-roca", "CVE-2017-15361"),
    ("key-p224", "csr.curve", "P-256"),
    ("key-p521", "csr.curve", "P-256"),
    ("key-secp256k1", "csr.curve", "P-256"),
    ("key-brainpool-p256r1", "csr.curve", "P-256"),
    ("key-ed25519", "csr.key-type", "RSA"),
    ("key-dsa", "csr.key-type", "RSA"),
    ("key-rsa-pss-key", "csr.key-type", "rsaEncryption"),
    # The key's encoding: the same key in a second way, or no key at all.
    ("key-rsa-no-null", ENCODING, "NULL"),
    ("key-rsa-long-modulus", ENCODING, "DER form"),
    ("key-rsa-negative-modulus", ENCODING, "DER form"),
    ("key-rsa-trailing-bytes", ENCODING, "DER form"),
    ("key-p256-explicit", ENCODING, "named curve"),
    ("key-p256-null-curve", ENCODING, "named curve"),
    ("key-p256-compressed", ENCODING, "uncompressed"),
    ("key-p256-hybrid", ENCODING, "uncompressed"),
    ("key-p256-off-curve", ENCODING, "DER form"),
    ("key-p256-infinity", ENCODING, "DER form"),
    ("key-p256-no-curve", DER, "DER"),
    # The signature's algorithm.
    ("signature-sha1-rsa", SIGNATURE, "SHA-256"),
    ("signature-md5-rsa", SIGNATURE, "SHA-256"),
    ("signature-pss", SIGNATURE, "PKCS#1 v1.5"),
    ("signature-sha1-ecdsa", SIGNATURE, "ECDSA"),
    ("signature-rsa-algorithm-without-null", SIGNATURE, "PKCS#1"),
    ("signature-rsa-algorithm-on-ec-key", SIGNATURE, "ECDSA"),
    ("signature-ecdsa-algorithm-on-rsa-key", SIGNATURE, "PKCS#1"),
    # The signature.
    ("signature-renamed", POSSESSION, "signature"),
    ("signature-other-key", POSSESSION, "signature"),
    ("signature-other-hash", POSSESSION, "signature"),
    ("signature-rsa-changed", POSSESSION, "signature"),
    ("signature-rsa-short", POSSESSION, "signature"),
    ("signature-unused-bit", DER, "DER"),  # the same signature in a second way
    ("signature-empty", POSSESSION, "signature"),
    ("signature-zero", POSSESSION, "signature"),
]

OTHER_NAME = "not the caller's"
ONE_EXTENSION = "one extension"

BAD_NAMES = [
    ("cn", "subject"),
    ("organization", "subject"),
    ("two-organizations", "subject"),
    ("teletex-cn", "subject"),  # which `cryptography` could not even read
    ("other-uri", OTHER_NAME),
    ("second-uri", OTHER_NAME),
    ("dns-that-spells-the-uri", OTHER_NAME),
    ("own-and-dns", OTHER_NAME),
    ("own-and-ip", OTHER_NAME),
    ("twice", "each once"),
    ("no-name", "hold names"),
    ("no-san", ONE_EXTENSION),
    ("no-extension-request", ONE_EXTENSION),
    ("key-usage", ONE_EXTENSION),
    ("two-extension-requests", ONE_EXTENSION),  # a reader may look at the second
    ("challenge-password", ONE_EXTENSION),
    ("key-usage-only", "subjectAltName"),
    ("two-sans", "cannot be read"),
    ("unreadable-san", "cannot be read"),
    ("x400-san", "cannot be read"),
]


@pytest.mark.parametrize(("name", "bits"), GOOD)
def test_a_good_csr_gives_its_key_as_it_holds_it(name: str, bits: int) -> None:
    csr = parse_csr(read(name))
    assert csr.public_key.key_size == bits
    assert csr.spki in csr.der
    assert csr.spki == csr.public_key.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert csr.request.is_signature_valid


def test_a_csr_in_der_is_the_same_csr() -> None:
    der = der_of("good-p256-linkerd")
    csr = parse_csr_der(der)
    assert csr == parse_csr(read("good-p256-linkerd"))
    assert csr.der == der
    assert isinstance(csr.public_key, ec.EllipticCurvePublicKey)


def test_an_rsa_key_comes_as_the_numbers_in_the_csr() -> None:
    csr = parse_csr(read("good-rsa-2048-istio-agent"))
    assert isinstance(csr.public_key, rsa.RSAPublicKey)
    assert csr.public_key.public_numbers().n == csr_keys.load()["2048"].n


@pytest.mark.parametrize(("name", "rule", "complaint"), BAD)
def test_a_bad_csr_is_refused_by_its_rule(name: str, rule: str, complaint: str) -> None:
    text = read(f"bad-{name}")
    with pytest.raises(CSRError, match=complaint) as refusal:
        parse_csr(text)
    assert refusal.value.rule == rule


@pytest.mark.parametrize(
    ("text", "rule", "complaint"),
    [
        ("", TEXT, "empty"),
        ("\n \r\n", TEXT, "empty"),
        ("not a CSR", TEXT, "no PEM block"),
        ("caf\u00e9", TEXT, "no PEM block"),
        (der_of("good-p256-ztunnel").decode("latin-1"), TEXT, "NUL"),
        ("A" * (4 << 20), "csr.size", "16384"),
        ("\n" * LONGEST_CSR + read("good-p256-ztunnel"), "csr.size", "16384"),
    ],
    ids=["empty", "space", "words", "beyond-ascii", "der", "4-mib", "padded"],
)
def test_what_is_no_pem_at_all_is_refused(text: str, rule: str, complaint: str) -> None:
    with pytest.raises(CSRError, match=complaint) as refusal:
        parse_csr(text)
    assert refusal.value.rule == rule


def test_der_is_held_to_the_same_size() -> None:
    with pytest.raises(CSRError, match="16384") as refusal:
        parse_csr_der(b"\x30" * (LONGEST_CSR + 1))
    assert refusal.value.rule == "csr.size"


@pytest.mark.parametrize(
    "name",
    ["good-p256-istio-agent", "good-p256-ztunnel", "good-rsa-2048-istio-agent"],
)
def test_strict_mode_accepts_what_the_meshes_send(name: str) -> None:
    require_only_names(parse_csr(read(name)), OWN)


def test_strict_mode_accepts_one_of_several_names() -> None:
    other = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/a/sa/b")
    require_only_names(parse_csr(read("good-p256-ztunnel")), (other, *OWN))


@pytest.mark.parametrize(("name", "complaint"), BAD_NAMES)
def test_strict_mode_refuses_whatever_else_is_asked_for(
    name: str, complaint: str
) -> None:
    csr = parse_csr(read(f"bad-names-{name}"))  # sound as a CSR
    with pytest.raises(CSRError, match=complaint) as refusal:
        require_only_names(csr, OWN)
    assert refusal.value.rule == "csr.names"


def test_strict_mode_without_names_refuses() -> None:
    csr = parse_csr(read("good-p256-ztunnel"))
    with pytest.raises(CSRError, match=OTHER_NAME):
        require_only_names(csr, ())


def test_no_vector_is_forgotten() -> None:
    tested = {name for name, _ in GOOD}
    tested |= {f"bad-{name}" for name, _, _ in BAD}
    tested |= {f"bad-names-{name}" for name, _ in BAD_NAMES}
    assert tested == {path.stem for path in FOLDER.glob("*.pem")}


def test_the_vectors_are_what_their_generator_writes() -> None:
    written = {path.name: path.read_bytes() for path in FOLDER.glob("*.pem")}
    assert generate_csrs.build() == written


# What follows looks for an escape: any error but CSRError fails these tests.


def parse_and_read(der: bytes) -> CSR | None:
    try:
        csr = parse_csr_der(der)
        require_only_names(csr, OWN)
    except CSRError:
        return None
    return csr


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    with pytest.raises(CSRError, match="CSR"):
        parse_csr(text)


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_else(der: bytes) -> None:
    assert parse_and_read(der) is None


SEEDS = [der_of(name) for name in ("good-p256-ztunnel", "good-rsa-2048-istio-agent")]


@given(
    der=st.sampled_from(SEEDS),
    place=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 3),
    put=st.binary(max_size=3),
)
def test_no_change_to_a_good_csr_goes_unseen(
    der: bytes, place: float, cut: int, put: bytes
) -> None:
    at = int(place * len(der))
    changed = der[:at] + put + der[at + cut :]
    csr = parse_and_read(changed)
    assert (csr is None) == (changed != der)


P256 = generate_csrs.with_ec(ec.SECP256R1())
ATTRIBUTE = generate_csrs.asks(generate_csrs.san(generate_csrs.uri("spiffe://a/b")))
SUBJECT = generate_csrs.seq(generate_csrs.attribute("3", "web"))


@given(
    part=st.sampled_from(["subject", "attribute", "key"]),
    changes=st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 255)), min_size=1, max_size=4
    ),
)
def test_no_change_that_its_author_signs_raises_anything_else(
    part: str, changes: list[tuple[int, int]]
) -> None:
    parts = {"subject": SUBJECT, "attribute": ATTRIBUTE, "key": P256[0]}
    changed = bytearray(parts[part])
    for at, value in changes:
        changed[at % len(changed)] = value
    parts[part] = bytes(changed)
    key = (parts["key"], *P256[1:])
    der = generate_csrs.csr(key, parts["attribute"], subject=parts["subject"])
    assert parse_and_read(der) is None


@given(st.binary(max_size=60))
def test_no_key_raises_anything_else(spki: bytes) -> None:
    key = (generate_csrs.seq(spki), *P256[1:])
    assert parse_and_read(generate_csrs.csr(key)) is None


NAME = asks(san(dns("a")))
BITS = seq(tlv(0x31, seq(generate_csrs.oid("2.5.4.3"), tlv(3, b"\0\xff"))))
BITS_IN_A_NAME = tlv(0xA4, BITS)
"""A directory name with a common name that is a BIT STRING."""
FEATURES = generate_csrs.oid("1.3.6.1.5.5.7.1.24")
UNKNOWN_FEATURE = seq(FEATURES, tlv(4, seq(generate_csrs.integer(99))))
"""A TLS feature that has no name."""


def parsed(*attributes: bytes, subject: bytes = b"\x30\x00") -> CSR:
    return parse_csr_der(csr(P256, *attributes, subject=subject))


def test_the_vectors_of_linkerd_are_what_their_generator_writes() -> None:
    written = {
        path.name: path.read_bytes() for path in generate_linkerd.FOLDER.glob("*.der")
    }
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
