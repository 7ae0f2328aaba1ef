"""The rows of what is latched, stopped and cleared, and who writes them.

The process that latches something may have no journal: it is the command line, or the
process that holds a PKCS#11 module. It leaves a note in the file of the latch. A worker
writes the row, and then removes the note. A worker that dies in between leaves a second
row of the same ID.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bridge.ledger.events import Cleared, Latched, Stopped
from bridge.resilience.latch_file import Entry, Kind, LatchFile, Note, State

LatchRow = Latched | Stopped | Cleared
"""A row about one entry of the latch."""


def row_of(note: Note) -> LatchRow:
    """Return the row that a note asks for."""
    entry = note.entry
    if note.by:
        return Cleared(
            latch=entry.id,
            issuing_ca=entry.issuing_ca,
            scope=entry.scope,
            by=note.by,
            detail=note.reason,
        )
    if entry.kind == Kind.ISSUING_CA:
        return Stopped(
            latch=entry.id,
            issuing_ca=entry.issuing_ca,
            issuer_sha256=entry.scope,
            since=int(entry.at),
            detail=entry.reason,
        )
    return Latched(
        latch=entry.id,
        issuing_ca=entry.issuing_ca,
        scope=entry.scope,
        state=entry.state,
        since=int(entry.at),
        salt=entry.salt,
        digest=entry.digest,
        detail=entry.reason,
    )


def entry_of(values: Mapping[str, Any]) -> Entry:
    """Return the entry that a row `latched` or `stopped` tells of.

    Raises:
        KeyError: A field is absent.
        TypeError: A field is of another type.
        ValueError: A field has another value.
    """
    is_ca = values["kind"] == Stopped.kind
    entry = Entry(
        id=values["latch"],
        kind=_kind_of(values).value,
        scope=values["issuer_sha256" if is_ca else "scope"],
        issuing_ca=values["issuing_ca"],
        state=State.STOPPED.value if is_ca else values["state"],
        at=float(values["since"]),
        reason=values["detail"],
        salt="" if is_ca else values["salt"],
        digest="" if is_ca else values["digest"],
    )
    entry.require_valid()
    return entry


def _kind_of(values: Mapping[str, Any]) -> Kind:
    if values["kind"] == Stopped.kind:
        return Kind.ISSUING_CA
    return Kind.BAR if values["state"] == State.BARRED else Kind.CREDENTIAL


class LatchRecorder:
    """Writes the rows that the file of the latch asks for. For one thread.

    Args:
        path: The file of the latch.
        record: Writes one row, and returns when it is on disk.
    """

    def __init__(self, path: Path, record: Callable[[LatchRow], None]) -> None:
        self._file = LatchFile(path)
        self._record = record
        self._stamp: tuple[int, ...] = ()

    def run(self) -> None:
        """Write the rows that are asked for now; costs one `stat` where none is.

        Raises:
            LedgerError: A row cannot be written, or the file not be used. The next
                call tries again.
        """
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        try:
            # One worker writes them.
            with self._file.turn("rows", 0):
                self._write()
        except TimeoutError:
            return
        self._stamp = stamp

    def _write(self) -> None:
        notes = self._file.read().notes
        for note in notes:
            self._record(row_of(note))
        if notes:
            with self._file.change() as content:
                content.notes = [note for note in content.notes if note not in notes]


def begin(path: Path, now: float, *, is_shared: bool) -> None:
    """Read the file of the latch once, at the start of a worker.

    Args:
        path: The file.
        now: In seconds since 1970-01-01 UTC.
        is_shared: Whether other hosts have the same archive. A first login then waits
            for what they have latched.

    Raises:
        LedgerError: The file cannot be used. It is not known what is stopped, so the
            worker may not start.
    """
    file = LatchFile(path)
    if is_shared or file.read().begun_at:
        with file.change() as content:
            content.begun_at = now if is_shared else 0.0
