"""Signed heads: the last rows of the journals, published in a sink.

A chain shows an edit, but neither a cut tail nor a complete replacement. A head in a
file that the owner of the journal cannot edit shows both: the journal has to hold the
row with this hash.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
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
from bridge.ledger.chain import Head, canonical, microseconds
from bridge.system.clock import Clock
from bridge.system.files import failure_text, locked, read_secret, replace

_CONTEXT = b"meshca-bridge ledger head\n"
"""The first bytes of what is signed, so that the signature fits nothing else."""
_BLOCK_BYTES = 1 << 16
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
        """Return the fields of the line."""
        return {name: value for name, value in asdict(self).items() if value != ""}


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

    def sign(self, writer: str, head: Head, at: int, **acceptance: str) -> SignedHead:
        """Sign the head of a writer's chain.

        Args:
            writer: The name of the writer.
            head: The last row of its chain.
            at: Microseconds since 1970-01-01 UTC.
            acceptance: `accepted_by` and `reason`, if an operator accepts a journal.
        """
        values: dict[str, Any] = {
            "writer": writer,
            "segment": head.segment,
            "seq": head.seq,
            "head": head.digest,
            "at": at,
            "key_id": self.key_id,
            **acceptance,
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
        return "the head is signed by a key that is not this journal's"
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
    kinds: Mapping[str, type] = dict.fromkeys(("segment", "seq", "at"), int)
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


class HeadSink:
    """A file of signed heads, one JSON line each; several writers may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, head: SignedHead) -> None:
        """Write one head and return when it is on disk.

        Raises:
            LedgerError: The head may not be on disk.
        """
        line = canonical(head.values()) + b"\n"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o600)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    # A crash tore the line before. It stays, and the head gets a line
                    # of its own.
                    line = b"\n" + line
                if os.write(fd, line) != len(line):
                    raise OSError("the disk wrote only a part")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise LedgerError(
                "the head of the ledger cannot be published",
                rule="ledger.heads",
                detail=f"{self.path}: {error.strerror or error}",
            ) from error

    def read(self) -> Iterator[tuple[int, SignedHead]]:
        """Yield line number and head of each whole line.

        Raises:
            LedgerError: A line is not a head. The message names file and line.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if (head := parse_head(line)) is not None:
                    yield number, head
                elif line.endswith(b"}\n"):
                    raise LedgerError(f"{self.path}:{number}: this is not a head")

    def newest(self, writer: str) -> SignedHead | None:
        """Return the newest head of `writer`, read from the end of the file.

        Raises:
            LedgerError: The file cannot be read.
        """
        try:
            for line in _lines_backwards(self.path):
                head = parse_head(line)
                if head is not None and head.writer == writer:
                    return head
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(
                f"{self.path}: the published heads cannot be read: {error.strerror}",
                rule="ledger.heads",
            ) from error
        return None


class HeadPublisher:
    """Signs the head of a writer and appends it to the sink, if there are new rows."""

    def __init__(self, writer: str, key: HeadKey, sink: HeadSink, clock: Clock) -> None:
        self._writer = writer
        self._key = key
        self._sink = sink
        self._clock = clock
        self._published: Head | None = None

    def publish(self, head: Head) -> None:
        """Publish `head`, unless it is the last published head.

        Raises:
            LedgerError: See `HeadSink.append`.
        """
        if head != self._published:
            at = microseconds(self._clock)
            self._sink.append(self._key.sign(self._writer, head, at))
            self._published = head


def _lines_backwards(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        start, rest = file.seek(0, os.SEEK_END), b""
        while start > 0:
            step = min(_BLOCK_BYTES, start)
            start -= step
            file.seek(start)
            rest, *lines = (file.read(step) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest
