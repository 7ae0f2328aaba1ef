"""Keys and signatures that no data plane reads are told, whatever is served.

That no data plane reads them is in `tests/interop/planes`.
"""

import re
from datetime import UTC, datetime

import pytest
from cryptography import x509

from bridge.x509.algorithm import key_encoding_problem, signature_problem
from tests.interop.planes.certificates import build
from tests.interop.planes.oddities import change_of


def odd(oddity: str) -> x509.Certificate:
    chain = build(change_of(oddity, "intermediate"), datetime.now(UTC))
    return x509.load_der_x509_certificate(chain.intermediate)


@pytest.mark.parametrize(
    ("oddity", "text"),
    [
        ("rsa-pss-key", "restricted to RSA-PSS, which no data plane reads"),
        ("rsa-pss-key-with-parameters", "restricted to RSA-PSS"),
        ("rsa-key-without-null", "the kind rsaEncryption .* RSA with the parameters"),
        ("explicit-parameters-key", "the kind id-ecPublicKey .* the curve by its name"),
        ("hybrid-point-key", "the kind id-ecPublicKey .* the point not hybrid"),
        ("secp256k1-key", "no data plane reads: expected RSA with 2048"),
        ("ed448-key", "no data plane reads: expected RSA with 2048"),
        ("compressed-point-key", ""),
        ("p521-key", ""),
        ("ed25519-key", ""),
        ("rsa-exponent-3-key", ""),
    ],
)
def test_key_that_no_data_plane_reads(oddity: str, text: str) -> None:
    problem = key_encoding_problem(odd(oddity))
    assert (problem is None) == (text == "")
    assert re.search(text, problem or "")


@pytest.mark.parametrize(
    ("oddity", "text"),
    [
        ("rsa-sha1-signature", "is signed with sha1WithRSAEncryption"),
        ("rsa-md5-signature", "is signed with md5WithRSAEncryption"),
        ("other-algorithm-inside", "one signature algorithm inside and another one"),
        ("pss-sha256-signature", ""),
        ("pss-sha512-signature", ""),
        ("rsa-signature-without-null", ""),
        ("ecdsa-sha512-signature-of-p256", ""),
        ("plain", ""),
    ],
)
def test_signature_that_no_data_plane_reads(oddity: str, text: str) -> None:
    problem = signature_problem(odd(oddity))
    assert (problem is None) == (text == "")
    assert text in (problem or "")
