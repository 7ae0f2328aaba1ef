"""Accept a journal that a server refuses: an operator answers for what is lost.

A server refuses a journal that does not hold its published heads, and a sink whose
lines are not as they were. An operator who has looked, and knows why, accepts it: a
signed line in the sink says from which row on, which line it overrides, who accepted
it, and the reason. Nothing is erased. Rows that do not chain are moved into a
file beside the segment, and the archive keeps rows that the journal lost under another
name.
"""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bridge.config import LedgerConfig
from bridge.errors import ConfigError, LedgerError
from bridge.ledger.chain import Chain, Head, microseconds, parse
from bridge.ledger.events import Published
from bridge.ledger.heads import HeadKey, SignedHead
from bridge.ledger.journal.progress import Progress
from bridge.ledger.journal.recovery import last_published
from bridge.ledger.journal.segments import (
    ahead_of,
    lock,
    make_folder,
    segments,
    set_aside,
)
from bridge.ledger.ledger import head_key, require_published
from bridge.ledger.sink import HeadSink, SinkReader, newest_head
from bridge.ledger.verify import ASIDE
from bridge.resilience.latch_file import STATE_FOLDER
from bridge.system.clock import Clock

_NAME_CHARACTERS = 40
"""Of a writer, so that the name for its lost rows fits the archive's column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What an operator accepted."""

    head: SignedHead
    """The line in the sink."""
    published: SignedHead | None
    """The newest head before it."""
    torn: Path | None
    """The file with the rows that do not chain."""
    kept: int
    """How many rows only the archive still has."""


@dataclass(frozen=True, slots=True)
class _End:
    # Where the part of a journal ends that verifies.
    head: Head
    path: Path | None
    byte_offset: int
    digests: dict[int, str]
    spoiled: bool


def accept(
    config: LedgerConfig,
    *,
    writer: str,
    operator: str,
    reason: str,
    clock: Clock,
) -> Acceptance:
    """Accept the journal of `writer` up to its last row that verifies.

    Args:
        config: Section `ledger` of the configuration.
        writer: The writer of the journal. Its server has to be stopped.
        operator: The name of the operator who accepts it.
        reason: Why the operator accepts it.
        clock: Gives the line its time.

    Raises:
        ConfigError: The key of the heads, or the archive, cannot be used.
        LedgerError: No such journal is known, a server writes it, or nothing is wrong
            with it. The journal is not the one that its published heads belong to, or
            it is broken before its last segment. A file cannot be written.
    """
    if not (operator.strip() and reason.strip()):
        raise ConfigError("--reason: expected a reason, and the name of the operator")
    _require_known(config, writer)
    folder = make_folder(config.journal, writer)
    held = lock(folder)
    try:
        # A feeder that runs takes no more rows of this journal until its next start.
        Progress.make(folder).close()
        key = head_key(config)
        sink = HeadSink(config.heads.sink, key)
        published = newest_head(sink.path, writer)
        ahead = ahead_of(folder)
        end = _verified_end(folder, writer)
        reader, mine = _heads_of(writer, sink, key)
        _require_same_journal(folder, end, sink, mine)
        kept = _keep_in_archive(config, writer, end, clock)
        if not (kept or end.spoiled or ahead):
            _require_loss(folder, end, sink, key)
        overridden = _overridden(writer, reader, last_published(folder, -1))
        torn = _move_spoiled(end)
        at = microseconds(clock)
        head = _append(
            sink,
            overridden,
            partial(
                key.sign, writer, end.head, at, accepted_by=operator, reason=reason
            ),
        )
        if ahead is not None:
            ahead.rename(folder / f"{ahead.name}.{at}.torn")
    finally:
        os.close(held)
    return Acceptance(head=head, published=published, torn=torn, kept=kept)


def _require_known(config: LedgerConfig, writer: str) -> None:
    # A mistyped name must not become a journal: it would be on record for good.
    folder = config.journal
    if (folder / writer).is_dir():
        return
    if newest_head(config.heads.sink, writer) is not None:
        return
    if writer not in _archived(config):
        found = [path.name for path in folder.glob("*/") if path.name != STATE_FOLDER]
        raise LedgerError(
            f"{folder}: there is no journal {writer!r}; the journals are: "
            f"{', '.join(sorted(found)) or 'none'}",
            rule="ledger.accept",
        )


def _archived(config: LedgerConfig) -> list[str]:
    from bridge.ledger.archive.archive import Archive  # noqa: PLC0415 - slow

    with closing(Archive.open(config.archive)) as archive:
        return archive.writers()


def _verified_end(folder: Path, writer: str) -> _End:
    reading = _Reading(writer)
    files = segments(folder)
    for number, path in files:
        problem = reading.segment(number, path)
        if problem and (path != files[-1][1] or reading.begins_spoiled):
            raise LedgerError(
                f"{path}: at byte {reading.offset}: {problem}, and that is not only "
                "the end of the last segment. Put the journal back as it was; or move "
                "its folder away, and accept the empty one",
                rule="ledger.chain",
            )
        if problem:
            return reading.end(path, spoiled=True)
    return reading.end(files[-1][1] if files else None, spoiled=False)


class _Reading:
    # Follows a chain to the last row that verifies.

    def __init__(self, writer: str) -> None:
        self._chain = Chain(writer)
        self._digests: dict[int, str] = {}
        self._good = self._before = (0, self._chain.head)
        self.begins_spoiled = False

    @property
    def offset(self) -> int:
        return self._good[0]

    def segment(self, number: int, path: Path) -> str:
        # Returns why the segment does not verify to its end, or nothing.
        last = self._chain.head
        self._chain.enter(number)
        self._good = self._before = (0, last)
        with path.open("rb") as file:
            for line in file:
                if problem := _problem(self._chain, line):
                    self._step_back(line)
                    return problem
                self._before = self._good
                head = self._chain.head
                self._digests[head.seq] = head.digest
                self._good = (self.offset + len(line), head)
        return ""

    def end(self, path: Path | None, *, spoiled: bool) -> _End:
        offset, head = self._good
        digests = {
            seq: digest for seq, digest in self._digests.items() if seq <= head.seq
        }
        return _End(head, path, offset, digests, spoiled)

    def _step_back(self, line: bytes) -> None:
        # The row has the right number and another `prev`: either this row or the one
        # before it was changed, so neither is kept.
        try:
            row = parse(line.removesuffix(b"\n"))
        except ValueError:
            return
        _, head = self._good
        if row.seq == head.seq + 1 and row.prev != head.digest:
            self.begins_spoiled = not self.offset
            self._good = self._before


def _problem(chain: Chain, line: bytes) -> str:
    if not line.endswith(b"\n"):
        return "the entry is torn"
    try:
        return chain.problem(parse(line[:-1]))
    except ValueError:
        return "this is not a row"


def _heads_of(
    writer: str, sink: HeadSink, key: HeadKey
) -> tuple[SinkReader, list[tuple[int, SignedHead]]]:
    # Heads of rows that an earlier acceptance gave up do not count.
    reader = SinkReader(sink.path, key.public_key())
    mine: list[tuple[int, SignedHead]] = []
    if sink.path.exists():
        for line in reader.read():
            head = line.head
            if head.writer != writer or line.is_foreign:
                continue
            if head.operator:
                mine = [each for each in mine if each[1].seq <= head.seq]
            mine.append((line.at, head))
    return reader, mine


def _require_same_journal(
    folder: Path, end: _End, sink: HeadSink, mine: list[tuple[int, SignedHead]]
) -> None:
    # A published head of a row that is here has to be the head of this row, or this is
    # another journal.
    for number, head in mine:
        if 0 <= head.seq <= end.head.seq and end.digests[head.seq] != head.head:
            raise LedgerError(
                f"{folder}: row {head.seq} is not the one whose head is {sink.path}:"
                f"{number}: this is another journal. Put the right one back; or move "
                "the folder away, and accept the empty one",
                rule="ledger.cut",
            )


def _require_loss(folder: Path, end: _End, sink: HeadSink, key: HeadKey) -> None:
    # An acceptance of what a start does not refuse would be on record for nothing.
    try:
        newest = require_published(sink, key, folder)
    except LedgerError:
        return
    if newest.seq <= end.head.seq if newest else not end.digests:
        raise LedgerError(
            f"{folder}: there is nothing to accept: the journal holds its newest "
            "published head, and the file of heads is whole",
            rule="ledger.accept",
        )


def _overridden(
    writer: str, reader: SinkReader, mark: Published | None
) -> tuple[int, str]:
    # The newest line of this writer: by the journal, if the sink has lost it.
    line, head = reader.newest(writer) or (0, None)
    if mark is not None and mark.line > line:
        return mark.line, ""
    return line, head.head if head else ""


def _append(
    sink: HeadSink, overridden: tuple[int, str], sign: Callable[..., SignedHead]
) -> SignedHead:
    made: list[SignedHead] = []
    line, head = overridden

    def make(number: int, before: str) -> SignedHead:
        more = {"overrides": line, "overrides_head": head}
        made.append(sign(line=number, before=before, **more))
        return made[-1]

    sink.append(make, accepted=line)
    return made[-1]


def _move_spoiled(end: _End) -> Path | None:
    if not end.spoiled or end.path is None:
        return None
    set_aside(end.path, end.byte_offset)
    return end.path.with_name(f"{end.path.name}.torn")


def _keep_in_archive(
    config: LedgerConfig,
    writer: str,
    end: _End,
    clock: Clock,
) -> int:
    from bridge.ledger.archive.archive import START, Archive, Position  # noqa: PLC0415 - slow

    last: Position = START
    if end.head.seq >= 0:
        last = Position(end.byte_offset, end.head)
    name = f"{writer[:_NAME_CHARACTERS]}{ASIDE}{microseconds(clock)}"
    with closing(Archive.open(config.archive)) as archive:
        return archive.set_aside(writer, last, name)
