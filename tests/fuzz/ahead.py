"""Fuzz target: what a start makes of the file ahead of a journal.

The first two bytes say where in the segment a record begins, the next two how much of
it a power cut has left, and the rest are the rows of the record and, as they are, the
block after it. Whatever they are, a start ends with a journal whose rows chain, or a
`LedgerError`; and no row that the power cut left, or that was there before it, becomes
another.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from bridge.errors import LedgerError
from bridge.ledger.journal import ahead
from bridge.ledger.journal.restore import absorb
from bridge.ledger.journal.segments import segment_path
from bridge.ledger.verify import verify
from tests.fuzz.engine import main
from tests.fuzz.journal import WRITER, good


def run(data: bytes) -> None:
    """Start after a power cut with what `data` says in the file."""
    folder = _place() / WRITER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    at, left = (int.from_bytes(part) for part in (data[:2], data[2:4]))
    rows = data[4:]
    segment = segment_path(folder, 1)
    segment.write_bytes(good()[:left])
    digest = ahead._digest(1, at, rows)
    header = ahead._HEADER.pack(ahead._MAGIC, 1, at, len(rows), digest)
    padding = bytes(-len(header + rows) % ahead._BLOCK)
    (folder / ahead.NAME).write_bytes(header + rows + padding + rows)
    try:
        absorb(folder)
    except LedgerError:
        if segment.read_bytes() != good()[:left]:
            raise AssertionError("what is refused was changed") from None
        return
    found = segment.read_bytes()
    shorter = min(len(found), len(good()))
    if found[:shorter] != good()[:shorter] and verify(_place()).intact:
        raise AssertionError("a row became another")
    if not found.startswith(good()[:left]):
        raise AssertionError("a row is gone that the power cut left")


@cache
def _place() -> Path:
    place = Path(tempfile.mkdtemp(prefix="meshca-fuzz-"))
    atexit.register(shutil.rmtree, place)
    return place


if __name__ == "__main__":
    main(run)
