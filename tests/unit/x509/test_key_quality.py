"""Which public keys are good enough, and the arithmetic that finds the weak ones."""

import math
import random

import pytest
from cryptography.hazmat.primitives.asymmetric import (
    ec,
    ed448,
    ed25519,
    rsa,
    x25519,
)
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import CSRError
from bridge.x509 import key_quality
from bridge.x509.key_quality import (
    require_good_ca_key,
    require_good_key,
    require_good_rsa,
    require_good_upper_ca_key,
)
from tests.vectors import csr_keys

RSA = csr_keys.load()


def rsa_key(name: str) -> rsa.RSAPublicKey:
    key = RSA[name]
    return rsa.RSAPublicNumbers(key.e, key.n).public_key()


@pytest.mark.parametrize(
    "key",
    [
        ec.derive_private_key(7, ec.SECP256R1()).public_key(),
        ec.derive_private_key(7, ec.SECP521R1()).public_key(),
        rsa_key("4096"),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ],
    ids=["p-256", "p-521", "rsa-4096", "ed25519"],
)
def test_a_good_ca_key_passes(key: PublicKeyTypes) -> None:
    require_good_ca_key(key)


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (ec.derive_private_key(7, ec.SECP256K1()).public_key(), "csr.curve"),
        (rsa_key("1024"), "csr.rsa-size"),
        (rsa_key("roca"), "csr.rsa-roca"),
        (ed448.Ed448PrivateKey.generate().public_key(), "csr.key-type"),
        (x25519.X25519PrivateKey.generate().public_key(), "csr.key-type"),
    ],
    ids=["secp256k1", "rsa-1024", "roca", "ed448", "x25519"],
)
def test_another_ca_key_is_refused(key: PublicKeyTypes, rule: str) -> None:
    with pytest.raises(CSRError, match="CA") as refusal:
        require_good_ca_key(key)
    assert refusal.value.rule == rule


def upper_key(bits: int, exponent: int) -> rsa.RSAPublicKey:
    # A modulus without a small factor: keys of 8192 bits take long to make.
    modulus = (1 << bits - 1) + 1
    while math.gcd(modulus, key_quality._SMALL_PRODUCT) != 1:
        modulus += 2
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


@pytest.mark.parametrize(
    "key",
    [
        upper_key(2048, 3),
        upper_key(2056, 65537),
        upper_key(8192, 65537),
        upper_key(4096, (1 << 31) - 1),
        ec.derive_private_key(7, ec.SECP521R1()).public_key(),
    ],
    ids=["exponent 3", "odd size", "rsa-8192", "largest exponent", "p-521"],
)
def test_a_good_key_of_a_ca_above_the_issuing_ca_passes(key: PublicKeyTypes) -> None:
    require_good_upper_ca_key(key)


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (upper_key(2047, 65537), "csr.rsa-size"),
        (upper_key(8193, 65537), "csr.rsa-size"),
        (upper_key(2048, (1 << 31) + 1), "csr.rsa-exponent"),
        (rsa_key("roca"), "csr.rsa-roca"),
        (ec.derive_private_key(7, ec.SECP256K1()).public_key(), "csr.curve"),
    ],
    ids=["rsa-2047", "rsa-8193", "exponent", "roca", "secp256k1"],
)
def test_another_key_of_a_ca_above_the_issuing_ca_is_refused(
    key: PublicKeyTypes, rule: str
) -> None:
    with pytest.raises(CSRError, match="CA") as refusal:
        require_good_upper_ca_key(key)
    assert refusal.value.rule == rule


# Readers of CSRs and of key sets refuse these before.
@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (ec.derive_private_key(7, ec.SECP521R1()).public_key(), "csr.curve"),
        (ec.derive_private_key(7, ec.SECP256K1()).public_key(), "csr.curve"),
        (ed25519.Ed25519PrivateKey.generate().public_key(), "csr.key-type"),
    ],
    ids=["p-521", "secp256k1", "ed25519"],
)
def test_another_kind_of_key_is_refused(key: PublicKeyTypes, rule: str) -> None:
    with pytest.raises(CSRError, match="P-256 or P-384") as refusal:
        require_good_key(key)
    assert refusal.value.rule == rule


def test_each_prime_below_752_is_found_as_a_factor() -> None:
    assert len(key_quality._SMALL_PRIMES) == 133  # pi(751)
    for prime in key_quality._SMALL_PRIMES:
        modulus = prime * (((1 << 2048) - 1) // prime)
        with pytest.raises(CSRError, match="small factor"):
            require_good_rsa(modulus, 65537)


def test_the_roca_fingerprint_is_the_published_one() -> None:
    # crocs-muni/roca, detect.py: the primes of its fingerprint, and for two of them
    # the residues, as bit masks.
    published = [11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151]
    assert [prime for prime, _ in key_quality._ROCA] == [*published, 157]
    assert dict(key_quality._ROCA)[11] == 1026
    assert dict(key_quality._ROCA)[13] == 5658


def test_roca_by_chance_is_rare() -> None:
    chance = math.prod(mask.bit_count() / prime for prime, mask in key_quality._ROCA)
    assert chance < 2**-28
    rng = random.Random(1)
    assert not any(key_quality._is_roca(rng.getrandbits(2048) | 1) for _ in range(2000))


def modulus_found_in_round(wanted: int) -> int:
    """An odd a * a - d * d of 2048 bits whose a is `wanted` above its root, rounded."""
    a = (3 << 1022) | 1
    d = math.isqrt(2 * a * wanted) & ~1
    while True:
        n = a * a - d * d
        found = a - math.isqrt(n - 1) - 1
        if found == wanted:
            return n
        d += 2 if found < wanted else -2


@pytest.mark.parametrize("fermat_round", [0, 1, 2, 63, 108, 109])
def test_110_rounds_of_fermat_find_close_primes(fermat_round: int) -> None:
    modulus = modulus_found_in_round(fermat_round)
    assert key_quality._has_close_primes(modulus)


def test_the_111th_round_is_not_made() -> None:
    assert not key_quality._has_close_primes(modulus_found_in_round(110))


def test_a_square_is_a_product_of_close_primes() -> None:
    assert key_quality._has_close_primes(RSA["2048"].p ** 2)


@given(st.integers(2, 1 << 40))
def test_the_residues_leave_out_no_square(half: int) -> None:
    n = 2 * half + 1
    start = math.isqrt(n - 1) + 1
    rests = [(start + i) ** 2 - n for i in range(110)]
    plainly = any(math.isqrt(rest) ** 2 == rest for rest in rests)
    assert key_quality._has_close_primes(n) == plainly
