"""A bridge with a key in a token, and the clients that ask it while the token fails."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.clients.callers import Callers
from tests.support.harness.faults import PATIENCE_SECONDS, Faults
from tests.support.harness.hsm import HSMBridge

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
        """See `Faults.survive`. By default all faults of the module end."""
        faults, shim = Faults(self.callers), self.bridge.only.shim
        faults.survive(name, begin, until=until, end=end or shim.clear)

    def new_processes(self, count: int) -> Callable[[], bool]:
        """Return what tells whether so many signer processes began since now."""
        shim = self.bridge.only.shim
        before = shim.calls("C_Initialize")
        return lambda: shim.calls("C_Initialize") >= before + count

    def failures(self, since: float) -> int:
        """See `Faults.failures`."""
        return Faults(self.callers).failures(since)


@contextmanager
def ground(
    folder: Path, each: int = 2, workers: int = 1, **options: object
) -> Iterator[Ground]:
    """Serve and ask; at the end hold the ledger against what the clients hold."""
    bridge = HSMBridge(folder, workers, options=options)
    try:
        with bridge, Callers(bridge, each) as callers:
            callers.await_served(time.monotonic(), PATIENCE_SECONDS)
            yield Ground(bridge, callers)
        bridge.require_all_on_record(callers)
    except BaseException as error:
        error.add_note(bridge.log())
        raise
