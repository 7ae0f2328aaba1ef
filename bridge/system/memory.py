"""Gives memory back to the system that a rush of callers left unused.

A thousand connections at once take a hundred megabytes, and the C library keeps what
they free, in pieces: the next rush finds no room that fits and takes more.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_LOOK_SECONDS = 1.0
_GROWTH = 1.01
"""Below that it is not worth the while."""
_CALM = 0.5
"""Of a core: who uses more has other things to do."""
_log = logging.getLogger(__name__)


class Trimmer:
    """Looks, in a thread of its own, whether there is something to give back.

    Args:
        trim: Gives it back.
        resident: Returns how much memory the process holds, in bytes.
        used: Returns how much CPU time it has used, in seconds.
    """

    def __init__(
        self,
        trim: Callable[[], object],
        resident: Callable[[], int],
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._trim = trim
        self._resident = resident
        self._used = used
        self._before = used()
        self._least = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    @classmethod
    def of_this_process(cls) -> "Trimmer | None":
        """Return one, or None where the C library cannot do it (musl)."""
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            trim = library.malloc_trim
            return cls(lambda: trim(0), _resident)
        return None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        self._thread.join()

    def look(self, seconds: float) -> None:
        """Give back what there is, if this is the time for it.

        Args:
            seconds: Since the last look.
        """
        used = self._used()
        is_calm = used - self._before < seconds * _CALM
        self._before = used
        if is_calm and self._resident() > self._least * _GROWTH:
            self._trim()
            self._least = self._resident()
            _log.debug("%d bytes of memory are held", self._least)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closing.wait(_LOOK_SECONDS):
            last, before = time.monotonic(), last
            try:
                self.look(last - before)
            except Exception:  # noqa: BLE001 - the edge of a thread that must not end
                _log.exception("unused memory could not be given back")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
