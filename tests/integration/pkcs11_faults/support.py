"""What each row of the faults has in common: a fault, its end, and what clients saw."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.clients.callers import RETRYABLE, Callers
from tests.support.harness.hsm import HSMBridge
from tests.support.harness.workers import await_true

_TIMES = os.environ.get("MESHCA_FAULT_TIMES", "")
"""The file for the measured times, on a machine where nothing else runs."""
MEASURES = bool(_TIMES)
WELL_AGAIN_SECONDS = 5.0 if MEASURES else 15.0
"""The bound: from the moment when the part is well to a certificate on each front. It
is 5 s; a test that shares the cores with others may wait for its turn besides."""
_PATIENCE_SECONDS = 30.0
CODES = {
    "CKR_HOST_MEMORY": 0x02,
    "CKR_GENERAL_ERROR": 0x05,
    "CKR_FUNCTION_FAILED": 0x06,
    "CKR_DEVICE_ERROR": 0x30,
    "CKR_DEVICE_MEMORY": 0x31,
    "CKR_DEVICE_REMOVED": 0x32,
    "CKR_KEY_HANDLE_INVALID": 0x60,
    "CKR_OBJECT_HANDLE_INVALID": 0x82,
    "CKR_OPERATION_ACTIVE": 0x90,
    "CKR_OPERATION_NOT_INITIALIZED": 0x91,
    "CKR_SESSION_CLOSED": 0xB0,
    "CKR_SESSION_HANDLE_INVALID": 0xB3,
    "CKR_TOKEN_NOT_PRESENT": 0xE0,
    "CKR_TOKEN_NOT_RECOGNIZED": 0xE1,
    "CKR_USER_NOT_LOGGED_IN": 0x101,
    "CKR_CRYPTOKI_NOT_INITIALIZED": 0x190,
    "a code of the vendor": 0x80000123,
}
SESSION_COUNT = 0xB1


@dataclass(frozen=True, slots=True)
class Ground:
    """A bridge that all rows of a module share, and the clients that ask it."""

    bridge: HSMBridge
    callers: Callers

    def survive(
        self,
        name: str,
        begin: Callable[[], object],
        *,
        until: Callable[[], bool],
        end: Callable[[], object] | None = None,
    ) -> None:
        """Begin a fault, await that it is felt, end it, and await certificates.

        Args:
            name: Of the row, for the table of the documents.
            begin: Puts the fault in place.
            until: Whether it was felt.
            end: Makes the part well again; by default all faults of the module end.

        Raises:
            AssertionError: A client saw what it does not ask again after, or it took
                too long.
        """
        shim = self.bridge.only.shim
        began = time.monotonic()
        try:
            begin()
            await_true(until)
        finally:
            (end or shim.clear)()
        well = time.monotonic()
        took = self.callers.await_served(well, _PATIENCE_SECONDS)
        codes = self.callers.codes(began)
        slowest = max(one.seconds for one in self.callers.results(began))
        keep(name, well - began, took, slowest, dict(codes))
        assert set(codes) <= RETRYABLE, self.callers.texts(began)
        assert took <= WELL_AGAIN_SECONDS, self.callers.texts(began)

    def new_processes(self, count: int) -> Callable[[], bool]:
        """Return what tells whether so many signer processes began since now."""
        shim = self.bridge.only.shim
        before = shim.calls("C_Initialize")
        return lambda: shim.calls("C_Initialize") >= before + count

    def failures(self, since: float) -> int:
        """Return how many calls that began since then got no certificate."""
        codes = self.callers.codes(since)
        return codes.total() - codes["OK"]


@contextmanager
def ground(
    folder: Path, each: int = 2, workers: int = 1, **options: object
) -> Iterator[Ground]:
    """Serve and ask; at the end hold the ledger against what the clients hold."""
    bridge = HSMBridge(folder, workers, options=options)
    try:
        with bridge, Callers(bridge, each) as callers:
            callers.await_served(time.monotonic(), _PATIENCE_SECONDS)
            yield Ground(bridge, callers)
        bridge.require_all_on_record(callers)
    except BaseException as error:
        error.add_note(bridge.log())
        raise


def keep(
    name: str, lasted: float, took: float, slowest: float, codes: dict[str, int]
) -> None:
    """Keep a row for the table of `docs/faults.md`, if MESHCA_FAULT_TIMES is a file."""
    if _TIMES:
        row = {
            "fault": name,
            "lasted": round(lasted, 2),
            "well_after": round(took, 2),
            "slowest_answer": round(slowest, 2),
            "saw": codes,
        }
        with Path(_TIMES).open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")
