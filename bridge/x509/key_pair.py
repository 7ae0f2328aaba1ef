"""A certificate with its private key, and the pair of files that holds both."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.errors import ConfigError
from bridge.system.files import read_public, read_secret
from bridge.x509.pem import parse_certificates, pem_of


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate chain and the private key of its leaf, in PEM."""

    certificate_chain_pem: bytes
    private_key_pem: bytes
    not_before: datetime
    not_after: datetime

    def fault(self, now: datetime) -> str:
        """Return what is wrong with its validity at `now`; empty if nothing is."""
        if self.not_after <= now:
            return f"ended {self.not_after.isoformat()}"
        if self.not_before > now:
            return f"is not valid before {self.not_before.isoformat()}"
        return ""


def read_key_pair(certificate: Path, key: Path) -> KeyPair:
    """Read a certificate, the others of its file, and its key.

    Raises:
        ConfigError: A file cannot be read or holds something else, strangers may read
            the key, or it is another certificate's.
    """
    chain = parse_certificates(read_public(certificate), str(certificate))
    secret = read_secret(key, allow_group_read=True)
    try:
        private_key = load_pem_private_key(secret, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{key}: expected a private key in PEM, not encrypted"
        ) from error
    own = private_key.public_key()
    leaf = next((one for one in chain if _public_key(one, certificate) == own), None)
    if leaf is None:
        raise ConfigError(f"{key}: is not the key of {certificate}")
    # The leaf comes first, and the TLS library gets no text around the blocks.
    given = dict.fromkeys((leaf, *chain))
    return KeyPair(
        certificate_chain_pem=pem_of(*given),
        private_key_pem=secret,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


def _public_key(leaf: x509.Certificate, source: Path) -> object:
    try:
        return leaf.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{source}: expected an RSA or EC certificate") from error
