"""The file of the latch: what it holds, and how the processes of a host share it.

The file is small, read whole, and replaced whole and durably under a lock. Who reads it
without the lock gets the state before a change or after it.
"""

import hashlib
import json
import os
import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from bridge.errors import LedgerError
from bridge.system import files

STATE_FOLDER = "state"
"""The folder of the file. It is beside the folders of the writers of the ledger."""
RULE = "ledger.latch"
"""The rule of a latch whose file cannot be used."""
_FORMAT = 1
_LOCK_SECONDS = 5.0
"""A change takes milliseconds. A process that is stopped within it holds up others."""
_CLEARED = 256
"""So many clearances are remembered, until the archive has them."""
_PROVEN = 8
"""So many proven credentials of a scope are remembered; earlier ones are unused."""


_WAY_OUT = (
    "Restore the file, or move it away: what it held is then tried again; `meshca "
    "ledger search --kind latched`, or `stopped`, shows what that was"
)


class Kind(StrEnum):
    """What is latched."""

    CREDENTIAL = "credential"
    """A PIN, password or secret."""
    ISSUING_CA = "issuing_ca"
    """An issuing CA, after a mis-issuance."""
    BAR = "bar"
    """A certificate, key or identity that an operator barred."""


class State(StrEnum):
    """The state of an entry."""

    TRYING = "trying"
    """A first login is under way, or its process has died."""
    PROVEN = "proven"
    """A login has succeeded."""
    REFUSED = "refused"
    """The backend refused the credential. It is latched."""
    UNANSWERED = "unanswered"
    """The first login had no answer: it may have been refused. It is latched."""
    STOPPED = "stopped"
    """The issuing CA signed something other than what was asked for."""
    BARRED = "barred"
    """An operator barred it. The scope says what."""


_OF_KIND = {
    Kind.CREDENTIAL: frozenset(State) - {State.STOPPED, State.BARRED},
    Kind.ISSUING_CA: frozenset({State.STOPPED}),
    Kind.BAR: frozenset({State.BARRED}),
}
_LAST_SECOND = 253402300799
"""Of the year 9999, in seconds since 1970-01-01 UTC. No later time can be shown."""
_DIGEST_BYTES = 32
_HEX = re.compile("([0-9a-fA-F]{2})*")

LATCHED = frozenset({State.REFUSED, State.UNANSWERED, State.STOPPED, State.BARRED})
"""The states that last until an operator acts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of one credential, or of one issuing CA that is stopped."""

    id: str
    """32 hex digits, the same on every host."""
    kind: str
    """One of `Kind`."""
    scope: str
    """What locks after too many attempts, such as a token's serial number. For an
    issuing CA, the SHA-256 of its certificate."""
    issuing_ca: str = ""
    """The name in the configuration, where it is known."""
    state: str
    """One of `State`."""
    at: float
    """When the state began, in seconds since 1970-01-01 UTC."""
    reason: str = ""
    """For operators; never a secret."""
    salt: str = ""
    """In hex, as is `digest`: scrypt of a credential."""
    digest: str = ""
    tried_at: float = 0.0
    """Of a proven credential: when a login began that has no result; 0 for none."""

    def require_valid(self) -> None:
        """Check the values, which came from a file or a database.

        Raises:
            TypeError: One is of another type.
            ValueError: One is none of its kind.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, (int, float) if each.type is float else str):
                raise TypeError(f"{each.name}: {type(value).__name__}")
            if each.type is float:
                _require_time(each.name, value)
        if State(self.state) not in _OF_KIND[Kind(self.kind)]:
            raise ValueError(f"state: {self.state!r} of kind {self.kind!r}")
        digits = 2 * _DIGEST_BYTES if self.kind == Kind.CREDENTIAL else 0
        if _HEX.fullmatch(self.salt) is None:
            raise ValueError(f"salt: {self.salt!r}")
        if len(self.digest) != digits or _HEX.fullmatch(self.digest) is None:
            raise ValueError(f"digest: {self.digest!r}")

    @property
    def is_latched(self) -> bool:
        """Whether an operator has to act."""
        return self.state in LATCHED

    @property
    def name(self) -> str:
        """The name for operators: the issuing CA, or else the scope."""
        return self.issuing_ca or self.scope

    def is_named(self, name: str) -> bool:
        """Return whether an operator means this entry by `name`."""
        return name in (self.issuing_ca, self.scope, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A change that is not in a journal yet. A worker writes the row of the ledger."""

    entry: Entry
    """As it was latched, or as it was before the clearance."""
    by: str = ""
    """The operator who cleared it; empty for an entry that was latched."""
    reason: str = ""
    """Of the clearance."""


def _require_time(name: str, seconds: Any) -> None:
    """Check a time, in seconds since 1970-01-01 UTC.

    Raises:
        TypeError: It is no number.
        ValueError: It is no time that can be shown.
    """
    if not 0 <= seconds <= _LAST_SECOND:  # neither is NaN
        raise ValueError(f"{name}: {seconds}")


def new_id() -> str:
    """Return an ID for an entry."""
    return secrets.token_hex(16)


@dataclass(slots=True, kw_only=True)
class Content:
    """The content of the file. Nothing here does I/O."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """By their IDs, oldest first."""
    cleared: list[str] = field(default_factory=list)
    """IDs of entries that were cleared, so that none comes back from the archive."""
    notes: list[Note] = field(default_factory=list)
    """Not in a journal yet, oldest first."""
    begun_at: float = 0.0
    """When a worker began that shares its archive with other hosts; 0 for none."""
    read_at: float = 0.0
    """When the entries of other hosts were last read from the archive."""

    @property
    def awaits_archive(self) -> bool:
        """Whether the entries of other hosts have not been read since the start."""
        return self.read_at < self.begun_at

    def put(self, entry: Entry) -> None:
        """Add an entry, or put it in place of the one with its ID."""
        before = self.entries.get(entry.id)
        self.entries[entry.id] = entry
        if entry.is_latched and not (before and before.is_latched):
            self.notes.append(Note(entry=entry))
        self._forget_proven()

    def credentials(self, scope: str) -> list[Entry]:
        """Return the entries of the credentials of a scope."""
        kind = Kind.CREDENTIAL.value
        return [
            entry
            for entry in self.entries.values()
            if entry.kind == kind and entry.scope == scope
        ]

    def stopped(self, certificate_sha256: str) -> Entry | None:
        """Return the entry of an issuing CA that is stopped, by its certificate."""
        for entry in self.entries.values():
            if entry.kind == Kind.ISSUING_CA and entry.scope == certificate_sha256:
                return entry
        return None

    def clear(self, name: str, *, by: str, reason: str) -> list[Entry]:
        """Remove what is latched under a name; return it.

        A login whose process has died is removed, too.

        Args:
            name: An issuing CA, a scope or an ID.
            by: The operator.
            reason: The operator's reason.
        """
        found = [
            entry
            for entry in self.entries.values()
            if entry.state != State.PROVEN and entry.is_named(name)
        ]
        for entry in found:
            self._remove(entry.id)
            self.notes.append(Note(entry=entry, by=by, reason=reason))
        return found

    def merge(self, entries: Iterable[Entry], cleared: Iterable[str]) -> None:
        """Take over what other hosts have latched and cleared.

        Args:
            entries: All that were latched, also by this host.
            cleared: The IDs of all that were cleared.
        """
        gone = set(cleared)
        for identity in gone & self.entries.keys():
            self._remove(identity)
        gone.update(self.cleared)
        for entry in entries:
            if entry.id not in gone:
                self.entries.setdefault(entry.id, entry)

    def _remove(self, identity: str) -> None:
        del self.entries[identity]
        self.cleared = [*self.cleared, identity][-_CLEARED:]

    def _forget_proven(self) -> None:
        # Of each scope, the newest stay.
        proven: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries.values():
            if entry.state == State.PROVEN:
                proven[entry.scope].append(entry)
        for of_scope in proven.values():
            for entry in sorted(of_scope, key=lambda each: each.at)[:-_PROVEN]:
                del self.entries[entry.id]

    def encode(self) -> bytes:
        """Return the content as JSON."""
        values = {
            "format": _FORMAT,
            "begun_at": self.begun_at,
            "read_at": self.read_at,
            "entries": [asdict(entry) for entry in self.entries.values()],
            "cleared": self.cleared,
            "notes": [asdict(note) for note in self.notes],
        }
        return json.dumps(values, indent=1).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Read the content.

        Raises:
            ValueError: It is none.
        """
        try:
            values = json.loads(text)
            _require_shape(values)
            entries = [Entry(**each) for each in values["entries"]]
            notes = [
                Note(**{**each, "entry": Entry(**each["entry"])})
                for each in values["notes"]
            ]
            for entry in (*entries, *(note.entry for note in notes)):
                entry.require_valid()
            by_id = {entry.id: entry for entry in entries}
            if len(by_id) < len(entries):
                raise ValueError("two entries have one id")
            return cls(
                entries=by_id,
                cleared=[str(identity) for identity in values["cleared"]],
                notes=notes,
                begun_at=float(values["begun_at"]),
                read_at=float(values["read_at"]),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no latch: {error!r}") from error


def _require_shape(values: Any) -> None:
    if values["format"] != _FORMAT:
        raise ValueError(f"format {values['format']!r}")
    for name in ("entries", "notes", "cleared"):
        if not isinstance(values[name], list):
            raise TypeError(f"{name}: {type(values[name]).__name__}")
    for name in ("begun_at", "read_at"):
        _require_time(name, values[name])


class LatchFile:
    """Reads and changes the file. Safe between threads and processes.

    Args:
        path: The file; None where nothing outlives this object.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        """The file."""
        self._place = "" if path is None else os.fspath(path)
        self._memory = b""
        self._turns: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def stamp(self) -> tuple[int, ...]:
        """Return what shows that another content was written; costs one `stat`."""
        try:
            found = os.stat(self._place)  # noqa: PTH116 - pathlib's takes twice as long
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> Content:
        """Return the content; an absent file is empty.

        Raises:
            LedgerError: The file cannot be read, or holds something else.
        """
        text = self.read_text()
        return Content() if text is None else self.decode(text)

    def read_text(self) -> bytes | None:
        """Return what the file holds; None if there is none.

        Raises:
            LedgerError: The file cannot be read.
        """
        if self.path is None:
            return self._memory or None
        try:
            # The read would wait for a writer.
            if self.path.is_fifo():
                raise _failed(self.path, "is not a regular file")
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed(self.path, f"cannot be read: {error.strerror}") from error

    def decode(self, text: bytes) -> Content:
        """Return the content of the file, which holds `text`.

        Raises:
            LedgerError: It is something else.
        """
        try:
            return Content.decode(text)
        except ValueError as error:
            reason = f"holds no latch: {error}. {_WAY_OUT}"
            raise _failed(self.path, reason) from error

    @contextmanager
    def change(self) -> Iterator[Content]:
        """Yield the content for a change, which is on disk when the block has ended.

        If the block raises, nothing changes.

        Raises:
            LedgerError: The file cannot be read or written. Nothing has changed.
        """
        try:
            with self.turn("", _LOCK_SECONDS):
                content = self.read()
                before = content.encode()
                yield content
                after = content.encode()
                if after != before:
                    self._write(after)
        except TimeoutError as error:
            reason = "another process holds its lock, and does not go on"
            raise _failed(self.path, reason) from error

    @contextmanager
    def turn(self, name: str, seconds: float) -> Iterator[None]:
        """Hold a lock of the host. It ends with the block, or with the process.

        Args:
            name: Names the lock; "" is the lock of a change.
            seconds: How long to wait for it.

        Raises:
            TimeoutError: Another process, or thread, holds it for longer.
            LedgerError: The lock cannot be made.
        """
        if self.path is None:
            lock = self._turns[name]
            if not lock.acquire(timeout=seconds):
                raise TimeoutError
            try:
                yield
            finally:
                lock.release()
            return
        with _opened_lock(self.path, name) as fd:
            files.flock(fd, seconds)
            yield

    def _write(self, text: bytes) -> None:
        if self.path is None:
            self._memory = text
            return
        try:
            files.replace(self.path, text)
            _keep_owner(self.path)
        except OSError as error:
            raise _failed(self.path, f"cannot be written: {error.strerror}") from error


@contextmanager
def _opened_lock(path: Path, name: str) -> Iterator[int]:
    mark = f".{hashlib.sha256(name.encode()).hexdigest()[:16]}" if name else ""
    lock = path.with_name(f"{path.stem}{mark}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_owner(path.parent)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _keep_owner(lock)
    except OSError as error:
        raise _failed(lock, f"cannot be opened: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _keep_owner(path: Path) -> None:
    # A command that root runs must leave nothing that the bridge's user cannot use. In
    # a container root may lack the right, and then the bridge is root as well.
    if os.geteuid() == 0:
        above = path.parent.stat()
        with suppress(PermissionError):
            os.chown(path, above.st_uid, above.st_gid)


def _failed(path: Path | None, reason: str) -> LedgerError:
    return LedgerError("the latch cannot be used", rule=RULE, detail=f"{path} {reason}")
