"""Kills processes of a served bridge at random moments, and looks at what is left."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.ledger.verify import verify
from tests.support.clients.load import Held, Holders
from tests.support.harness.processes import is_alive
from tests.support.harness.workers import Supervised, await_true

WORKER, PARENT, ALL = "a worker", "the parent", "the parent and all workers"
_MOST_WORKER_KILLS = 6
"""In a row: each of them makes the supervisor wait longer before the next start."""
_LONGEST_WAIT_SECONDS = 0.4
_RECOVERY_SECONDS = 60.0
_TORN = "the entry is torn"


class UnsoundError(AssertionError):
    """The ledger, or what a client holds, is not what it has to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill, and how it ended."""

    what: str
    recovery_seconds: float
    """From the kill to the answer of a call that began after it."""


class Kills:
    """One bridge under load whose processes are killed.

    Args:
        bridge: Running.
        holders: Asking.
        moments: Says what is killed, and when.
    """

    def __init__(
        self, bridge: Supervised, holders: Holders, moments: random.Random
    ) -> None:
        self._bridge = bridge
        self._holders = holders
        self._moments = moments
        self._intents = Intents(bridge.folder / "journal")
        self._checked = 0
        self._serials: set[int] = set()

    def run(self, count: int) -> Iterator[Kill]:
        """Kill `count` times; yield each once all is well again.

        Raises:
            UnsoundError: It is not.
            TimeoutError: Nobody gets a certificate any more.
        """
        left = self._moments.randint(1, _MOST_WORKER_KILLS)
        for _ in range(count):
            time.sleep(self._moments.uniform(0, _LONGEST_WAIT_SECONDS))
            if left:
                left -= 1
                yield self._kill(WORKER)
            else:
                left = self._moments.randint(1, _MOST_WORKER_KILLS)
                yield self._kill(self._moments.choice((PARENT, ALL)))

    def require_sound(self) -> None:
        """Hold the ledger against itself, and every certificate against the ledger.

        Raises:
            UnsoundError: They do not agree.
        """
        held = self._holders.held()
        self._require_verified()
        self._intents.read()
        new, self._checked = held[self._checked :], len(held)
        for one in new:
            self._require_on_record(one)

    def _kill(self, what: str) -> Kill:
        bridge = self._bridge
        workers = bridge.children()
        if what == WORKER and workers:
            victims = [self._moments.choice(workers)]
        elif what == ALL:
            victims = [bridge.pid, *workers]
        else:
            victims, what = [bridge.pid], PARENT
        began = time.monotonic()
        for pid in victims:
            with suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        if bridge.pid in victims:
            bridge.forget()
        await_true(lambda: not any(is_alive(pid) for pid in victims))
        self.require_sound()
        if bridge.is_gone:
            bridge.__enter__()
        first = self._holders.await_held(began, _RECOVERY_SECONDS)
        return Kill(what=what, recovery_seconds=first.came - began)

    def _require_verified(self) -> None:
        journal, heads = self._bridge.folder / "journal", "heads.jsonl"
        problems: list[str] = []

        def is_verified() -> bool:
            report = verify(journal, self._bridge.folder / heads)
            found = [text for one in report.writers for text in one.problems]
            # Half an entry may be what a killed writer leaves; its next start sets it
            # aside. Anything else is wrong at once.
            torn = [text for text in found if _TORN in text]
            problems[:] = [*report.problems, *(t for t in found if t not in torn)]
            return bool(problems) or not torn or self._bridge.is_gone

        await_true(is_verified)
        if problems:
            raise UnsoundError("\n".join(problems))

    def _require_on_record(self, one: Held) -> None:
        if one.tbs_sha256 not in self._intents.digests:
            raise UnsoundError(f"certificate {one.serial:x} has no intent")
        if one.serial in self._serials:
            raise UnsoundError(f"serial number {one.serial:x} was given out twice")
        self._serials.add(one.serial)


class Intents:
    """The intents of all journals in a folder: reads on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self.digests: set[str] = set()
        self.repeated: Counter[str] = Counter()
        """Serial numbers that more than one intent has."""
        self._folder = folder
        self._serials: set[str] = set()
        self._read: dict[Path, int] = {}

    def read(self) -> None:
        """Read what has come since."""
        for path in sorted(self._folder.rglob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    self._read[path] = self._read.get(path, 0) + len(line)
                    if b'"kind":"intent"' in line:
                        self._add(json.loads(line))

    def _add(self, row: dict[str, str]) -> None:
        self.digests.add(row["tbs_sha256"])
        if row["serial"] in self._serials:
            self.repeated[row["serial"]] += 1
        self._serials.add(row["serial"])
