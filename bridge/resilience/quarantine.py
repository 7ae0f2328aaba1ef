"""The issuing CAs that are stopped after a mis-issuance, for all workers and restarts.

They stand in the file of the latch. Each request asks, so a look costs one `stat`.
"""

import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from bridge.errors import LedgerError
from bridge.resilience.latch_file import Entry, Kind, LatchFile, State, new_id
from bridge.system.clock import Clock, system_clock

_log = logging.getLogger(__name__)


class StoppedCAs:
    """The issuing CAs that are stopped until an operator acts. For all threads.

    A stop that cannot be written holds in this process, and is written when that is
    possible. While the file cannot be read, what was read last holds.

    Args:
        path: The file of the latch.
        clock: The time.
    """

    def __init__(self, path: Path, clock: Clock = system_clock) -> None:
        self._file = LatchFile(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._known: Mapping[str, Entry] = {}
        self._unwritten: dict[str, Entry] = {}
        self._reasons: Mapping[str, str] = {}
        self._unread = self._untold = ""

    def __bool__(self) -> bool:
        self._read()
        return bool(self._reasons)

    def reason(self, certificate_sha256: str) -> str | None:
        """Return why the issuing CA with this certificate is stopped, or None.

        Another certificate for the issuing CA is an act of an operator: its key is
        proven again.
        """
        self._read()
        return self._reasons.get(certificate_sha256)

    def latched(self) -> tuple[Entry, ...]:
        """Return all that waits for an operator, refused credentials as well.

        A refused credential waits for nobody once another one has passed in its place.
        It stays latched.
        """
        self._read()
        known = {**self._known}
        with self._lock:
            known |= {entry.id: entry for entry in self._unwritten.values()}
        return tuple(known.values())

    def trouble(self) -> str:
        """Return why the file cannot be read or written; empty if it can."""
        self._read()
        return self._unread or self._untold

    def add(self, issuing_ca: str, certificate_sha256: str, reason: str) -> None:
        """Stop an issuing CA, in this process and in all that share the file.

        Args:
            issuing_ca: The name in the configuration.
            certificate_sha256: Of its certificate, in hex.
            reason: For operators.
        """
        entry = Entry(
            id=new_id(),
            kind=Kind.ISSUING_CA.value,
            scope=certificate_sha256,
            issuing_ca=issuing_ca,
            state=State.STOPPED.value,
            at=self._clock().timestamp(),
            reason=reason,
        )
        with self._lock:
            self._unwritten[certificate_sha256] = entry
            self._reasons = {**self._reasons, certificate_sha256: reason}
        self.write()

    def write(self) -> None:
        """Write the stops of this process that are not in the file yet."""
        if not self._unwritten:
            return
        with self._lock:
            waiting = {**self._unwritten}
        try:
            with self._file.change() as content:
                for entry in waiting.values():
                    if content.stopped(entry.scope) is None:
                        content.put(entry)
        except LedgerError as error:
            if not self._untold:
                _log.error(
                    "the other workers, and a restart, cannot be told of the stop: %s",
                    error.detail,
                )
            self._untold = error.detail
            return
        with self._lock:
            for key in waiting:
                self._unwritten.pop(key, None)
            self._untold = ""
            self._stamp = None

    def _read(self) -> None:
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        with self._lock:
            self._take(stamp)

    def _take(self, stamp: tuple[int, ...]) -> None:
        try:
            content = self._file.read()
        except LedgerError as error:
            _log.error("what is latched is not known, the last state holds: %s", error)
            self._unread = error.detail
        else:
            self._unread = ""
            entries = content.entries.values()
            self._known = {entry.id: entry for entry in _waiting(entries)}
            every = [*self._known.values(), *self._unwritten.values()]
            stopped = (entry for entry in every if entry.kind == Kind.ISSUING_CA)
            self._reasons = {entry.scope: entry.reason for entry in stopped}
        self._stamp = stamp


def _waiting(entries: Collection[Entry]) -> Iterator[Entry]:
    # `at` of a proven credential is its last login.
    passed = {entry.scope: entry.at for entry in entries if entry.state == State.PROVEN}
    for entry in entries:
        if entry.is_latched and passed.get(entry.scope, float("-inf")) < entry.at:
            yield entry
