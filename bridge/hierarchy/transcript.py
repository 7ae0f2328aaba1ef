"""The transcript of a ceremony: JSON lines, each joined to the line before by its hash.

A line is an *entry* (what a command did) or a *signature* of an officer over all lines
before it. The signed part of the file ends with the signatures of a quorum. How each
change of the file is found:

* an edit, a line that is gone from the middle, and another order: by the hashes, and by
  the signatures where somebody computes the hashes anew;
* a cut within a line: by the missing newline;
* lines cut off at the end: by the missing quorum; back to an earlier quorum, by the
  files of the ceremony that no entry names any more; and with these files gone too, by
  the digest of the last line, which the officers note on paper (`Record.head`).
"""

import json
import platform
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import cryptography
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)
from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from bridge import __version__
from bridge.config.types import Section
from bridge.errors import ConfigError, CSRError
from bridge.hierarchy.schema import Loaded
from bridge.ledger.chain import GENESIS, canonical
from bridge.spi import Signer
from bridge.system.files import locked, read_public, replace
from bridge.x509.algorithm import CA_KEYS, CAPublicKey, algorithm_of, require_signature
from bridge.x509.certificate import UNREADABLE
from bridge.x509.key_quality import require_good_ca_key

FILE_NAME = "transcript.jsonl"
"""The name of the transcript in the folder of a ceremony's files."""
FORMAT: Literal[1] = 1
HIERARCHY = "hierarchy"
"""The detail of an entry that has the SHA-256 of the hierarchy file."""
CA = "ca"
"""The detail of an entry that has the CA whose CRL it is about."""
CRL_NUMBER = "crl_number"
"""The detail of an entry that has the number of the CRL."""
TBS = "tbs_sha256"
"""The detail of an entry from before a signature: the SHA-256 of what was signed."""
UNRECORDED = frozenset({FILE_NAME, "manifest.json", "record.html", ".lock"})
"""Files of a ceremony's folder that change with each command, that the transcript
itself becomes, or that hold nothing."""

_DOMAIN = b"meshca ceremony transcript, signature of an officer\n"
_MODE = 0o644
_CLOCK_SLACK = timedelta(minutes=5)

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class HSM(Section):
    """The device that held the key, as it tells of itself."""

    serial: str
    firmware: str
    model: str = ""


class CeremonyStep(Section):
    """What one command did."""

    format: Literal[1] = FORMAT
    kind: Literal["entry"] = "entry"
    number: int
    """From 1, of all lines."""
    time: AwareDatetime
    operator: str
    command: str
    files: dict[str, _Digest] = Field(default_factory=dict)
    """SHA-256 by path. A path of the ceremony's own folder is relative to it."""
    details: dict[str, str] = Field(default_factory=dict)
    """What else the command says, such as `ca` and `hierarchy`."""
    hsm: HSM | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    previous: _Digest
    """SHA-256 of the line before, without its newline; zeros in the first line."""


class OfficerSignature(Section):
    """An officer's signature over all lines before it."""

    format: Literal[1] = FORMAT
    kind: Literal["signature"] = "signature"
    number: int
    time: AwareDatetime
    officer: str
    public_key: str
    """SubjectPublicKeyInfo in DER, in base64."""
    previous: _Digest
    signature: str
    """In base64, over this line without the signature, see `signed_bytes`."""

    def signed_bytes(self) -> bytes:
        """Return what the signature is over."""
        return _DOMAIN + canonical(self.model_dump(mode="json", exclude={"signature"}))


Line = Annotated[CeremonyStep | OfficerSignature, Field(discriminator="kind")]
_LINE: TypeAdapter[CeremonyStep | OfficerSignature] = TypeAdapter(Line)


@dataclass(frozen=True, slots=True)
class Record:
    """A transcript whose hashes and signatures are right."""

    path: Path
    lines: tuple[CeremonyStep | OfficerSignature, ...]
    head: str
    """SHA-256 of the last line; zeros without a line."""

    @property
    def entries(self) -> tuple[CeremonyStep, ...]:
        """The lines that tell what was done."""
        return tuple(one for one in self.lines if isinstance(one, CeremonyStep))

    @property
    def signatures(self) -> tuple[OfficerSignature, ...]:
        """The signatures after the last entry: they are over all entries."""
        found: list[OfficerSignature] = []
        for line in reversed(self.lines):
            if not isinstance(line, OfficerSignature):
                break
            found.insert(0, line)
        return tuple(found)

    @property
    def files(self) -> dict[str, str]:
        """The last digest that an entry names for each path."""
        return {
            path: one for entry in self.entries for path, one in entry.files.items()
        }

    def crl_numbers(self, ca: str) -> frozenset[int]:
        """Return the numbers of the CRLs of a CA that were made.

        Args:
            ca: The name of the CA.
        """
        return frozenset(
            int(number)
            for one in self.entries
            if one.details.get(CA) == ca and TBS not in one.details
            if (number := one.details.get(CRL_NUMBER, "")).isdecimal()
        )


class Transcript:
    """Writes a transcript. After a crash the file has all of a line or none of it.

    Args:
        path: The file; it may be absent, its folder may not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        command: str,
        operator: str,
        at: datetime,
        *,
        files: Mapping[str, str] | None = None,
        details: Mapping[str, str] | None = None,
        hsm: HSM | None = None,
    ) -> None:
        """Add an entry, durably.

        Args:
            command: What was run, such as `sign eu`; never with a secret.
            operator: The person, or the name of the account.
            at: The time of the command.
            files: See `CeremonyStep.files`: what was read and what was written.
            details: See `CeremonyStep.details`.
            hsm: The device that signed, where one did.

        Raises:
            ConfigError: The transcript does not verify, cannot be written, or ends
                later than `at`.
        """
        with _writing(self.path):
            record = Record(self.path, (), GENESIS)
            if self.path.exists():
                record = read(self.path)
            entry = CeremonyStep(
                number=len(record.lines) + 1,
                time=at.astimezone(UTC),
                operator=operator,
                command=command,
                files=dict(files or {}),
                details=dict(details or {}),
                hsm=hsm,
                versions=_versions(),
                previous=record.head,
            )
            self._write(record, entry)

    def sign(
        self, officer: str, signer: Signer, at: datetime, *, timeout: float
    ) -> None:
        """Add the signature of an officer over all lines so far.

        Args:
            officer: The name in the hierarchy file.
            signer: The officer's key.
            at: The time.
            timeout: Seconds that the key may take.

        Raises:
            ConfigError: As `append`; or there is nothing to sign, or this key has
                signed it already.
            BackendError: The key's device does not sign.
        """
        with _writing(self.path):
            record = read(self.path)
            key = signer.public_key()
            line = OfficerSignature(
                number=len(record.lines) + 1,
                time=at.astimezone(UTC),
                officer=officer,
                public_key=b64encode(spki_of(key)).decode(),
                previous=record.head,
                signature="",
            )
            if not record.entries:
                raise _bad(f"{self.path}: it has no entry that could be signed")
            if line.public_key in {one.public_key for one in record.signatures}:
                raise _bad(
                    f"{self.path}: the key of {officer} has signed this already: "
                    "expected the key of another officer"
                )
            algorithm = algorithm_of(key)
            signature = signer.sign(line.signed_bytes(), algorithm, timeout=timeout)
            done = line.model_copy(update={"signature": b64encode(signature).decode()})
            _require_signed(done, str(self.path))
            self._write(record, done)

    def _write(self, record: Record, line: CeremonyStep | OfficerSignature) -> None:
        last = record.lines[-1].time if record.lines else line.time
        if line.time < last - _CLOCK_SLACK:
            raise _bad(
                f"{self.path}: its last line is of {last:%Y-%m-%dT%H:%M:%SZ}, and the "
                f"clock says {line.time:%Y-%m-%dT%H:%M:%SZ}: set the machine's clock; "
                "if the last line's time is the wrong one, begin with a new folder"
            )
        data = b"" if not record.lines else self.path.read_bytes()
        replace(self.path, data + _encoded(line) + b"\n", _MODE)


def read(path: Path) -> Record:
    """Read a transcript, and verify its hashes and all signatures in it.

    Raises:
        ConfigError: It cannot be read, was changed, or was made by a newer version. The
            message names the first line that is wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _bad(f"{path}: cannot be read: {error.strerror}") from error
    if data and not data.endswith(b"\n"):
        number = data.count(b"\n") + 1
        raise _bad(f"{path}:{number}: the line has no end: the file was cut off here")
    lines: list[CeremonyStep | OfficerSignature] = []
    head = GENESIS
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        line = _parsed(raw, f"{path}:{number}")
        if line.previous != head or line.number != number:
            raise _bad(
                f"{path}:{number}: it does not follow the line before: one of the two "
                f"was changed, or lines were taken out, put in or reordered (expected "
                f"number {number} and previous {head}, found number {line.number} and "
                f"previous {line.previous})"
            )
        if isinstance(line, OfficerSignature):
            _require_signed(line, f"{path}:{number}")
        lines.append(line)
        head = sha256(raw).hexdigest()
    return Record(path, tuple(lines), head)


def problems(
    record: Record,
    officers: Mapping[str, CAPublicKey],
    quorum: int,
    *,
    hierarchy: str,
    head: str | None = None,
) -> Iterator[str]:
    """Yield why a transcript that can be read is not the whole record of a ceremony.

    Args:
        record: The transcript.
        officers: The officers' keys by name, from the hierarchy file.
        quorum: How many of them have to sign.
        hierarchy: SHA-256 of the hierarchy file.
        head: The digest of the last line, as somebody noted it.
    """
    if not record.entries:
        yield "it has no entry: expected what was done in the ceremony"
        return
    if head is not None and head != record.head:
        yield (
            f"its last line has the SHA-256 {record.head}, and {head} was noted: lines "
            "at the end were cut off or added since"
        )
    yield from _quorum_problems(record, officers, quorum)
    recorded = record.entries[-1].details.get(HIERARCHY)
    if recorded is not None and recorded != hierarchy:
        yield (
            f"the hierarchy file has the SHA-256 {hierarchy}, and the last entry names "
            f"{recorded}: verify with the file as it was in the ceremony"
        )
    yield from file_problems(record)


def file_problems(record: Record) -> Iterator[str]:
    """Yield which files of the ceremony's folder are not as the entries say."""
    folder, recorded = record.path.parent, record.files
    for path in sorted(_files_in(folder)):
        expected = recorded.get(path)
        if expected is None and path not in UNRECORDED:
            yield (
                f"{folder / path}: no entry names this file: entries were cut off, or "
                "the file does not belong here; then move it elsewhere"
            )
        elif expected is not None and path != FILE_NAME:
            found = digest_of_file(folder / path)
            if found != expected:
                yield (
                    f"{folder / path}: it was changed since the ceremony (expected the "
                    f"SHA-256 {expected}, found {found})"
                )


def officers_of(loaded: Loaded) -> dict[str, CAPublicKey]:
    """Read the officers' public keys, by the officer's name.

    Raises:
        ConfigError: A file cannot be read, is no public key in PEM, has a key of a kind
            that signs nothing here, or two officers have one name or one key.
    """
    found: dict[str, CAPublicKey] = {}
    for officer in loaded.file.officers:
        key = officer_key(officer.public_key)
        if officer.name in found or key in found.values():
            raise _bad(
                f"{officer.public_key}: two officers have this name or this key: "
                "expected a person and a key for each, as a quorum of one person is "
                "none"
            )
        found[officer.name] = key
    return found


def officer_key(path: Path) -> CAPublicKey:
    """Read the public key of an officer.

    Raises:
        ConfigError: The file cannot be read, is no public key in PEM, or has a key of a
            kind that signs nothing here.
    """
    expected = f"{path}: expected a public key in PEM: {CA_KEYS}"
    try:
        key = load_pem_public_key(read_public(path))
        require_good_ca_key(key)
    except CSRError as error:
        raise _bad(f"{path}: {error}") from None
    except UNREADABLE as error:
        raise _bad(f"{expected} (found none)") from error
    if not isinstance(key, CAPublicKey):
        raise _bad(f"{expected} (found another kind)")
    return key


def require_officer(
    name: str, key: object, officers: Mapping[str, CAPublicKey]
) -> None:
    """Refuse a key that is not the one of the officer in the hierarchy file.

    Raises:
        ConfigError: No officer has this name, or the officer has another key.
    """
    if name not in officers:
        known = ", ".join(sorted(officers)) or "none"
        raise _bad(f"no officer is called {name!r}: the hierarchy file has {known}")
    if officers[name] != key:
        raise _bad(
            f"the key is not the one that the hierarchy file has for {name}: expected "
            f"the private half of public_key of officer {name}"
        )


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hex.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _bad(f"{path}: cannot be read: {error.strerror}") from error


def spki_of(key: object) -> bytes:
    """Return a CA's public key as SubjectPublicKeyInfo in DER.

    Raises:
        ConfigError: It is of a kind that no officer may have.
    """
    if not isinstance(key, CAPublicKey):
        raise _bad(f"an officer's key cannot be {type(key).__name__}")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _quorum_problems(
    record: Record, officers: Mapping[str, CAPublicKey], quorum: int
) -> Iterator[str]:
    by_key = {b64encode(spki_of(key)).decode(): name for name, key in officers.items()}
    signed = {one.public_key for one in record.signatures} & {*by_key}
    for one in record.signatures:
        if by_key.get(one.public_key) != one.officer:
            yield (
                f"line {one.number} is signed as {one.officer}, with a key that is not "
                "this officer's in the hierarchy file"
            )
    if len(signed) < quorum:
        names = ", ".join(sorted(by_key[key] for key in signed)) or "nobody"
        yield (
            f"quorum not met: expected the signatures of {quorum} officers over all "
            f"entries (found {len(signed)}: {names}): lines at the end were cut off, "
            "or officers have yet to sign with `meshca hierarchy transcript sign`"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        with locked(path.parent):
            yield
    except OSError as error:
        raise _bad(f"{path}: cannot be written: {error.strerror}") from error


def _files_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _parsed(raw: bytes, place: str) -> CeremonyStep | OfficerSignature:
    try:
        line = _LINE.validate_json(raw)
    except ValidationError as error:
        newer = _format_of(raw)
        if newer > FORMAT:
            raise _bad(
                f"{place}: its format is {newer}, and this release reads {FORMAT}: use "
                "the release of meshca that wrote it, or a later one"
            ) from error
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise _bad(f"{place}: no line of a transcript, or changed: {reason}") from error
    if _encoded(line) != raw:
        raise _bad(
            f"{place}: the line was changed: expected JSON as meshca writes it, with "
            "sorted keys and without blanks"
        )
    return line


def _format_of(raw: bytes) -> int:
    try:
        found = json.loads(raw)["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return found if isinstance(found, int) else 0


def _require_signed(line: OfficerSignature, place: str) -> None:
    try:
        key = load_der_public_key(b64decode(line.public_key, validate=True))
        if not isinstance(key, CAPublicKey):
            raise TypeError(type(key).__name__)
        signature = b64decode(line.signature, validate=True)
        if b64encode(signature).decode() != line.signature:
            raise ValueError("bits behind the end of the base64")
        require_signature(key, algorithm_of(key), signature, line.signed_bytes())
    except (InvalidSignature, ConfigError, *UNREADABLE) as error:
        raise _bad(
            f"{place}: the signature of {line.officer} is not over these lines: one of "
            "them was changed, or the signature"
        ) from error


def _encoded(line: CeremonyStep | OfficerSignature) -> bytes:
    return canonical(line.model_dump(mode="json"))


@cache
def _versions() -> dict[str, str]:
    return {
        "meshca-bridge": __version__,
        "cryptography": cryptography.__version__,
        "openssl": backend.openssl_version_text(),
        "python": platform.python_version(),
    }


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.transcript")
