"""Names and numbers that nobody has had before."""

import os
import random
import time

_SERIALS_AT_ONCE = 64
_octets: list[bytes] = []
"""Random octets for serial numbers, each taken once: `list.pop` is atomic."""
_names = random.Random()  # noqa: S311 - seeded by the system; names, not secrets


def new_id() -> str:
    """Return a unique name, 32 hex digits; time first: an index grows at one end."""
    return f"{time.time_ns() // 1_000_000:012x}{_names.getrandbits(80):020x}"


def new_serial() -> int:
    """Return a serial number: positive, 127 random bits, never short."""
    try:
        octets = _octets.pop()
    except IndexError:
        # The system is asked for many at once. No process of ours is a fork of one
        # that has issued, so nobody else has these.
        fresh = os.urandom(16 * _SERIALS_AT_ONCE)
        octets = fresh[:16]
        _octets.extend(fresh[at : at + 16] for at in range(16, len(fresh), 16))
    return int.from_bytes(octets, "big") >> 1 | 1 << 126
