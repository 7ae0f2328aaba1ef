"""Strict PEM: one block and nothing beside it; files of certificates."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ConfigError
from bridge.x509.certificate import key_usage
from bridge.x509.pem import encode_certificate, parse_certificates, parse_one

BEGIN, END = "-----BEGIN X-----", "-----END X-----"
BLOCK = f"{BEGIN}\nAAEC\n{END}\n"  # the bytes 0, 1, 2
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEY = ec.derive_private_key(7, ec.SECP256R1())


@pytest.mark.parametrize(
    "text",
    [
        BLOCK,
        BLOCK.rstrip(),
        f"\n\r\n\t {BLOCK}\n \n",
        BLOCK.replace("\n", "\r\n"),
        f"{BEGIN}\nAA\nEC\n{END}",
    ],
    ids=["plain", "no-final-newline", "space-around", "crlf", "short-lines"],
)
def test_one_block_gives_its_bytes(text: str) -> None:
    assert parse_one(text, "X") == b"\0\1\2"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("AAEC", "no PEM block"),
        (BLOCK + BLOCK, "more than one"),
        (f"{BLOCK}-----BEGIN Y-----\nAAEC\n-----END Y-----\n", "more than one"),
        (f"Subject: x\n{BLOCK}", "text stands before"),
        (f"{BLOCK}x", "does not end"),
        (f"\v{BLOCK}", "text stands before"),  # white space only to some readers
        (f"\ufeff{BLOCK}", "text stands before"),
        (BLOCK.replace("X", "Y"), "does not start"),
        (BLOCK.replace("BEGIN X", "BEGIN  X"), "does not start"),
        (BLOCK.replace("END X", "END Y"), "does not end"),
        (f"{BEGIN}\nAAEC\n", "does not end"),
        ("-----BEGIN X-----END X-----", "stand on their own"),
        (f"{BEGIN}{END}", "stand on their own"),
        (f"{BEGIN}AAEC\n{END}", "stand on their own"),
        (f"{BEGIN}\nAAEC{END}", "stand on their own"),
        (f"{BEGIN}\n{END}", "empty"),
        (f"{BEGIN}\n\n{END}", "empty"),
        (f"{BEGIN}\nA: b\n\nAAEC\n{END}", "headers"),
        (f"{BEGIN}\n\nAAEC\n{END}", "empty line"),
        (f"{BEGIN}\nAA\n\nEC\n{END}", "empty line"),
        (f"{BEGIN}\nAA EC\n{END}", "base64"),
        (f"{BEGIN}\nAAEC \n{END}", "base64"),
        (f"{BEGIN}\nAA\rEC\n{END}", "base64"),
        (f"{BEGIN}\nAA*EC\n{END}", "base64"),
        (f"{BEGIN}\nAA_-\n{END}", "base64"),  # base64url
        (f"{BEGIN}\nAAE\n{END}", "base64"),  # no padding
        (f"{BEGIN}\nAAE=AAEC\n{END}", "base64"),  # padding inside
        (f"{BEGIN}\nAAF=\n{END}", "base64"),  # bits beyond the last byte
        (f"{BEGIN}\nAAEC====\n{END}", "base64"),
        (f"{BEGIN}\nAAE\u0421\n{END}", "base64"),  # a Cyrillic letter
        (f"{BEGIN}\nAA\0EC\n{END}", "NUL"),
        (f"{BLOCK}\0", "NUL"),
        ("A" * (4 << 20), "no PEM block"),
        (f"{BEGIN}\n" * 200_000, "more than one"),
        (f"{BEGIN}\n{'-' * (4 << 20)}\n{END}", "base64"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_anything_else_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_one(text, "X")


@given(st.text(), st.text())
def test_no_text_raises_anything_but_value_error(body: str, around: str) -> None:
    for text in (body, f"{BEGIN}\n{body}\n{END}", f"{around}{BLOCK}{body}"):
        try:
            assert parse_one(text, "X")
        except ValueError:
            continue


@given(st.binary(min_size=1, max_size=300))
def test_what_is_encoded_is_read_again(der: bytes) -> None:
    assert parse_one(encode_certificate(der), "CERTIFICATE") == der


def a_certificate(name: str = "Baer") -> bytes:
    subject, issuer = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        for text in (name, "Eber")
    )
    builder = x509.CertificateBuilder(issuer, subject, KEY.public_key(), 1, NOW, NOW)
    for extension in (
        key_usage(digital_signature=True),
        x509.SubjectKeyIdentifier(b"\1"),
        x509.SubjectAlternativeName([x509.DNSName("ab")]),
    ):
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(KEY, hashes.SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


ONE, OTHER = a_certificate(), a_certificate("Other")
PEM = encode_certificate(ONE)
PRIVATE_KEY = KEY.private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
).decode()


def test_a_certificate_is_written_as_everybody_writes_it() -> None:
    certificate = x509.load_der_x509_certificate(ONE)
    assert encode_certificate(ONE) == certificate.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    "text",
    [
        PEM + encode_certificate(OTHER),
        f"# B\u00fcro 7\n{PEM}\n\n # and\n{encode_certificate(OTHER)}\n",
        (PEM + encode_certificate(OTHER)).replace("\n", "\r\n"),
        (PEM + encode_certificate(OTHER)).rstrip(),
    ],
    ids=["plain", "comments", "crlf", "no-final-newline"],
)
def test_a_file_gives_its_certificates_in_order(text: str) -> None:
    certificates = parse_certificates(text.encode(), "chain.pem")
    assert [c.public_bytes(Encoding.DER) for c in certificates] == [ONE, OTHER]


def changed(old: bytes, new: bytes) -> str:
    """A certificate that parses as a whole, and a part of which does not."""
    assert old in ONE
    assert len(old) == len(new)
    return encode_certificate(ONE.replace(old, new))


NEXT_LINE = PEM.count("\n") + 1
SECOND = rf"chain\.pem: block 2 \(line {NEXT_LINE}\)"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"chain\.pem: expected one or more .* found none"),
        ("# none\n", "found none"),
        ("word", r"chain\.pem: line 1 is neither"),
        (f"{PEM}word\n", rf"chain\.pem: line {NEXT_LINE} is neither"),
        (PEM + PRIVATE_KEY, f"{SECOND} is a private key"),
        (
            PEM + PRIVATE_KEY.replace("PRIVATE", "EC PRIVATE"),
            f"{SECOND} is a private key",
        ),
        (PEM + PEM.replace("CERTIFICATE", "X509 CRL"), f"{SECOND}: expected the label"),
        (PEM + PEM[:-30], f"{SECOND} has no END line"),
        (
            PEM + PEM.replace("END CERTIFICATE", "END X"),
            f"{SECOND}: expected a certificate that can be read: .* does not end",
        ),
        (PEM + PEM.replace("M", "*", 1), f"{SECOND}.*base64"),
        (PEM + PEM.replace("\n", "\n# comment\n", 1), f"{SECOND}.*base64"),
        (PEM + PEM[: len(PEM) // 2] + "\n" + PEM, f"{SECOND}.*more than one"),
        (PEM + encode_certificate(ONE + b"\0"), SECOND),
        (PEM + encode_certificate(b"\x30\0"), SECOND),
        # Each of these raises only when the part is read.
        (PEM + changed(b"\x0c\x04Baer", b"\x14\x04B\xe4er"), SECOND),
        (PEM + changed(b"\x0c\x04Eber", b"\x14\x04\xcbber"), SECOND),
        (PEM + changed(b"\x82\x02ab", b"\xa3\x02\x05\x00"), SECOND),
        (PEM + changed(b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x0e"), SECOND),
        (PEM + changed(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"), SECOND),
        (PEM + changed(b"\x3d\x03\x01\x07", b"\x3d\x03\x01\x7f"), SECOND),
    ],
    ids=[
        *("empty", "comment-only", "word", "word-after", "private-key"),
        *("ec-private-key", "crl", "no-end", "other-end", "base64", "comment-inside"),
        *("cut", "trailing-byte", "no-certificate", "teletex-subject"),
        *("teletex-issuer", "x400-name", "extension-twice", "version"),
        "unknown-curve",
    ],
)
def test_a_bad_file_is_refused_by_name_and_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal:
        parse_certificates(text.encode(), "chain.pem")
    assert refusal.value.rule == "config.pem"


def test_a_file_in_der_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"chain\.pem: expected PEM"):
        parse_certificates(ONE, "chain.pem")


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match="chain"):
        parse_certificates(data, "chain.pem")
    with pytest.raises(ConfigError, match="chain"):
        parse_certificates(encode_certificate(data).encode(), "chain.pem")
