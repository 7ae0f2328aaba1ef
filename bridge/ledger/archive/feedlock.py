"""Who feeds a writer: one at a time, whoever has this lock."""

import fcntl
import os
from pathlib import Path

from bridge.errors import LedgerError

RETRY_RULE = "ledger.archive"
"""The rule of an error of the archive that may be gone at the next try."""


class FeedLock:
    """Held by whoever feeds the writer of a folder, from before it reads its position.

    A server that was killed leaves the process that feeds for it behind, for a moment
    in which the next server may already have begun.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "feed.lock"
        self._fd: int | None = None

    def take(self) -> None:
        """Take it; nothing when it is held already.

        Raises:
            LedgerError: Another has it, or the file cannot be made (rule
                `ledger.archive`: try again).
        """
        if self._fd is not None:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(
                f"{self._path}: cannot be used: {error.strerror}", rule=RETRY_RULE
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise LedgerError(
                f"{self._path}: another process feeds this writer", rule=RETRY_RULE
            ) from error
        self._fd = fd

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
