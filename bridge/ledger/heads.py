"""Signed heads: the last rows of the journals, and the key that signs them.

A chain shows an edit, but neither a cut tail nor a complete replacement. A head in a
file that the owner of the journal cannot edit shows both: the journal has to hold the
row with this hash. `bridge.ledger.sink` is that file.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.chain import Head, canonical
from bridge.system.files import failure_text, locked, read_secret, replace

_CONTEXT = b"meshca-bridge ledger head\n"
"""The first bytes of what is signed, so that the signature fits nothing else."""
FOREIGN = "the head is signed by a key that is not this journal's"
"""What is wrong with a head that another key signed."""
_EXPECTED_KEY = (
    "expected an Ed25519 key in PEM (PKCS#8), as `openssl genpkey -algorithm ed25519` "
    "makes it; without ledger.heads.key the bridge makes its own"
)
_EXPECTED_PUBLIC_KEY = (
    "expected the public half of the Ed25519 key of the heads, in PEM: the bridge "
    "writes it beside the key, as a file that ends in .pub"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """A signed head: one line of a sink."""

    writer: str
    segment: int
    seq: int
    head: str
    """SHA-256 of row `seq`, 64 hex digits."""
    at: int
    """Microseconds since 1970-01-01 UTC."""
    key_id: str
    """SHA-256 of the public key's SubjectPublicKeyInfo in DER."""
    signature: str = ""
    """Ed25519, 128 hex digits."""
    accepted_by: str = ""
    """The operator who accepted a journal that ends here, whatever was published
    before; empty for a head that a server published."""
    attested_by: str = ""
    """The same, in a line of an earlier version."""
    reason: str = ""
    """Why the operator accepted it."""
    line: int = 0
    """The number of this line among the heads of its sink, from 1; 0 in a line of an
    earlier version, which does not have the field `before` either."""
    before: str = ""
    """SHA-256 of all bytes of the sink before this line, 64 hex digits."""
    overrides: int = 0
    """Of an acceptance: the number of the newest line of this writer that is known,
    from the sink or from the journal; 0 without one."""
    overrides_head: str = ""
    """Of an acceptance: the field `head` of that line, if the sink has it."""

    @property
    def operator(self) -> str:
        """The operator who accepted the journal, or empty."""
        return self.accepted_by or self.attested_by

    @property
    def tip(self) -> Head:
        """The head without its signature."""
        return Head(self.segment, self.seq, self.head)

    def message(self) -> bytes:
        """Return the bytes that are signed."""
        values = self.values()
        values.pop("signature", None)
        return _CONTEXT + canonical(values)

    def values(self) -> dict[str, object]:
        """Return the fields of the line, without those that it does not have."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value != _DEFAULTS.get(name)
        }


_DEFAULTS = {
    each.name: each.default
    for each in fields(SignedHead)
    if each.default is not MISSING
}
_NUMBERS = ("segment", "seq", "at", "line", "overrides")


class HeadKey:
    """The Ed25519 key that signs heads."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key at `path` (PKCS#8 in PEM, readable by its owner alone).

        Raises:
            ConfigError: There is no such file, it holds no such key, or other users can
                read it.
        """
        try:
            key = serialization.load_pem_private_key(read_secret(path), password=None)
        except ConfigError as error:
            raise ConfigError(f"ledger.heads.key: {error}", rule=error.rule) from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"ledger.heads.key: {path}: {_EXPECTED_KEY}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"ledger.heads.key: {path}: {_EXPECTED_KEY}")
        return cls(key)

    @classmethod
    def load_or_make(cls, path: Path) -> Self:
        """Read the key at `path`; make it first when absent, with `.pub` beside it.

        Raises:
            ConfigError: See `load`.
            LedgerError: The key cannot be made.
        """
        if not path.exists():
            try:
                _make_once(path)
            except OSError as error:
                raise LedgerError(
                    f"{path}: the key of the heads cannot be made: "
                    f"{failure_text(path, error)}"
                ) from error
        return cls.load(path)

    def sign(self, writer: str, head: Head, at: int, **more: str | int) -> SignedHead:
        """Sign the head of a writer's chain.

        Args:
            writer: The name of the writer.
            head: The last row of its chain.
            at: Microseconds since 1970-01-01 UTC.
            more: `line` and `before`, and the fields of an acceptance.
        """
        values: dict[str, Any] = {
            "writer": writer,
            "segment": head.segment,
            "seq": head.seq,
            "head": head.digest,
            "at": at,
            "key_id": self.key_id,
            **more,
        }
        signature = self._key.sign(SignedHead(**values).message())
        return SignedHead(**values, signature=signature.hex())

    def public_key(self) -> Ed25519PublicKey:
        """Return the public half."""
        return self._key.public_key()


def key_id(key: Ed25519PublicKey) -> str:
    """Return the ID of a key: SHA-256 of its SubjectPublicKeyInfo in DER."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(der).hexdigest()


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM.

    Raises:
        LedgerError: There is no such file, or it holds no Ed25519 key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = _EXPECTED_PUBLIC_KEY
        if isinstance(error, OSError):
            reason = failure_text(path, error)
        raise LedgerError(f"{path}: {reason}", rule="ledger.heads") from error
    if not isinstance(key, Ed25519PublicKey):
        raise LedgerError(f"{path}: {_EXPECTED_PUBLIC_KEY}", rule="ledger.heads")
    return key


def problem_of(head: SignedHead, key: Ed25519PublicKey) -> str:
    """Return why the signature does not verify with `key`, or nothing."""
    if head.key_id != key_id(key):
        return FOREIGN
    try:
        key.verify(bytes.fromhex(head.signature), head.message())
    except (InvalidSignature, ValueError):
        return "the signature of the head is wrong"
    return ""


def parse_head(line: bytes) -> SignedHead | None:
    """Read one line of a sink; return None if it is no head."""
    try:
        values = json.loads(line)
        head = SignedHead(**values)
    except (ValueError, TypeError):
        return None
    kinds: Mapping[str, type] = dict.fromkeys(_NUMBERS, int)
    typed = all(type(values[name]) is kinds.get(name, str) for name in values)
    return head if typed else None


def _make_once(path: Path) -> None:
    # Workers that start together make one key: the second finds the first one's.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(path.parent):
        if not path.exists():
            _make(path)


def _make(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # Each file appears whole: a crash must not leave half a key. The public key comes
    # first, so that no private key is without its public key.
    replace(path.with_suffix(".pub"), public, 0o644)
    replace(path, private)
