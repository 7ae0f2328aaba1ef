"""RSA keys for the CSR vectors, weak ones among them.

They are numbers in `csr/rsa_keys.json`, found once by a search that starts from the
key's name: delete an entry, and the same numbers are found again. All are public, and
good for nothing but tests.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FILE = Path(__file__).parent / "csr" / "rsa_keys.json"

_SIEVE = [n for n in range(3, 2000) if all(n % d for d in range(2, math.isqrt(n) + 1))]


@dataclass(frozen=True, slots=True)
class RSAKey:
    p: int
    q: int
    e: int = 65537

    @property
    def n(self) -> int:
        return self.p * self.q

    @classmethod
    def from_hex(cls, p: str, q: str, e: int) -> Self:
        return cls(int(p, 16), int(q, 16), e)

    def sign(self, digest_info: bytes) -> bytes:
        """PKCS#1 v1.5, for hashes that a careful library no longer signs."""
        size = (self.n.bit_length() + 7) // 8
        padded = b"\0\1" + b"\xff" * (size - len(digest_info) - 3) + b"\0" + digest_info
        d = pow(self.e, -1, math.lcm(self.p - 1, self.q - 1))
        return pow(int.from_bytes(padded, "big"), d, self.n).to_bytes(size, "big")


def is_prime(n: int) -> bool:
    """Miller and Rabin, with 40 fixed bases."""
    if n < 2000:
        return n == 2 or n in _SIEVE
    if n % 2 == 0 or any(n % small == 0 for small in _SIEVE):
        return False
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    for base in _SIEVE[:40]:
        x = pow(base, n - 1 >> twos, n)
        if x in {1, n - 1}:
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def prime_at(start: int, e: int = 65537) -> int:
    """The first prime from `start` on that the exponent fits."""
    candidate = start | 1
    while math.gcd(candidate - 1, e) != 1 or not is_prime(candidate):
        candidate += 2
    return candidate


def _large(rng: random.Random, bits: int) -> int:
    return rng.getrandbits(bits) | 3 << bits - 2


def _common(bits: int, e: int = 65537) -> Callable[[random.Random], RSAKey]:
    def search(rng: random.Random) -> RSAKey:
        upper = (bits + 1) // 2
        while True:
            p = prime_at(_large(rng, upper), e)
            q = prime_at(_large(rng, bits - upper), e)
            if (p * q).bit_length() == bits:
                return RSAKey(p, q, e)

    return search


def _close(rng: random.Random) -> RSAKey:
    """Primes that agree in their upper half: round 0 or 1 of Fermat's method."""
    p = prime_at(_large(rng, 1024))
    return RSAKey(p, prime_at(p + (1 << 500)))


def _with_small_factor(rng: random.Random) -> RSAKey:
    return RSAKey(751, prime_at(_large(rng, 2048) // 751))


def _roca(rng: random.Random) -> RSAKey:
    """Primes k * M + (65537**a mod M), M the product of the first 126 primes."""
    product = math.prod([2, *_SIEVE[:125]])

    def one() -> int:
        while True:
            k = _large(rng, 1024) // product
            p = k * product + pow(65537, rng.getrandbits(256), product)
            if is_prime(p):
                return p

    return RSAKey(one(), one())


SEARCHES: dict[str, Callable[[random.Random], RSAKey]] = {
    "2048": _common(2048),
    "3072": _common(3072),
    "4096": _common(4096),
    "1024": _common(1024),
    "512": _common(512),
    "2056": _common(2056),
    "2047": _common(2047),
    "exponent-3": _common(2048, 3),
    "close-primes": _close,
    "small-factor": _with_small_factor,
    "roca": _roca,
}


def load() -> dict[str, RSAKey]:
    """Read the keys, searching for those that are missing."""
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    missing = [name for name in SEARCHES if name not in found]
    for name in missing:
        seed = hashlib.sha256(f"csr vector {name}".encode()).hexdigest()
        key = SEARCHES[name](random.Random(seed))
        found[name] = {"p": f"{key.p:x}", "q": f"{key.q:x}", "e": key.e}
    if missing:
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return {name: RSAKey.from_hex(**found[name]) for name in SEARCHES}
