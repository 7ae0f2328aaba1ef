"""Verification of journals: every row, every link, every published head, the archive.

No server has to run.
"""

import re
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import LedgerError
from bridge.ledger.chain import Chain, Head, Row, broken, entry, read_rows
from bridge.ledger.events import Intent, Outcome, Published
from bridge.ledger.heads import FOREIGN, SignedHead, load_public_key
from bridge.ledger.journal.recovery import OF_A_START, published_of
from bridge.ledger.journal.segments import (
    is_locked,
    require_no_ahead,
    segments,
    writer_folders,
)
from bridge.ledger.sink import Line, SinkReader

if TYPE_CHECKING:
    # It imports SQLAlchemy, which only a comparison with an archive needs.
    from bridge.ledger.archive.archive import Archive

ASIDE = ".lost-"
"""Part of the name under which the archive keeps rows that their journal lost."""
_SET_ASIDE = re.compile(rf".+{re.escape(ASIDE)}\d+")
_OUTCOMES = frozenset(Outcome)
_DIGITS = 64
"""Of a SHA-256 in hex."""


@dataclass(slots=True)
class WriterReport:
    """The result for the journal of one writer."""

    writer: str
    rows: int = 0
    segments: int = 0
    head: Head | None = None
    """The last row that verified."""
    open_intents: list[str] = field(default_factory=list)
    """Attempts without an outcome. A running server has some at any moment."""
    heads: int = 0
    """Published heads that verified."""
    vouched: int = -1
    """The newest row whose head was published; -1 without one. Nothing outside the
    journal vouches for the rows after it."""
    is_vouched: bool = False
    """Whether a head of this journal was published."""
    accepted: list[str] = field(default_factory=list)
    """Where operators accepted that this journal ends, and why."""
    torn: list[str] = field(default_factory=list)
    """Files with bytes that a crash left, moved aside by a later start."""
    live: bool = False
    """Whether a server writes this journal."""
    problems: list[str] = field(default_factory=list)
    """Each names file and line."""


@dataclass(slots=True)
class Report:
    """The result for a folder of journals."""

    writers: list[WriterReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Problems that do not belong to one writer."""

    @property
    def intact(self) -> bool:
        """Whether all journals verified."""
        return not self.problems and not any(each.problems for each in self.writers)


def read_journal(folder: Path) -> Iterator[tuple[str, Row]]:
    """Yield writer and row, one writer after the other; the chain is not checked.

    Raises:
        LedgerError: A line is not a row.
    """
    for path in writers(folder):
        for row in read_writer(path):
            yield path.name, row


def read_writer(folder: Path) -> Iterator[Row]:
    """Yield the rows of the writer in `folder`. See `read_journal`."""
    live = is_locked(folder)
    files = segments(folder)
    for number, file in files:
        yield from read_rows(file, live=live and number == files[-1][0])


def verify(
    folder: Path, heads_sink: Path | None = None, public_key: Path | None = None
) -> Report:
    """Recompute every chain under `folder` and compare it with the published heads.

    A server may be running.

    Args:
        folder: Has one folder for each writer.
        heads_sink: The file of published heads. Without it nothing outside vouches for
            the journals, and a cut tail is not found.
        public_key: The key of the heads; `heads.pub` in `folder` by default.

    Returns:
        A report; `intact` is False if a part does not verify.

    Raises:
        LedgerError: There is no journal.
    """
    # Heads first: a head that is published later may belong to rows read too early.
    live = {path.name: is_locked(path) for path in writers(folder)}
    report = Report()
    sink = None
    if heads_sink is not None:
        sink = _Sink(report, heads_sink, public_key or folder / "heads.pub")
        sink.read()
    verifiers = []
    for path in writers(folder):
        result = WriterReport(path.name, live=live[path.name])
        report.writers.append(result)
        heads = sink.heads_of(path.name) if sink else _Heads()
        verifiers.append(_Verifier(result, heads, heads_sink))
        verifiers[-1].run(path)
    if sink is not None:
        # Again: rows that were read meanwhile may tell of lines that are new.
        sink.read()
        for verifier in verifiers:
            verifier.hold_to(sink)
        sink.conclude({each.writer for each in report.writers})
    return report


def writers(folder: Path) -> list[Path]:
    """Return the folders of all writers, in the order of their names.

    Raises:
        LedgerError: There is no such folder.
    """
    try:
        found = writer_folders(folder)
    except OSError as error:
        raise LedgerError(f"{folder}: {error.strerror}") from error
    if not found:
        raise LedgerError(f"{folder}: there is no journal in this folder")
    return found


class _Heads:
    # The heads of one writer, in little memory: a sink has years of them.

    def __init__(self) -> None:
        self.accepted: list[SignedHead] = []
        self.found = False
        self._rows, self._segments, self._lines = array("q"), array("q"), array("q")
        self._digests = bytearray()
        self._is_sorted = True
        self._next = 0

    def add(self, line: Line) -> None:
        head = line.head
        self.found = True
        if head.operator:
            # The operator gave up the later rows. This line stays in the report.
            self.accepted.append(head)
            self._sort()
            while self._rows and self._rows[-1] > head.seq:
                for column in (self._rows, self._segments, self._lines):
                    column.pop()
                del self._digests[-_DIGITS:]
        if head.seq >= 0:
            self._is_sorted &= head.seq >= max(self._rows[-1:], default=-1)
            self._rows.append(head.seq)
            self._segments.append(head.segment)
            self._lines.append(line.at)
            self._digests += head.head.encode()[:_DIGITS].ljust(_DIGITS)

    @property
    def newest(self) -> int:
        self._sort()
        return self._rows[-1] if self._rows else -1

    def left(self, row: int) -> Iterator[tuple[int, int, int, str]]:
        # Line, segment, row and digest of the heads up to a row that were not taken.
        self._sort()
        while self._next < len(self._rows) and self._rows[self._next] <= row:
            at = self._next
            self._next += 1
            digest = self._digests[at * _DIGITS : self._next * _DIGITS].decode()
            yield self._lines[at], self._segments[at], self._rows[at], digest

    def _sort(self) -> None:
        # Only lines that an operator accepted are out of order, or a problem.
        if self._is_sorted:
            return
        order = sorted(range(len(self._rows)), key=self._rows.__getitem__)
        digests = [self._digests[at * _DIGITS : (at + 1) * _DIGITS] for at in order]
        self._rows, self._segments, self._lines = (
            array("q", map(column.__getitem__, order))
            for column in (self._rows, self._segments, self._lines)
        )
        self._digests = bytearray().join(digests)
        self._is_sorted = True


class _Sink:
    # Reads a sink, and reads on where it stopped.

    def __init__(self, report: Report, path: Path, public_key: Path) -> None:
        self.path = path
        self._report = report
        self._heads: dict[str, _Heads] = defaultdict(_Heads)
        self._strange: dict[str, list[str]] = defaultdict(list)
        self._sizes, self._digests = array("q"), bytearray()
        self._reader: SinkReader | None = None
        try:
            self._reader = SinkReader(path, load_public_key(public_key))
        except LedgerError as error:
            report.problems.append(str(error))

    def heads_of(self, writer: str) -> _Heads:
        return self._heads[writer]

    def read(self) -> None:
        reader = self._reader
        if reader is None:
            return
        try:
            for line in reader.read():
                self._sizes.append(reader.size)
                self._digests += reader.sha256.encode()
                self._add(line)
        except OSError as error:
            self._report.problems.append(f"{self.path}: {error.strerror}")
            self._reader = None

    def holds(self, mark: Published) -> bool:
        if self._reader is None:
            return True  # the report says why
        at = bisect_left(self._sizes, mark.size)
        found = self._digests[at * _DIGITS : (at + 1) * _DIGITS].decode()
        return bool(found) and self._sizes[at] == mark.size and found == mark.sha256

    def conclude(self, writers: Collection[str]) -> None:
        problems = self._report.problems
        if self._reader is not None and self._reader.problem:
            problems.append(self._reader.problem)
        for strange in self._strange.values():
            problems.extend(strange)
        for writer in self._heads.keys() - writers:
            if self._heads[writer].found:
                problems.append(
                    f"{self.path}: a head of {writer} was published, and there is no "
                    "such journal"
                )

    def _add(self, line: Line) -> None:
        writer = line.head.writer
        if line.is_foreign:
            self._strange[writer].append(f"{self.path}:{line.at}: {FOREIGN}")
            return
        if line.head.operator:
            # The operator also gave up heads by a lost key.
            self._strange.pop(writer, None)
        self._heads[writer].add(line)


class _Verifier:
    # Follows one writer's chain from its first row.

    def __init__(self, result: WriterReport, heads: _Heads, sink: Path | None) -> None:
        self._result = result
        self._sink = sink
        self._chain = Chain(result.writer)
        self._open: dict[str, None] = {}
        self._heads = heads
        self._marks: list[tuple[str, int, Published]] = []
        self._has_entries = False

    def run(self, folder: Path) -> None:
        result, files = self._result, segments(folder)
        result.segments = len(files)
        result.torn = sorted(str(path) for path in folder.glob("*.torn"))
        if not files:
            result.problems.append(f"{folder}: there is no segment in this folder")
        try:
            if not result.live:
                require_no_ahead(folder)
            for number, path in files:
                self._chain.enter(number)
                is_live = result.live and number == files[-1][0]
                self._segment(path, read_rows(path, live=is_live))
        except LedgerError as error:
            result.problems.append(str(error))
            return
        finally:
            result.head = self._chain.head if result.rows else None
            result.open_intents = list(self._open)
        for number, _, seq, _ in self._heads.left(self._heads.newest):
            result.problems.append(
                f"{self._sink}:{number}: row {seq} of {result.writer} was "
                f"published, and its journal ends at row {self._chain.head.seq}: it "
                "was cut"
            )

    def hold_to(self, sink: "_Sink") -> None:
        # What the journal has on record of the sink.
        result, heads = self._result, self._heads
        result.is_vouched, result.vouched = heads.found, heads.newest
        result.accepted = [_acceptance(head) for head in heads.accepted]
        last = heads.accepted[-1].seq if heads.accepted else -1
        for place, seq, mark in self._marks:
            if seq > last and not sink.holds(mark):
                result.problems.append(
                    f"{place}: line {mark.line} of {sink.path} was published, and is "
                    "not there as it was: the file was cut, emptied or replaced"
                )
                break
        if self._has_entries and not heads.found:
            result.problems.append(
                f"{sink.path}: the journal of {result.writer} has entries, and this "
                "file has no head of it"
            )

    def _segment(self, path: Path, rows: Iterable[Row]) -> None:
        for line, row in enumerate(rows, 1):
            if problem := self._chain.problem(row):
                raise broken(path, line, problem)
            self._result.rows += 1
            self._has_entries = self._has_entries or row.kind not in OF_A_START
            if row.kind == Intent.kind:
                self._open[row.values.get("attempt", "")] = None
            elif row.kind in _OUTCOMES:
                self._open.pop(row.values.get("attempt", ""), None)
            elif row.kind == Published.kind:
                self._marks.append((f"{path}:{line}", row.seq, published_of(row)))
            for number, segment, seq, digest in self._heads.left(row.seq):
                if Head(segment, seq, digest) != self._chain.head:
                    raise broken(
                        path, line, f"not the row whose head is {self._sink}:{number}"
                    )
                self._result.heads += 1


def _acceptance(head: SignedHead) -> str:
    at = datetime.fromtimestamp(head.at / 1e6, UTC)
    return (
        f"{head.operator} accepted that it ends at row {head.seq} on "
        f"{at:%Y-%m-%dT%H:%M:%SZ}: {head.reason}"
    )


@dataclass(slots=True)
class Comparison:
    """The result of a comparison of the archive with the journals."""

    equal: int = 0
    """How many rows are the same in both."""
    behind: dict[str, int] = field(default_factory=dict)
    """How many rows of each writer the archive does not have yet."""
    aside: list[str] = field(default_factory=list)
    """Names under which the archive keeps rows that a journal lost."""
    problems: list[str] = field(default_factory=list)
    """Each names writer and row."""

    @property
    def agrees(self) -> bool:
        """Whether each row is in both once, and the same."""
        return not self.problems and not self.behind


def compare(folder: Path, archive: "Archive") -> Comparison:
    """Compare every row of the journals under `folder` with `archive`.

    A server may be running: its newest rows count as `behind`.

    Raises:
        LedgerError: There is no journal, a line is not a row, or the archive does not
            answer.
    """
    result = Comparison()
    known = set(archive.writers())
    for path in writers(folder):
        known.discard(path.name)
        with closing(archive.rows(path.name)) as rows:
            # The archive has to be read before the journal, which has more rows: all
            # its rows are of the moment of the first.
            archived = chain([next(rows, None)], rows)
            _compare_writer(result, path, archived)
    for writer in sorted(known):
        if _SET_ASIDE.fullmatch(writer):
            result.aside.append(writer)
        else:
            result.problems.append(
                f"{writer}: the archive has rows, and there is no such journal"
            )
    return result


def _compare_writer(
    result: Comparison, path: Path, archived: Iterator[Mapping[str, Any] | None]
) -> None:
    writer, behind, last = path.name, 0, -1
    for row in read_writer(path):
        last = row.seq
        found = None if behind else next(archived, None)
        if found is None:
            behind += 1
            continue
        wanted = entry(writer, row)
        if found != wanted:
            result.problems.append(_difference(writer, found, wanted))
            return
        result.equal += 1
    if behind:
        result.behind[writer] = behind
    elif (extra := next(archived, None)) is not None:
        result.problems.append(
            f"{writer}: the archive has row {extra['seq']}, and the journal ends at "
            f"row {last}"
        )


def _difference(
    writer: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str:
    if found["seq"] != wanted["seq"]:
        return (
            f"{writer}: row {wanted['seq']} of the journal is not in the archive, "
            f"where row {found['seq']} stands in its place"
        )
    columns = [name for name in wanted if found.get(name) != wanted[name]]
    return f"{writer}: row {wanted['seq']} differs in {', '.join(columns)}"
