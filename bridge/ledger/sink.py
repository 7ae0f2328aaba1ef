"""The sink: the file of signed heads, in which no line can be cut, moved or repeated.

Each line has its number and the SHA-256 of all bytes before it, both signed. So the
newest line vouches for every byte of the file. Each journal records the lines that it
published (row `published`), and so vouches for the newest ones.

Lines of earlier versions have neither. The first line with a number covers them too,
and after it no other one may follow.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bridge.errors import LedgerError
from bridge.ledger.chain import Head, canonical, microseconds
from bridge.ledger.events import Published
from bridge.ledger.heads import HeadKey, SignedHead, key_id, parse_head, problem_of
from bridge.ledger.journal.segments import way_out
from bridge.system.clock import Clock
from bridge.system.files import flock, lines_backwards

_RULE = "ledger.heads"
_BLOCK_BYTES = 1 << 20
_LOCK_SECONDS = 5.0

MakeHead = Callable[[int, str], SignedHead]
"""Gets the number of the line, and SHA-256 of the bytes before it."""


@dataclass(frozen=True, slots=True)
class Line:
    """A head that was read."""

    at: int
    """The number of the line in the file, from 1."""
    head: SignedHead
    is_foreign: bool
    """Whether another key signed it."""


class SinkReader:
    """Reads a sink line by line, and holds each line to those before it.

    Args:
        path: The file.
        key: The key of the heads.
        is_thorough: Verify each signature, not those of acceptances alone. The newest
            line vouches for the lines before it; its signature is for the caller.
    """

    def __init__(
        self, path: Path, key: Ed25519PublicKey, *, is_thorough: bool = True
    ) -> None:
        self.path = path
        self.size = 0
        """How many bytes were read."""
        self.line = 0
        """The number of the newest head."""
        self.problem = ""
        """What is wrong first, with file and line; no later acceptance covers it."""
        self._key = key
        self._key_id = key_id(key)
        self._is_thorough = is_thorough
        self._digest = sha256()
        self._at = 0
        self._is_numbered = False
        self._newest: dict[str, tuple[int, SignedHead]] = {}
        self._acceptances: set[str] = set()
        self._mark: Published | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes that were read."""
        return self._digest.hexdigest()

    @property
    def missing(self) -> str:
        """What is wrong with the line that the journal has on record, or nothing."""
        mark = self._mark
        if mark is None:
            return ""
        if self.line < mark.line:
            return (
                f"{self.path}: it ends at line {self.line}, and the journal recorded "
                f"that line {mark.line} was published: the file was cut or emptied, or "
                "restored from an older copy"
            )
        return (
            f"{self.path}: line {mark.line} and those before it are not what the "
            "journal recorded when they were published: the file was replaced"
        )

    def newest(self, writer: str) -> tuple[int, SignedHead] | None:
        """Return the newest genuine head of `writer` that was read, and its number."""
        return self._newest.get(writer)

    def expect(self, mark: Published | None) -> None:
        """Note which line has to be there; read on, and `missing` is empty."""
        self._mark = mark

    def skip_to(self, found: "Found") -> None:
        """Take the bytes before a line for granted, if this line vouches for them."""
        self.problem = self._skipped(found)
        self.line, self._is_numbered = found.head.line - 1, True

    def read(self) -> Iterator[Line]:
        """Yield the heads from here to the end of the file, or to an unfinished line.

        Raises:
            OSError: The file cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.size)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                if (line := self.step(raw)) is not None:
                    yield line

    def step(self, raw: bytes) -> Line | None:
        """Take the next line; return its head unless it has none, or a forged one."""
        before = self.sha256
        self._update(raw)
        if (head := parse_head(raw)) is None:
            # A crash tears a line, and what is left of it is no JSON object.
            if _is_object(raw):
                self._note("this is not a head")
            return None
        is_foreign = head.key_id != self._key_id
        forged = ""
        if not is_foreign and (self._is_thorough or head.operator):
            forged = problem_of(head, self._key)
        is_genuine = not (is_foreign or forged)
        if head.line:
            self._numbered(
                head, before, is_acceptance=is_genuine and bool(head.operator)
            )
        else:
            self._earlier(raw, head, is_genuine=is_genuine)
        if forged:
            self._note(forged)
            return None
        if not is_foreign:
            self._newest[head.writer] = self.line, head
        return Line(self._at, head, is_foreign)

    def _skipped(self, found: "Found") -> str:
        with self.path.open("rb") as file:
            while self.size < found.offset:
                end = found.offset
                if self._mark and self.size < self._mark.size:
                    end = min(end, self._mark.size)
                if not (block := file.read(min(_BLOCK_BYTES, end - self.size))):
                    break
                self._update(block)
        if forged := problem_of(found.head, self._key):
            return forged
        return "" if found.head.before == self.sha256 else _CHANGED

    def _update(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)
        self._at += data.count(b"\n")
        mark = self._mark
        if mark and self.size == mark.size and self.sha256 == mark.sha256:
            self._mark = None

    def _note(self, problem: str) -> None:
        self.problem = self.problem or f"{self.path}:{self._at}: {problem}"

    def _numbered(self, head: SignedHead, before: str, *, is_acceptance: bool) -> None:
        expected = self.line + 1
        if head.line < expected:
            self._note(
                f"its number is {head.line}, and the line before it has {self.line}: "
                "it was appended again, or the lines are out of order"
            )
        elif is_acceptance and head.before == before:
            # The operator answers for the file as it was then.
            self.problem = ""
            self._require_overrides(head)
        elif head.line > expected:
            self._note(
                f"its number is {head.line}, and {expected} was expected: lines before "
                "it are missing"
            )
        elif head.before != before:
            self._note(_CHANGED)
        self._is_numbered = True
        self.line = max(self.line, head.line)

    def _require_overrides(self, head: SignedHead) -> None:
        line, newest = self._newest.get(head.writer, (0, None))
        if newest is None or head.overrides > line:
            return  # the journal knew of a later line, which this file lost
        if (head.overrides, head.overrides_head) != (line, newest.head):
            self._note(
                f"it accepts what line {head.overrides} published, and the newest line "
                f"of {head.writer} before it is line {line}"
            )

    # Earlier versions published rows in order; only an acceptance went back.
    def _earlier(self, raw: bytes, head: SignedHead, *, is_genuine: bool) -> None:
        self.line += 1
        if self._is_numbered:
            self._note(
                "it has no number, and stands after lines that have one: it was "
                "appended again, or an earlier version of meshca-bridge was started"
            )
        elif is_genuine and head.operator:
            digest = sha256(raw).hexdigest()
            if digest in self._acceptances:
                self._note("this acceptance stands in the file twice")
            else:
                self._acceptances.add(digest)
                self.problem = ""
        elif is_genuine:
            line, newest = self._newest.get(head.writer, (0, None))
            if newest is not None and head.seq <= newest.seq:
                self._note(
                    f"it is the head of row {head.seq} of {head.writer}, and line "
                    f"{line} is that of row {newest.seq}: it was appended again"
                )


_CHANGED = (
    "the bytes before it are not those that it was written after: a line before it was "
    "changed, moved or removed"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A line that was found from the end of the file."""

    offset: int
    head: SignedHead


class HeadSink:
    """The file of signed heads. Several writers may share it. For one thread at a time.

    Args:
        path: The file; made when absent.
        key: Signs the heads.
    """

    def __init__(self, path: Path, key: HeadKey) -> None:
        self.path = path
        self._key = key
        self._reader: SinkReader | None = None
        self._mark: Published | None = None

    def hold(self, writer: str, mark: Published | None) -> None:
        """Require that every line of the file is as it was written.

        Args:
            writer: The journal that the message tells how to accept.
            mark: The newest line that this journal has on record.

        Raises:
            LedgerError: A line is missing, out of place, repeated, changed or forged;
                or the file cannot be read. The message names the line.
        """
        self._mark, self._reader = mark, None
        try:
            reader = self._opened()
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if problem := reader.problem or reader.missing:
            raise LedgerError(
                f"{problem}. Put the file of heads back as it was; {way_out(writer)}",
                rule=_RULE,
            )
        self._reader = reader

    def append(self, make: MakeHead, *, accepted: int | None = None) -> Published:
        """Write one head and return when it is on disk.

        Args:
            make: Makes the head.
            accepted: For an acceptance, which may follow damaged lines: the number of a
                line that was published. The number of this one is higher.

        Returns:
            What the journal keeps on record.

        Raises:
            LedgerError: The head may not be on disk, or the file is not as it was.
        """
        try:
            with self._locked() as fd:
                return self._append(fd, make, accepted)
        except OSError as error:
            reason = str(error.strerror or error)
            raise self._unpublished(f"{self.path}: {reason}") from error

    def _append(self, fd: int, make: MakeHead, accepted: int | None) -> Published:
        if accepted is None:
            reader, self._reader = self._reader or self._opened(), None
            if os.fstat(fd).st_size < reader.size:
                reader = self._opened()
            for _ in reader.read():
                pass
            if problem := reader.problem or reader.missing:
                raise self._unpublished(problem)
        else:
            reader = SinkReader(self.path, self._key.public_key())
            for _ in reader.read():
                pass
        start = b""
        if rest := os.pread(fd, os.fstat(fd).st_size - reader.size, reader.size):
            # A crash tore the line before. It stays, and the head gets a line of its
            # own.
            start = b"\n"
            reader.step(rest + start)
        head = make(max(reader.line, accepted or 0) + 1, reader.sha256)
        line = canonical(head.values()) + b"\n"
        if os.write(fd, start + line) != len(start + line):
            raise OSError("the disk wrote only a part")
        os.fsync(fd)
        reader.step(line)
        self._mark = Published(line=reader.line, size=reader.size, sha256=reader.sha256)
        self._reader = reader
        return self._mark

    def _opened(self) -> SinkReader:
        # The newest line of this key vouches for the bytes before it, so that of a long
        # file only this line and those after it are parsed.
        public = self._key.public_key()
        reader = SinkReader(self.path, public, is_thorough=False)
        reader.expect(self._mark)
        if not self.path.exists():
            return reader
        own = self._key.key_id
        found = _found(
            self.path,
            f'"key_id":"{own}"',
            lambda head: head.key_id == own and head.line > 0,
        )
        if found is not None:
            reader.skip_to(found)
            if reader.problem:
                return self._examined(reader.problem)
        for _ in reader.read():
            pass
        return reader

    def _examined(self, problem: str) -> SinkReader:
        # Which line is wrong.
        reader = SinkReader(self.path, self._key.public_key())
        reader.expect(self._mark)
        for _ in reader.read():
            pass
        reader.problem = reader.problem or f"{self.path}: {problem}"
        return reader

    @contextmanager
    def _locked(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o600)
        try:
            flock(fd, _LOCK_SECONDS)
            yield fd
        finally:
            os.close(fd)

    def _unpublished(self, detail: str) -> LedgerError:
        return LedgerError(
            "the head of the ledger cannot be published", rule=_RULE, detail=detail
        )


class HeadPublisher:
    """Signs the head of a writer and appends it to the sink, if there are new rows."""

    def __init__(self, writer: str, key: HeadKey, sink: HeadSink, clock: Clock) -> None:
        self._writer = writer
        self._key = key
        self._sink = sink
        self._clock = clock
        self._seq = -2

    def publish(
        self,
        head: Head,
        record: Callable[[Published], None] | None = None,
        *,
        own_rows: int = 0,
    ) -> None:
        """Publish `head`, unless the journal has no other new row than `published`.

        Args:
            head: The last row of the journal.
            record: Writes the row `published` into the journal, as its next one.
            own_rows: How many more rows need no head.

        Raises:
            LedgerError: See `HeadSink.append`, or the row cannot be written.
        """
        if head.seq <= self._seq + own_rows:
            return
        at = microseconds(self._clock)
        mark = self._sink.append(
            lambda line, before: self._key.sign(
                self._writer, head, at, line=line, before=before
            )
        )
        self._seq = head.seq
        if record is not None:
            record(mark)
            self._seq += 1


def newest_head(path: Path, writer: str) -> SignedHead | None:
    """Return the newest head of `writer` in a sink, whoever signed it, or None.

    Raises:
        LedgerError: The file cannot be read.
    """
    found = _found(path, f'"writer":"{writer}"', lambda head: head.writer == writer)
    return found.head if found else None


def _found(path: Path, text: str, fits: Callable[[SignedHead], bool]) -> Found | None:
    try:
        for offset, raw in lines_backwards(path, text.encode()):
            if (head := parse_head(raw)) and fits(head):
                return Found(offset, head)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    return None


def _unreadable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"{path}: the published heads cannot be read: {error.strerror}", rule=_RULE
    )


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False
