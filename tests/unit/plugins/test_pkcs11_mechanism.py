"""How a key in a token signs: the mechanism, what it is given, what it returns."""

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from pkcs11 import Mechanism
from pkcs11.exceptions import (
    GeneralError,
    ObjectHandleInvalid,
    PKCS11Error,
    TokenNotRecognised,
)

from bridge.spi import BackendBrokenError
from bridge_pkcs11.cryptoki import CryptokiError, words
from bridge_pkcs11.mechanism import KeyMechanism, mechanism_of
from tests.support.parts.pki import shared_key

ALL = [
    Mechanism.ECDSA,
    Mechanism.SHA256_RSA_PKCS,
    Mechanism.RSA_PKCS,
    Mechanism.EDDSA,
    Mechanism.ECDSA_SHA256,
]


def of(kind: str, *offered: Mechanism) -> KeyMechanism:
    return mechanism_of(shared_key(kind).public_key(), offered)


@pytest.mark.parametrize(
    ("kind", "mechanism", "data", "length"),
    [
        ("p256", Mechanism.ECDSA, hashlib.sha256(b"tbs").digest(), 64),
        ("p384", Mechanism.ECDSA, hashlib.sha384(b"tbs").digest(), 96),
        ("rsa2048", Mechanism.SHA256_RSA_PKCS, b"tbs", 256),
        ("rsa3072", Mechanism.SHA256_RSA_PKCS, b"tbs", 384),
        ("ed25519", Mechanism.EDDSA, b"tbs", 64),
    ],
)
def test_each_kind_of_key_has_one_mechanism(
    kind: str, mechanism: Mechanism, data: bytes, length: int
) -> None:
    found = of(kind, *ALL)
    assert (found.mechanism, found.length) == (mechanism, length)
    assert found.signed_data(b"tbs") == data


def test_without_the_hash_in_the_token_an_rsa_key_gets_the_digest_info() -> None:
    key = shared_key("rsa2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    found = of("rsa2048", Mechanism.RSA_PKCS)
    # A raw PKCS#1 signature over the DigestInfo is that of the hash over the data.
    signature = key.sign(b"tbs", padding.PKCS1v15(), hashes.SHA256())
    number = pow(
        int.from_bytes(signature, "big"), 65537, key.public_key().public_numbers().n
    )
    assert number.to_bytes(256, "big").endswith(b"\x00" + found.signed_data(b"tbs"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("p256", r"lists CKM_ECDSA;"),
        ("rsa2048", r"lists CKM_SHA256_RSA_PKCS or CKM_RSA_PKCS;"),
        ("ed25519", r"lists CKM_EDDSA;"),
    ],
)
def test_a_token_without_the_mechanism_is_told(kind: str, says: str) -> None:
    with pytest.raises(BackendBrokenError, match="no mechanism for the key") as caught:
        of(kind, Mechanism.ECDSA_SHA256)
    assert says.removeprefix("lists ").removesuffix(";") in caught.value.detail


def test_r_and_s_become_der() -> None:
    raw = (7).to_bytes(32, "big") + (1 << 255).to_bytes(32, "big")
    assert decode_dss_signature(of("p256", *ALL).signature(raw)) == (7, 1 << 255)


@pytest.mark.parametrize(
    ("kind", "found"), [("p256", 96), ("p384", 64), ("rsa2048", 384), ("ed25519", 0)]
)
def test_a_signature_of_another_length_is_not_used(kind: str, found: int) -> None:
    with pytest.raises(BackendBrokenError, match="length") as caught:
        of(kind, *ALL).signature(bytes(found))
    assert f"found {found}" in caught.value.detail


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ObjectHandleInvalid(), "CKR_OBJECT_HANDLE_INVALID"),
        (TokenNotRecognised(), "CKR_TOKEN_NOT_RECOGNIZED"),
        (GeneralError("why"), "CKR_GENERAL_ERROR: why"),
        (CryptokiError(0xA4), "CKR_PIN_LOCKED"),
        (PKCS11Error("Unmapped error code 0x68"), "CKR_KEY_FUNCTION_NOT_PERMITTED"),
        (
            PKCS11Error("Unmapped error code 0x80000a01"),
            "the vendor's error 0x80000A01",
        ),
        (CryptokiError(0x7777), "error 0x00007777"),
        (PKCS11Error("not initialized"), "not initialized"),
    ],
)
def test_each_code_has_words(error: PKCS11Error, text: str) -> None:
    assert words(error) == text
