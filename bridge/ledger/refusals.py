"""How many refusals that anybody can cause at will get a row of their own."""

import threading
from collections import Counter

from bridge.ledger.events import Summary


class RefusalMeter:
    """Counts per second; above the rate, calls only show in a summary.

    Anybody who reaches the port can cause such rows, or any workload that asks without
    end, and must not be able to fill the disk with them.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._lock = threading.Lock()
        self._second = 0
        self._admitted = 0
        self._above: Counter[str] = Counter()

    def admit(self, rule: str) -> bool:
        """Return whether this call gets a row; otherwise it is counted.

        Args:
            rule: The rule that the call broke. `due` has been told the time before.
        """
        with self._lock:
            if self._admitted < self._per_second:
                self._admitted += 1
                return True
            self._above[rule] += 1
            return False

    def due(self, second: int) -> Summary | None:
        """Begin a new second, if `second` is one; return what the one before left."""
        with self._lock:
            if second == self._second:
                return None
            before, self._second, self._admitted = self._second, second, 0
            if not self._above:
                return None
            rules, self._above = dict(self._above), Counter()
        return Summary(since=before, until=before + 1, rules=rules)
