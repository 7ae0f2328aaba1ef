"""Check that a public key is strong enough to be certified.

Accepted are exactly the keys that the meshes use: RSA of 2048, 3072 or 4096 bits with
the exponent 65537, and EC keys on P-256 or P-384; for a CA also P-521 and Ed25519. An
RSA modulus is also checked for the three weaknesses that the public key alone reveals.
Other faults, such as a key that two parties share or one made with poor randomness, are
not found.

Source:
    Baseline Requirements 6.1.6; "The Return of Coppersmith's Attack" (CVE-2017-15361,
    ROCA); CVE-2022-26320 (Fermat); Boulder's goodkey package for the bounds.
"""

import math

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from bridge.errors import CSRError

_RSA_BITS = frozenset({2048, 3072, 4096})
_RSA_EXPONENT = 65537
_UPPER_CA_RSA_BITS = range(2048, 8192 + 1)
_UPPER_CA_RSA_EXPONENTS = range(3, 1 << 31, 2)
_CURVES = frozenset({"secp256r1", "secp384r1"})
_CA_CURVES = _CURVES | {"secp521r1"}

# A modulus with a factor below 752 is no product of two large primes.
_SMALL_PRIMES = tuple(
    n for n in range(2, 752) if all(n % d for d in range(2, math.isqrt(n) + 1))
)
_SMALL_PRODUCT = math.prod(_SMALL_PRIMES)

# A ROCA prime is a power of 65537 modulo each of the first 39 primes (more of them for
# longer keys), and so is a product of two. The table keeps the primes of the 39 for
# which that says something, and as a bit mask the powers of 65537 modulo each.
_ROCA = tuple(
    (prime, mask)
    for prime in _SMALL_PRIMES[2:39]
    if (
        mask := sum(
            1 << r for r in {pow(_RSA_EXPONENT, k, prime) for k in range(prime)}
        )
    ).bit_count()
    < prime - 1
)
_ROCA_PRODUCT = math.prod(prime for prime, _ in _ROCA)

# Fermat looks for a square among (a + i)**2 - n, i below 110. Being a square modulo m
# depends on a and n modulo m alone. So for each m and n one integer answers for every a
# and i at once: its bit j is set if j**2 - n is a square modulo m.
_FERMAT_ROUNDS = 110
_FERMAT_ALL = (1 << _FERMAT_ROUNDS) - 1


def _fermat_patterns(m: int) -> tuple[int, ...]:
    squares = {j * j % m for j in range(m)}
    repeat = sum(1 << k for k in range(0, m + _FERMAT_ROUNDS, m))
    return tuple(
        repeat * sum(1 << j for j in range(m) if (j * j - n) % m in squares)
        for n in range(m)
    )


_FERMAT = tuple(
    (m, _fermat_patterns(m)) for m in (64, 63, 65, 11, 17, 19, 23, 29, 31, 37)
)
_FERMAT_PRODUCT = math.prod(m for m, _ in _FERMAT)


def require_good_key(public_key: PublicKeyTypes, *, what: str = "CSR") -> None:
    """Refuse a public key that no certificate may be issued for.

    An EC point is on its curve already: the key could not be loaded otherwise.

    Args:
        public_key: Any public key of `cryptography`.
        what: Whose key it is, for the message.

    Raises:
        CSRError: The key is of another kind (`csr.key-type`), on another curve
            (`csr.curve`), of another size (`csr.rsa-size`) or exponent
            (`csr.rsa-exponent`), has a factor below 752 (`csr.rsa-small-factor`), the
            structure of CVE-2017-15361 (`csr.rsa-roca`), or factors that 110 rounds of
            Fermat's method find (`csr.rsa-close-primes`).
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if public_key.curve.name not in _CURVES:
            raise CSRError(
                f"the {what}'s EC key must be on P-256 or P-384", rule="csr.curve"
            )
    elif isinstance(public_key, rsa.RSAPublicKey):
        numbers = public_key.public_numbers()
        require_good_rsa(numbers.n, numbers.e, what=what)
    else:
        raise CSRError(
            f"the {what}'s key must be RSA, or EC on P-256 or P-384",
            rule="csr.key-type",
        )


def require_good_ca_key(public_key: PublicKeyTypes) -> None:
    """Refuse a public key that no CA of a chain may have.

    These are more than may be certified for a workload: a CA's key is not one that the
    data plane shows in a handshake.

    Raises:
        CSRError: See `require_good_key`.
    """
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if public_key.curve.name not in _CA_CURVES:
            raise CSRError(
                "a CA's EC key must be on P-256, P-384 or P-521", rule="csr.curve"
            )
    elif isinstance(public_key, rsa.RSAPublicKey):
        numbers = public_key.public_numbers()
        require_good_rsa(numbers.n, numbers.e, what="CA certificate")
    else:
        raise CSRError(
            "a CA's key must be RSA, EC on P-256, P-384 or P-521, or Ed25519",
            rule="csr.key-type",
        )


def require_good_upper_ca_key(public_key: PublicKeyTypes) -> None:
    """Refuse a public key that verifiers do not take from a CA above the issuing CA.

    A trust anchor or an intermediate signs a few certificates in its life: it may have
    an RSA key of 2048 to 8192 bits and any odd exponent from 3 to 2**31.

    Raises:
        CSRError: See `require_good_key`.

    Source:
        `RSA_PKCS1_2048_8192_SHA256` of ring and aws-lc; `checkPub` of Go's crypto/rsa.
    """
    if not isinstance(public_key, rsa.RSAPublicKey):
        require_good_ca_key(public_key)
        return
    numbers = public_key.public_numbers()
    if numbers.n.bit_length() not in _UPPER_CA_RSA_BITS:
        raise CSRError(
            "the RSA key of a CA above the issuing CA must have 2048 to 8192 bits",
            rule="csr.rsa-size",
        )
    if numbers.e not in _UPPER_CA_RSA_EXPONENTS:
        raise CSRError(
            "the RSA exponent of a CA above the issuing CA must be odd, 3 to 2**31",
            rule="csr.rsa-exponent",
        )
    _require_good_modulus(numbers.n, "CA certificate")


def require_good_rsa(n: int, e: int, *, what: str = "CSR") -> None:
    """Refuse a weak RSA key by its modulus and exponent. See `require_good_key`."""
    if n.bit_length() not in _RSA_BITS:
        raise CSRError(
            f"the {what}'s RSA key must have 2048, 3072 or 4096 bits",
            rule="csr.rsa-size",
        )
    if e != _RSA_EXPONENT:
        raise CSRError(
            f"the {what}'s RSA key must have the exponent {_RSA_EXPONENT}",
            rule="csr.rsa-exponent",
        )
    _require_good_modulus(n, what)


def _require_good_modulus(n: int, what: str) -> None:
    if math.gcd(_SMALL_PRODUCT, n % _SMALL_PRODUCT) != 1:
        raise CSRError(
            f"the {what}'s RSA modulus has a small factor", rule="csr.rsa-small-factor"
        )
    if _is_roca(n):
        raise CSRError(
            f"the {what}'s RSA key has the weakness CVE-2017-15361 (ROCA)",
            rule="csr.rsa-roca",
        )
    if _has_close_primes(n):
        raise CSRError(
            f"the {what}'s RSA modulus is a product of primes that are too close",
            rule="csr.rsa-close-primes",
        )


def _is_roca(n: int) -> bool:
    # By chance a good modulus passes all of it about once in 2**28.
    rest = n % _ROCA_PRODUCT
    return all(mask >> rest % prime & 1 for prime, mask in _ROCA)


def _has_close_primes(n: int) -> bool:
    start = math.isqrt(n - 1) + 1
    start_rest, rest = start % _FERMAT_PRODUCT, n % _FERMAT_PRODUCT
    rounds = _FERMAT_ALL
    for m, patterns in _FERMAT:
        rounds &= patterns[rest % m] >> start_rest % m
        if not rounds:
            return False
    while rounds:  # few are left, and for a good modulus hardly ever one
        lowest = rounds & -rounds
        difference = (start + lowest.bit_length() - 1) ** 2 - n
        if math.isqrt(difference) ** 2 == difference:
            return True
        rounds ^= lowest
    return False
