"""Looks up in the archive when a token last proved the caller of a certificate.

A worker imports this module only where a caller may renew by certificate, since it
imports SQLAlchemy.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError

from bridge.errors import ConfigError, LedgerError, ReviewError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.queries import Query
from bridge.ledger.lineage import ShownCertificate, proven_at

LOOKUP_RULE = "renewal.lookup"
"""The rule of a look-up that cannot be made."""
_THREADS = 2
_WAITING = 8
"""So many calls wait for a look-up at most: others need the threads of the front."""
_SECONDS = 2.0
"""The longest that a look-up may take."""


class Lineages:
    """Looks client certificates up in the archive. Safe between threads.

    Args:
        url: The archive.
        seconds: The longest that a look-up may take.
        waiting: How many calls wait for a look-up at most.
    """

    def __init__(
        self, url: str, *, seconds: float = _SECONDS, waiting: int = _WAITING
    ) -> None:
        self._url = url
        self._seconds = seconds
        self._lock = threading.Lock()
        self._archive: Archive | None = None
        self._places = threading.Semaphore(waiting)
        # A database that does not answer holds these threads, and not those of calls.
        self._readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="lineage")

    def proven_at(self, shown: ShownCertificate, seconds: float) -> int | None:
        """Return when a token last proved the caller that got this certificate.

        Args:
            shown: The certificate.
            seconds: What is left of the time of the call.

        Returns:
            Seconds since 1970-01-01 UTC; 0 where that is not on record, as in journals
            of earlier versions; None if the archive has no such certificate of a
            workload.

        Raises:
            ReviewError: The archive cannot be asked now.
        """
        if not self._places.acquire(blocking=False):
            raise _unknown("too many look-ups wait for it")
        try:
            return self._ask(shown, min(self._seconds, seconds))
        finally:
            self._places.release()

    def _ask(self, shown: ShownCertificate, seconds: float) -> int | None:
        try:
            reading = self._readers.submit(self._read, shown)
        except RuntimeError as error:
            raise _unknown("it cannot be asked now") from error
        try:
            return reading.result(seconds)
        except LateError as error:
            reading.cancel()
            raise _unknown("it did not answer in time") from error
        except (LedgerError, ConfigError) as error:
            raise _unknown(error.detail or str(error)) from error

    def close(self) -> None:
        """Release all connections, without waiting for a look-up."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        archive, self._archive = self._archive, None
        if archive is not None:
            archive.close()

    def _read(self, shown: ShownCertificate) -> int | None:
        query = Query(serial=f"{shown.serial:x}")
        return proven_at(self._opened().search(query), shown)

    def _opened(self) -> Archive:
        with self._lock:
            if self._archive is not None and self._archive.moved():
                self._archive.close()
                self._archive = None
            if self._archive is None:
                self._archive = Archive.open(self._url, make=False)
            return self._archive


def _unknown(reason: str) -> ReviewError:
    return ReviewError(
        "whether the certificate may be renewed cannot be told now; try again",
        rule=LOOKUP_RULE,
        detail=f"the archive of the ledger: {reason}",
    )
