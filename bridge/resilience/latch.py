"""The latch: what must not be tried again until an operator acts, on this host.

A credential that a backend refused is not shown to it again: an HSM locks after a few
wrong PINs, and a fleet that restarts has many tries. An issuing CA that signed
something else than what was asked stays stopped. Both outlive the process: they stand
in a file that all workers of this host share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Latch:
    """The latch of one host. Every process of the host may have an object of its own.

    Args:
        path: The file; None where nothing outlives the object.
    """

    path: Path | None = None

    @contextmanager
    def attempt(self, scope: str, secret: bytes) -> Iterator[None]:
        """Hold the one login that may be tried with a credential.

        The attempt is on disk before the block begins. A block that ends without an
        error proves the credential. A `BackendCredentialError` latches it, and so does
        the death of the process inside the block, and a `BackendTimeoutError`, unless
        the credential was proven before. After any other error the attempt counts as
        not made.

        Args:
            scope: What locks after too many attempts, such as a token's serial number.
            secret: The PIN, password or secret.

        Raises:
            BackendCredentialError: The credential was refused before, or is just being
                tried by another process for the first time.
        """
        yield

    def is_proven(self, scope: str, secret: bytes) -> bool:
        """Return whether a login with this credential has succeeded before."""
        return False
