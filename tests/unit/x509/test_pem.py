"""Strict PEM: one block and nothing beside it; files of certificates."""

import base64
import datetime as dt
import json
import re
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
    pkcs12,
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


BOTH = PEM + encode_certificate(OTHER)
AROUND = "Certificate:\n    Data:\n        Serial Number: 1 (0x1)\n"
BAG = "Bag Attributes\n    localKeyID: 54 69 6D\nKey Attributes: <No Attributes>\n"
SESSION = "---\nCertificate chain\n 0 s:CN = x\n   i:CN = y\n"


@pytest.mark.parametrize(
    "data",
    [
        BOTH,
        f"# B\u00fcro 7\n{PEM}\n\n # and\n{encode_certificate(OTHER)}\n",
        BOTH.replace("\n", "\r\n"),
        BOTH.replace("\n", "\r"),
        BOTH.replace("\n", "\r\r\n"),
        BOTH.replace("\n", "\n\n"),
        BOTH.rstrip(),
        BOTH.replace("\n", "\n\t  "),
        BOTH.replace("\n", "  \n"),
        f"\ufeff{PEM}\ufeff{encode_certificate(OTHER)}",
        f"{AROUND}{PEM}{AROUND}{encode_certificate(OTHER)}",
        f"{BAG}subject=CN = x\n\nissuer=CN = y\n\n{BOTH}",
        f"{SESSION}{BOTH}---\n    0000 - 3f 4a 5b 01   .J[.\n",
        f"{BOTH}# {PEM.replace(chr(10), chr(10) + '# ')}",
        f"a certificate\n{BOTH}word",
        b"friendlyName: B\xfcro\n" + BOTH.encode(),
    ],
    ids=[
        *("plain", "comments", "crlf", "cr", "crcrlf", "empty lines", "no final line"),
        *("indented", "blanks behind lines", "byte order marks"),
        *("openssl x509 -text", "bag attributes", "openssl s_client"),
        *("a block in comments", "words", "latin-1 beside it"),
    ],
)
def test_a_file_gives_its_certificates_in_order(data: str | bytes) -> None:
    raw = data if isinstance(data, bytes) else data.encode()
    certificates = parse_certificates(raw, "chain.pem")
    assert [c.public_bytes(Encoding.DER) for c in certificates] == [ONE, OTHER]


def changed(old: bytes, new: bytes) -> str:
    """A certificate that parses as a whole, and a part of which does not."""
    assert old in ONE
    assert len(old) == len(new)
    return encode_certificate(ONE.replace(old, new))


BEGIN_LINE = PEM.splitlines()[0]
NEXT_LINE = PEM.count("\n") + 1
SECOND = rf"chain\.pem: block 2 \(line {NEXT_LINE}\)"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"chain\.pem: expected one or more .* found none"),
        ("# none\n", "found none"),
        ("word", "found none"),
        (
            f"{PEM}x{BEGIN_LINE}\n",
            rf"chain\.pem: line {NEXT_LINE}: .* stand on its own",
        ),
        (PEM.replace("-----B", "----B"), r"chain\.pem: line 1 looks like part"),
        (PEM.replace("-----B", "\u2013\u2013B"), r"chain\.pem: line 1 looks like part"),
        (
            PEM.replace("-----B", "------B"),
            r"chain\.pem: line 1: .* not stand on its own",
        ),
        (PEM + PEM.partition("\n")[2], f"line {NEXT_LINE} looks like part"),
        (PEM + PEM.splitlines()[-1], f"line {NEXT_LINE} looks like part"),
        (PEM + PEM.replace("CERTIFICATE", "X"), f"{SECOND}: expected the label CERT"),
        (PEM + PRIVATE_KEY, f"{SECOND} is a private key"),
        (
            PEM + PRIVATE_KEY.replace("PRIVATE", "EC PRIVATE"),
            f"{SECOND} is a private key",
        ),
        (
            PEM + PEM.replace("CERTIFICATE", "X509 CRL"),
            f"{SECOND}: .*found a CRL: take",
        ),
        (
            PEM + PEM.replace("CERTIFICATE", "CERTIFICATE REQUEST"),
            f"{SECOND}: .* found a CSR: have the CA above sign it$",
        ),
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
        (PEM + changed(b"\x0c\x04Baer", b"\x0c\x04B\xe4er"), SECOND),
        (PEM + changed(b"\x0c\x04Eber", b"\x0c\x04\xcbber"), SECOND),
        (PEM + changed(b"\x82\x02ab", b"\xa3\x02\x05\x00"), SECOND),
        (PEM + changed(b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x0e"), SECOND),
        (PEM + changed(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"), SECOND),
        (PEM + changed(b"\x3d\x03\x01\x07", b"\x3d\x03\x01\x7f"), SECOND),
    ],
    ids=[
        *("empty", "comment-only", "word", "word-before-begin", "four-hyphens"),
        *("dashes", "six-hyphens", "no-begin", "end-alone", "other-label"),
        *(
            "private-key",
            "ec-private-key",
            "crl",
            "csr",
            "no-end",
            "other-end",
            "base64",
            "comment-inside",
        ),
        *("cut", "trailing-byte", "no-certificate", "latin-1-subject"),
        *("latin-1-issuer", "x400-name", "extension-twice", "version"),
        "unknown-curve",
    ],
)
def test_a_bad_file_is_refused_by_name_and_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal:
        parse_certificates(text.encode(), "chain.pem")
    assert refusal.value.rule == "config.pem"


CERTIFICATES = [x509.load_der_x509_certificate(one) for one in (ONE, OTHER)]


PASSWORD = b"changeit"
PKCS12 = pkcs12.serialize_key_and_certificates(
    b"mesh", KEY, CERTIFICATES[0], CERTIFICATES[1:], BestAvailableEncryption(PASSWORD)
)


def trusted(label: str) -> bytes:
    # OpenSSL's trusted certificates have their uses behind them; none are needed.
    return PEM.replace("CERTIFICATE", label).encode()


@pytest.mark.parametrize(
    ("data", "found", "count"),
    [
        (ONE, "a certificate in DER", 1),
        (pkcs7.serialize_certificates(CERTIFICATES, Encoding.DER), "PKCS#7 in DER", 2),
        (pkcs7.serialize_certificates(CERTIFICATES, Encoding.PEM), "PKCS#7", 2),
        (trusted("PKCS #7 SIGNED DATA"), "PKCS#7", 0),
        (PKCS12, "PKCS#12", 2),
        (trusted("TRUSTED CERTIFICATE"), "OpenSSL's trusted certificate", 1),
        (trusted("X509 CERTIFICATE"), "the old label X509 CERTIFICATE", 1),
        (BOTH.encode("utf-16"), "UTF-16", 2),
        (b"\xfe\xff" + BOTH.encode("utf-16-be"), "UTF-16", 2),
        (BOTH.encode("utf-16-le"), "UTF-16", 2),
        (BOTH.encode("utf-16-be"), "UTF-16", 2),
        (base64.b64encode(BOTH.encode()), "base64 of a PEM file", 2),
        (BOTH.replace("-\n-", "--").encode(), "a BEGIN or END line that", 2),
        (BOTH.replace("\n", "").encode(), "a BEGIN or END line that", 2),
        (BOTH.replace("\n", " ").encode(), "a BEGIN or END line that", 2),
        (f"x {BOTH}".encode(), "a BEGIN or END line that", 2),
        (BOTH.replace("\n", "\\n").encode(), r"\n in place of line breaks", 2),
    ],
    ids=[
        *("der", "pkcs7-der", "pkcs7", "pkcs7-label", "pkcs12"),
        *("trusted", "old-label"),
        *("utf-16", "utf-16-be", "utf-16-le-unmarked", "utf-16-be-unmarked"),
        *("base64-of-pem", "glued", "one-line", "folded", "text-before", "escaped"),
    ],
)
def test_another_format_is_named_with_the_command_that_converts_it(
    tmp_path: Path, data: bytes, found: str, count: int
) -> None:
    path = tmp_path / "chain.crt"
    path.write_bytes(data)
    expected = f"expected PEM certificates, found {re.escape(found)}"
    with pytest.raises(ConfigError, match=expected) as refusal:
        parse_certificates(data, f"trust_anchors: {path}")
    command = str(refusal.value).partition("; convert it: ")[2]
    if count:
        # Without a terminal a password is read from the standard input.
        subprocess.run(
            ["sh", "-c", command],
            input=PASSWORD + b"\n",
            start_new_session=True,
            check=True,
            cwd=tmp_path,
        )
        converted = parse_certificates((tmp_path / "chain.crt.pem").read_bytes(), "c")
        assert len(converted) == count


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (bytes.fromhex("feedfeed00000002"), "a Java key store; convert it: keytool"),
        (ONE + ONE, "binary data"),
        (b"\xff", "binary data"),
        (
            b"data:\n  tls.crt: " + base64.b64encode(PEM.encode()),
            "line 2 is base64 of a PEM file",
        ),
        (json.dumps({"a": PEM}).encode(), "line 1 is a PEM text in JSON or YAML"),
    ],
    ids=["jks", "der-twice", "binary", "secret", "json"],
)
def test_a_format_of_other_programs_is_named(data: bytes, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        parse_certificates(data, "chain.pem")


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match="chain"):
        parse_certificates(data, "chain.pem")
    with pytest.raises(ConfigError, match="chain"):
        parse_certificates(encode_certificate(data).encode(), "chain.pem")
