"""Group commit: callers in flight at the same time share one write and one sync.

There is no thread between a caller and the disk. The first caller that finds no other
caller writing is the leader: it writes all rows that wait, its own among them. The
other callers sleep, each on a lock of its own. The leader wakes the callers whose rows
it wrote, and one of the others is the next leader.
"""

import threading
from collections.abc import Callable, Sequence

from bridge.errors import LedgerError
from bridge.ledger.chain import Pending

NO_ROOM_RULE = "ledger.room"
"""The rule of an error that ends when the disk has room again."""
SHUT_RULE = "ledger.shut"
"""The rule of an error that ends with a restart, which reads the journal again."""

Write = Callable[[Sequence[Pending]], None]
"""Returns when all rows are on disk. An error of rule `NO_ROOM_RULE` stalls the queue,
and any other shuts it."""
Mend = Callable[[], None]
"""Brings the file back to its last durable row. Raises as `Write` does."""

_BATCH_ROWS = 2048


class GroupCommit:
    """A queue of rows, and the choice of the caller that writes them.

    One thread at a time calls `write` and `mend`. When the disk has no room, the queue
    stalls: callers that wait are refused, rows that no caller waits for are kept, and
    `mend` ends the stall. After any other error every row is refused, because it is not
    known what the file ends in.
    """

    def __init__(
        self,
        write: Write,
        mend: Mend,
        *,
        pending_rows: int,
        patience_seconds: float,
    ) -> None:
        self._write = write
        self._mend = mend
        self._pending_rows = pending_rows
        self._patience_seconds = patience_seconds
        # Guards the fields below. No thread holds it while it waits for the disk.
        self._mutex = threading.Lock()
        self._pending: list[Pending] = []
        self._led = False
        self._shut = ""
        self._stalled = ""
        self._ended = False

    @property
    def shut(self) -> tuple[str, str] | None:
        """The rule by which no row is written, and the reason; or None."""
        if self._shut:
            return SHUT_RULE, self._shut
        if self._stalled:
            return NO_ROOM_RULE, self._stalled
        return None

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
        """Queue `row` and return when it and all rows before it are on disk.

        Args:
            row: With no parts it is not written, and the call waits for the rows before
                it.
            last: Refuse everything after this row.

        Raises:
            LedgerError: The row may not be on disk.
        """
        wakeup: threading.Lock | None = None
        with self._mutex:
            self._require_open()
            if self._stalled:
                raise self._refused()
            self._ended = last
            self._pending.append(row)
            if self._led:
                row.wakeup = wakeup = threading.Lock()
                wakeup.acquire()
            self._led = True
        if wakeup is not None:
            if self._sleep(row, wakeup):
                return
            row.wakeup = None
        try:
            while not row.done:
                self._commit(row)
        finally:
            self._hand_over()

    def flush(self) -> None:
        """Return when all queued rows are on disk. Raises as `wait` does."""
        if self._pending or self._led:
            # A batch that another thread writes has left the queue.
            self.wait(Pending([]))

    def mend(self) -> None:
        """Try to end a stall.

        Raises:
            LedgerError: The stall continues, or the queue is shut now.
        """
        with self._mutex:
            if self._led or self._shut or not self._stalled:
                return
            self._led = True
        try:
            self._mend()
            self._stalled = ""
        except BaseException as error:
            self._note(error)
            raise
        finally:
            self._hand_over()

    def _require_open(self) -> None:
        if self._shut:
            raise self._refused()
        if self._ended:
            raise LedgerError("the ledger is closed", rule="ledger.closed")

    def _refused(self) -> LedgerError:
        if self._stalled and not self._shut:
            return LedgerError(
                "the ledger's disk has no room",
                rule=NO_ROOM_RULE,
                detail=self._stalled,
            )
        return LedgerError(
            "the ledger failed earlier and needs an operator",
            rule=SHUT_RULE,
            detail=self._shut,
        )

    # Returns True when the row is on disk, False when this caller is the next leader.
    def _sleep(self, row: Pending, wakeup: threading.Lock) -> bool:
        try:
            woken = wakeup.acquire(timeout=self._patience_seconds)
        except BaseException:
            self._leave(row)
            raise
        if not woken:
            with self._mutex:
                if not (row.done or row.leads or self._shut or self._stalled):
                    # The row may still be written; no caller waits for it any more.
                    row.wakeup = None
                    raise LedgerError(
                        "the ledger's disk does not answer", rule="ledger.slow"
                    )
        if row.done:
            return True
        if row.leads:
            return False
        raise self._refused()

    # A sleeping caller was interrupted, so it cannot be the leader.
    def _leave(self, row: Pending) -> None:
        with self._mutex:
            row.wakeup = None
        if row.leads and not row.done:
            self._hand_over()

    def _commit(self, own: Pending) -> None:
        if self._shut:
            raise self._refused()
        with self._mutex:
            batch = self._pending[:_BATCH_ROWS]
            del self._pending[:_BATCH_ROWS]
        if not batch:
            self._shut = "a row that a caller waits for is not in the queue"
            raise self._refused()
        try:
            self._write(batch)
        except BaseException as error:
            self._note(error)
            with self._mutex:
                if not self._shut:
                    self._keep(batch, own)
                _wake(batch, own)
            raise
        for row in batch:
            row.done = True
        _wake(batch, own)

    def _note(self, error: BaseException) -> None:
        reason = getattr(error, "detail", "") or repr(error)
        if isinstance(error, LedgerError) and error.rule == NO_ROOM_RULE:
            self._stalled = reason
        else:
            self._shut = reason

    # After a write without room. Callers that wait get an error, and do not sign or
    # release a certificate. The other rows are written when there is room.
    def _keep(self, batch: Sequence[Pending], own: Pending) -> None:
        kept = [row for row in batch if row.wakeup is None]
        self._pending = [row for row in (*kept, *self._pending) if row is not own]

    def _hand_over(self) -> None:
        with self._mutex:
            if self._shut:
                _wake(self._pending)
                self._pending.clear()
                self._led = False
                return
            if self._stalled:
                _wake(self._pending)
                self._pending = [row for row in self._pending if row.wakeup is None]
                self._led = False
                return
            for row in self._pending:
                if row.wakeup is not None:
                    row.leads = True
                    row.wakeup.release()
                    return
            self._led = False


def _wake(rows: Sequence[Pending], leader: Pending | None = None) -> None:
    for row in rows:
        wakeup = row.wakeup
        if wakeup is not None and row is not leader:
            wakeup.release()
