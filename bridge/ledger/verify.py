"""Verification of journals: every row, every link, every published head, the archive.

No server has to run.
"""

import re
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bridge.errors import LedgerError
from bridge.ledger.chain import Chain, Head, Row, broken, entry, read_rows
from bridge.ledger.events import Intent, Outcome
from bridge.ledger.heads import HeadSink, SignedHead, load_public_key, problem_of
from bridge.ledger.journal.segments import (
    is_locked,
    require_no_ahead,
    segments,
    writer_folders,
)

if TYPE_CHECKING:
    # It imports SQLAlchemy, which only a comparison with an archive needs.
    from bridge.ledger.archive.archive import Archive

ASIDE = ".lost-"
"""Part of the name under which the archive keeps rows that their journal lost."""
_SET_ASIDE = re.compile(rf".+{re.escape(ASIDE)}\d+")
_OUTCOMES = frozenset(Outcome)
_Published = tuple[int, SignedHead]
"""The line in the sink, and the head."""


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
        heads_sink: The file of published heads. Without it a cut tail is not found.
        public_key: The key of the heads; `heads.pub` in `folder` by default.

    Returns:
        A report; `intact` is False if a part does not verify.

    Raises:
        LedgerError: There is no journal.
    """
    # Heads first: a head that is published later may belong to rows read too early.
    live = {path.name: is_locked(path) for path in writers(folder)}
    report = Report()
    heads: dict[str, list[_Published]] = defaultdict(list)
    if heads_sink is not None:
        _collect(report, heads, heads_sink, public_key or folder / "heads.pub")
    for path in writers(folder):
        result = WriterReport(path.name, live=live[path.name])
        report.writers.append(result)
        _Verifier(result, heads.pop(path.name, []), heads_sink).run(path)
    for writer, lines in heads.items():
        number = lines[-1][0]
        report.problems.append(
            f"{heads_sink}:{number}: a head of {writer} was published, and there is "
            "no such journal"
        )
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


def _collect(
    report: Report,
    heads: dict[str, list[_Published]],
    sink: Path,
    public_key: Path,
) -> None:
    strange: dict[str, list[str]] = defaultdict(list)
    try:
        key: Ed25519PublicKey = load_public_key(public_key)
        for number, head in HeadSink(sink).read():
            if problem := problem_of(head, key):
                strange[head.writer].append(f"{sink}:{number}: {problem}")
                continue
            if head.operator:
                # The operator gave up what was published before: heads of later rows,
                # and heads by a lost key. This line stays in the sink and the report.
                strange.pop(head.writer, None)
                before = heads[head.writer]
                before[:] = [each for each in before if each[1].seq <= head.seq]
            heads[head.writer].append((number, head))
    except LedgerError as error:
        report.problems.append(str(error))
    except OSError as error:
        report.problems.append(f"{sink}: {error.strerror}")
    for problems in strange.values():
        report.problems.extend(problems)


class _Verifier:
    # Follows one writer's chain from its first row.

    def __init__(
        self, result: WriterReport, heads: Iterable[_Published], sink: Path | None
    ) -> None:
        self._result = result
        self._sink = sink
        self._chain = Chain(result.writer)
        self._open: dict[str, None] = {}
        self._heads: dict[int, list[_Published]] = defaultdict(list)
        for number, head in heads:
            if head.operator:
                result.accepted.append(_acceptance(head))
            if head.seq >= 0:
                self._heads[head.seq].append((number, head))

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
        for number, head in chain.from_iterable(self._heads.values()):
            result.problems.append(
                f"{self._sink}:{number}: row {head.seq} of {result.writer} was "
                f"published, and its journal ends at row {self._chain.head.seq}: it "
                "was cut"
            )

    def _segment(self, path: Path, rows: Iterable[Row]) -> None:
        for line, row in enumerate(rows, 1):
            if problem := self._chain.problem(row):
                raise broken(path, line, problem)
            self._result.rows += 1
            if row.kind == Intent.kind:
                self._open[row.values.get("attempt", "")] = None
            elif row.kind in _OUTCOMES:
                self._open.pop(row.values.get("attempt", ""), None)
            for number, head in self._heads.pop(row.seq, ()):
                if head.tip != self._chain.head:
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
        with closing(_Archived(archive.rows(path.name))) as archived:
            _compare_writer(result, path, archived)
    for writer in sorted(known):
        if _SET_ASIDE.fullmatch(writer):
            result.aside.append(writer)
        else:
            result.problems.append(
                f"{writer}: the archive has rows, and there is no such journal"
            )
    return result


class _Archived:
    # Reads the first row at once: the archive has to be read before the journal, which
    # has more rows.
    def __init__(self, rows: Generator[Mapping[str, Any]]) -> None:
        self._rows = rows
        self._first = next(rows, None)

    def take(self) -> Mapping[str, Any] | None:
        row, self._first = self._first, None
        return row or next(self._rows, None)

    def close(self) -> None:
        self._rows.close()


def _compare_writer(result: Comparison, path: Path, archived: _Archived) -> None:
    writer, behind, last = path.name, 0, -1
    for row in read_writer(path):
        last = row.seq
        found = None if behind else archived.take()
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
    elif (extra := archived.take()) is not None:
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
