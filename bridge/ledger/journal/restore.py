"""What a power cut took from the end of a journal, and putting it back."""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bridge.errors import LedgerError
from bridge.ledger.chain import Chain, Head, parse
from bridge.ledger.journal.ahead import NAME, Record, read
from bridge.ledger.journal.segments import (
    after_last_newline,
    segment_path,
    segments,
    sync_folder,
)
from bridge.ledger.journal.tail import set_aside, way_out


class Missing(NamedTuple):
    """What the last segment of a journal has to hold, and does not all hold."""

    path: Path
    """The segment."""
    offset: int
    """Where it differs, or ends, at the earliest; a row begins there."""
    data: bytes
    """All rows from there on."""

    def rows(self) -> int:
        """Return how many rows are not there."""
        return self.data.count(b"\n") - self._kept().count(b"\n")

    def keep_others(self) -> None:
        """Keep what is there in its place in a file `.torn`."""
        kept = len(self._kept())
        if self.path.stat().st_size > self.offset + kept:
            set_aside(self.path, self.offset + kept)

    def whole(self) -> BinaryIO:
        """Return the segment as it has to be."""
        return BytesIO(self.path.read_bytes()[: self.offset] + self.data)

    def _kept(self) -> bytes:
        # What is there of the data.
        with self.path.open("rb") as file:
            file.seek(self.offset)
            found = file.read(len(self.data))
        pairs = enumerate(zip(found, self.data, strict=False))
        return found[: next((at for at, (a, b) in pairs if a != b), len(found))]


def missing(folder: Path) -> Missing | None:
    """Return what was durable in the file and is not in the last segment, or None.

    Nobody may be writing. No power cut takes what was synced before the first row in
    the file, or makes other rows of it.

    Raises:
        LedgerError: The segment ends before, or is another (rule `ledger.cut`), or the
            file cannot be read.
        OSError: The disk fails.
    """
    records = list(read(folder))
    newest = max((each.segment for each in records), default=0)
    files = segments(folder)
    number = files[-1][0] if files else 0
    if newest < number or not newest:
        return None
    path = segment_path(folder, newest)
    offset, data = _last_run(each for each in records if each.segment == newest)
    if newest > number:
        raise _cut(path, 0)
    with path.open("rb") as file:
        before = file.read(offset)
        found = file.read(len(data))
    chain = Chain(folder.name, _head(files[:-1], newest, before))
    if not offset:
        chain.enter(newest)
    if not _joins(chain, data):
        raise _cut(path, offset)
    return None if found == data else Missing(path, offset, data)


def absorb(folder: Path) -> int:
    """Put back what a power cut took from the last segment.

    What is found in its place is kept in a file `.torn` beside it, unless it is a part
    of the same. All that is left is on disk before the return: the file's records are
    needed no more, and the next segment may have its place on a full disk.

    Returns:
        How many rows were put back.

    Raises:
        LedgerError: See `missing`.
        OSError: The disk fails. It can be tried again.
    """
    lost = missing(folder)
    restored = 0
    if lost is not None:
        restored = lost.rows()
        lost.keep_others()
        _write_anew(lost.path, lost.whole().read())
    elif (folder / NAME).exists():
        for _, path in segments(folder)[-1:]:
            _write_anew(path, path.read_bytes())
    return restored


def _write_anew(path: Path, data: bytes) -> None:
    # A write to the disk that failed is told once, to whoever syncs next: who reads the
    # file finds all of it in the system's cache, and a later sync finds nothing to do.
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def _cut(path: Path, offset: int) -> LedgerError:
    folder = path.parent
    return LedgerError(
        f"{path}: the journal went on at byte {offset}, as {folder / NAME} shows, and "
        "this is not what was before: it was cut or restored from an older copy. Put "
        "the newer one back (of a copy that was made while the server ran, leave "
        f"{NAME} out); {way_out(folder.name)}",
        rule="ledger.cut",
    )


# What follows the last sync of the segment: before it, records have a gap, as the batch
# that was synced in the segment is no record.
def _last_run(records: Iterator[Record]) -> tuple[int, bytes]:
    by_offset = {each.offset: each.data for each in records}
    start, run = 0, b""
    for offset in sorted(by_offset):
        if offset != start + len(run):
            start, run = offset, b""
        run += by_offset[offset]
    return start, run


def _head(earlier: list[tuple[int, Path]], number: int, before: bytes) -> Head | None:
    # Of the last row before the run. A crash may have left a segment without a row.
    written = [path for _, path in earlier if path.stat().st_size]
    if before:
        last = before[:-1].rpartition(b"\n")[2]
    elif written:
        last = after_last_newline(written[-1], 1)
    else:
        return None
    try:
        row = parse(last)
    except ValueError:
        return None
    return Head(number, row.seq, row.digest)


def _joins(chain: Chain, data: bytes) -> bool:
    *lines, end = data.split(b"\n")
    try:
        return not end and not any(chain.problem(parse(line)) for line in lines)
    except ValueError:
        return False
