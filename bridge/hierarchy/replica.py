"""Copies a chain with throwaway keys, to prove which names the real one would permit.

Negative proofs are never made with the real key. The copy has the same names, the same
validity and the same extensions in every tier, and keys that were made for this proof.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from secrets import randbits
from shutil import which

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from bridge.sdk import algorithm_of
from bridge.x509.algorithm import CAPrivateKey, CAPublicKey, issuer_key, signature_of
from bridge.x509.certificate import readable
from bridge.x509.der import splice
from bridge.x509.leaf_profile import LeafProfile
from bridge.x509.path import ValidatedChain
from bridge.x509.pem import pem_of

_REPLACED = (
    x509.SubjectKeyIdentifier.oid,
    x509.AuthorityKeyIdentifier.oid,
)
_LEAF_LIFE = timedelta(minutes=5)
_OPENSSL_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Replica:
    """A copy of a chain with new keys. Its issuing key may sign any name."""

    certificates: tuple[x509.Certificate, ...]
    """Issuing CA first, trust anchor last."""
    issuing_key: CAPrivateKey

    def leaf(self, names: Sequence[x509.GeneralName], now: datetime) -> bytes:
        """Issue a leaf for `names` in DER, also if the constraints forbid them."""
        profile = LeafProfile(self.certificates[0])
        start = now.replace(microsecond=0)
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        tbs = profile.tbs(
            key, names, randbits(126) | 1, start - _LEAF_LIFE, start + _LEAF_LIFE
        )
        return splice(tbs, profile.algorithm.der, _sign(self.issuing_key, tbs))


def replicate(chain: ValidatedChain) -> Replica:
    """Copy `chain`, from the trust anchor down, with new keys of the same kind."""
    return replicate_path([original for _, original in chain.tiers()])


def replicate_path(path: Sequence[x509.Certificate]) -> Replica:
    """Copy a path with new keys of the same kind.

    Args:
        path: The CA whose leaves are to be tried first, the trust anchor last.
    """
    above: tuple[x509.Certificate, CAPrivateKey] | None = None
    copies: list[x509.Certificate] = []
    for tier, original in enumerate(reversed(path)):
        key = key_like(issuer_key(original), tier)
        copy = _copy(original, key, above)
        copies.insert(0, copy)
        above = (copy, key)
    if above is None:
        raise ValueError("a chain has at least one tier")
    return Replica(tuple(copies), above[1])


def openssl_accepts(replica: Replica, leaf: bytes) -> bool | None:
    """Return whether `openssl verify` accepts the leaf; None without `openssl`."""
    leaves = [x509.load_der_x509_certificate(leaf)]
    found = openssl_verdicts(replica.certificates, leaves, "-partial_chain")
    return found[0] if found else None


def openssl_verdicts(
    path: Sequence[x509.Certificate], leaves: Sequence[x509.Certificate], *options: str
) -> list[bool]:
    """Return for each leaf whether `openssl verify` accepts it.

    Args:
        path: CAs in any order, the one that is trusted last.
        leaves: Each is verified for itself.
        options: More arguments of `openssl verify`.

    Returns:
        Nothing without `openssl`.
    """
    program = which("openssl")
    if program is None or not leaves:
        return []
    *below, anchor = path
    given = {str(index): [leaf] for index, leaf in enumerate(leaves)}
    given |= {"anchor": [anchor], "untrusted": below}
    with tempfile.TemporaryDirectory() as folder:
        for name, certificates in given.items():
            (Path(folder) / name).write_bytes(pem_of(*certificates))
        untrusted = ["-untrusted", "untrusted"] if below else []
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            [
                # The search path may have a relative folder.
                *(str(Path(program).absolute()), "verify", *options),
                *("-CAfile", "anchor", *untrusted),
                *map(str, range(len(leaves))),
            ],
            cwd=folder,
            capture_output=True,
            check=False,
            timeout=_OPENSSL_SECONDS,
        )
    accepted = {*done.stdout.decode(errors="replace").splitlines()}
    return [f"{index}: OK" in accepted for index in range(len(leaves))]


def _copy(
    original: x509.Certificate,
    key: CAPrivateKey,
    above: tuple[x509.Certificate, CAPrivateKey] | None,
) -> x509.Certificate:
    signer = above[1] if above else key
    original = readable(original)
    builder = (
        x509.CertificateBuilder()
        .subject_name(original.subject)
        .issuer_name(original.issuer if above else original.subject)
        .public_key(key.public_key())
        .serial_number(randbits(126) | 1)
        .not_valid_before(original.not_valid_before_utc)
        .not_valid_after(original.not_valid_after_utc)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
    )
    for extension in original.extensions:
        if extension.oid not in _REPLACED:
            builder = builder.add_extension(extension.value, extension.critical)
    if original.version is not x509.Version.v3:
        # Verifiers take an anchor of version 1 for a CA.
        is_ca = x509.BasicConstraints(ca=True, path_length=None)
        builder = builder.add_extension(is_ca, critical=True)
    return builder.sign(signer, algorithm_of(signer.public_key()).hash)


def key_like(key: CAPublicKey, tier: int = 0) -> CAPrivateKey:
    """Return a throwaway key that signs as the private half of `key` does.

    Args:
        key: The key of the original.
        tier: RSA keys take long to make. Those of a tier are one and the same in this
            process; two tiers of a path never share a key.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        return ec.generate_private_key(key.curve)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ed25519.Ed25519PrivateKey.generate()
    return _rsa_key(tier)


@cache
def _rsa_key(_tier: int) -> rsa.RSAPrivateKey:
    # The size does not matter for names; 2048 bits are made quickly.
    return rsa.generate_private_key(65537, 2048)


def _sign(key: CAPrivateKey, data: bytes) -> bytes:
    return signature_of(key, algorithm_of(key.public_key()), data)
