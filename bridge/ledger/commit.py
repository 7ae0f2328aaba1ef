"""Group commit: callers in flight at the same time share one write and one sync.

There is no thread between a caller and the disk. The first caller that finds nobody
writing leads: it writes everything that waits, its own row among it. The others sleep,
each on a lock of its own; the leader wakes those whose rows it wrote, and one of the
rest leads next.
"""

import threading
from collections.abc import Callable, Sequence

from bridge.errors import LedgerError
from bridge.ledger.rows import Pending

Write = Callable[[Sequence[Pending]], None]
"""Returns when all rows are on disk; whatever it raises shuts the queue."""

_BATCH_ROWS = 2048


class GroupCommit:
    """Rows that wait for the disk, and whose turn it is to write them.

    `write` is called by one thread at a time. After it has failed once, everything is
    refused: what the file ends in is not known.
    """

    def __init__(
        self, write: Write, *, pending_rows: int, patience_seconds: float
    ) -> None:
        self._write = write
        self._pending_rows = pending_rows
        self._patience_seconds = patience_seconds
        # Guards what follows; held for moments, never across the disk.
        self._mutex = threading.Lock()
        self._pending: list[Pending] = []
        self._led = False
        self._shut = ""
        self._ended = False

    @property
    def shut(self) -> str:
        """Why nothing is written any more; empty while all is well."""
        return self._shut

    def add(self, row: Pending) -> None:
        """Queue `row` for the next batch.

        Raises:
            LedgerError: Too many rows wait, or the queue is shut.
        """
        with self._mutex:
            self._require_open()
            if len(self._pending) >= self._pending_rows:
                raise LedgerError("the ledger's queue is full", rule="ledger.full")
            self._pending.append(row)

    def wait(self, row: Pending, *, last: bool = False) -> None:
        """Queue `row` and return when it, and all before it, are on disk.

        Args:
            row: May have no parts: then it only waits for the rows before it.
            last: Refuse everything after this row.

        Raises:
            LedgerError: The row may not be on disk.
        """
        gate: threading.Lock | None = None
        with self._mutex:
            self._require_open()
            self._ended = last
            self._pending.append(row)
            if self._led:
                row.gate = gate = threading.Lock()
                gate.acquire()
            self._led = True
        if gate is not None:
            if self._sleep(row, gate):
                return
            row.gate = None
        try:
            while not row.done:
                self._commit(row)
        finally:
            self._hand_over()

    def flush(self) -> None:
        """Return when everything queued so far is on disk. Raises as `wait` does."""
        if self._pending:
            self.wait(Pending([]))

    def _require_open(self) -> None:
        if self._shut:
            raise self._refused()
        if self._ended:
            raise LedgerError("the ledger is closed", rule="ledger.closed")

    def _refused(self) -> LedgerError:
        return LedgerError(
            "the ledger failed earlier and needs an operator",
            rule="ledger.shut",
            detail=self._shut,
        )

    # Returns True when the row is on disk, False when it is this caller's turn to lead.
    def _sleep(self, row: Pending, gate: threading.Lock) -> bool:
        try:
            woken = gate.acquire(timeout=self._patience_seconds)
        except BaseException:
            self._leave(row)
            raise
        if not woken:
            with self._mutex:
                if not (row.done or row.leads or self._shut):
                    # The row may still get to the disk; nobody waits for it any more.
                    row.gate = None
                    raise LedgerError(
                        "the ledger's disk does not answer", rule="ledger.slow"
                    )
        if row.done:
            return True
        if row.leads:
            return False
        raise self._refused()

    # A caller was interrupted in its sleep: nobody may wait for it to lead.
    def _leave(self, row: Pending) -> None:
        with self._mutex:
            row.gate = None
        if row.leads and not row.done:
            self._hand_over()

    def _commit(self, own: Pending) -> None:
        if self._shut:
            raise self._refused()
        with self._mutex:
            batch = self._pending[:_BATCH_ROWS]
            del self._pending[:_BATCH_ROWS]
        if not batch:
            self._shut = "a row that somebody waits for is lost"
            raise self._refused()
        try:
            self._write(batch)
        except BaseException as error:
            # The rows of this batch are out of the queue: nobody will write them.
            self._shut = getattr(error, "detail", "") or repr(error)
            _wake(batch, own)
            raise
        for row in batch:
            row.done = True
        _wake(batch, own)

    def _hand_over(self) -> None:
        with self._mutex:
            if self._shut:
                _wake(self._pending)
                self._pending.clear()
                self._led = False
                return
            for row in self._pending:
                if row.gate is not None:
                    row.leads = True
                    row.gate.release()
                    return
            self._led = False


def _wake(rows: Sequence[Pending], leader: Pending | None = None) -> None:
    for row in rows:
        gate = row.gate
        if gate is not None and row is not leader:
            gate.release()
