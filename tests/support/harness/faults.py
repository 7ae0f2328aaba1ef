"""What each row of the faults has in common: a fault, its end, and what clients saw."""

import json
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.support.clients.callers import RETRYABLE, Callers
from tests.support.harness.workers import WAIT_SECONDS, await_true

_TIMES = os.environ.get("MESHCA_FAULT_TIMES", "")
"""The file for the measured times, on a machine where nothing else runs."""
MEASURES = bool(_TIMES)
WELL_AGAIN_SECONDS = 5.0 if MEASURES else 15.0
"""The bound: from the moment when the part is well to a certificate on each front. It
is 5 s; a test that shares the cores with others may wait for its turn besides."""
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of a bridge that all rows of a module share, and the clients that ask."""

    callers: Callers

    def survive(
        self,
        name: str,
        begin: Callable[[], object],
        *,
        until: Callable[[], bool],
        end: Callable[[], object],
        allowed: Collection[str] = RETRYABLE,
        patience: float = WAIT_SECONDS,
    ) -> float:
        """Begin a fault, await that it is felt, end it, and await certificates.

        Args:
            name: Of the row, for the table of the documents.
            begin: Puts the fault in place.
            until: Whether it was felt.
            end: Makes the part well again.
            allowed: The statuses that clients may see.
            patience: The longest, in seconds, until it is felt.

        Returns:
            When it began, by `time.monotonic()`.

        Raises:
            AssertionError: A client saw another status, or it took too long.
        """
        began = time.monotonic()
        try:
            begin()
            await_true(until, patience)
        except TimeoutError as error:
            error.add_note(f"clients saw {self.callers.texts(began)}")
            raise
        finally:
            end()
        well = time.monotonic()
        took = self.callers.await_served(well, PATIENCE_SECONDS)
        codes = self.callers.codes(began)
        slowest = max(one.seconds for one in self.callers.results(began))
        keep(name, well - began, took, slowest, dict(codes))
        assert set(codes) <= set(allowed), self.callers.texts(began)
        assert took <= WELL_AGAIN_SECONDS, self.callers.texts(began)
        return began

    def failures(self, since: float, front: str = "") -> int:
        """Return how many calls that began since then got no certificate."""
        return sum(
            one.code != "OK" and front in {"", one.front}
            for one in self.callers.results(since)
        )


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
