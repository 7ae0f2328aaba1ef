"""How long a thread may run Python while others want to, by how crowded it is."""

import sys
import threading

_SWITCH_SECONDS = sys.getswitchinterval()
_CROWDED_SWITCH_SECONDS = 0.0005


class Crowds:
    """Counts what is crowded: the interval is the process's, and pools share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def begin(self) -> None:
        """Count one more, and let threads take short turns."""
        self._change(1)

    def end(self) -> None:
        """Count one less; turns are the usual ones when it was the last."""
        self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            self._count += by
            turn = _CROWDED_SWITCH_SECONDS if self._count else _SWITCH_SECONDS
            sys.setswitchinterval(turn)


CROWDS = Crowds()
"""Those of this process."""
