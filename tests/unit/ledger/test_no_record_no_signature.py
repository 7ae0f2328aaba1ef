"""A row that is not on disk: the issuing CA is not asked, and the caller is refused."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.journal.journal import JournalOptions
from bridge.ledger.ledger import Ledger
from bridge.ledger.verify import verify
from bridge.server.status import status_name
from tests.support.harness.core import World
from tests.unit.ledger.support import FaultyDisk


class FaultyWorld(World):
    """A world whose journal is on a disk that fails on demand."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.disk = FaultyDisk()

    def open_ledger(self) -> Ledger:
        return Ledger.open(
            self.config.ledger,
            writer="bridge",
            clock=self.clock,
            options=JournalOptions(
                open_file=self.disk.open, flush_seconds=3600, patience_seconds=0.1
            ),
        )

    def signed(self) -> int:
        """Return how many were signed."""
        return sum(len(ca.called) for ca in self.cas.values())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FaultyWorld]:
    with FaultyWorld(tmp_path) as world:
        yield world


def full(disk: FaultyDisk) -> None:
    disk.room = 10


def read_only(disk: FaultyDisk) -> None:
    disk.room, disk.no_room = 0, OSError(30, "Read-only file system")


def bad_write(disk: FaultyDisk) -> None:
    disk.write_fault = OSError(5, "Input/output error")


def bad_sync(disk: FaultyDisk) -> None:
    disk.sync_fault = OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("fault", "rule", "later", "reason"),
    [
        (full, "ledger.room", "ledger.room", "No space left on device"),
        (read_only, "ledger.room", "ledger.room", "Read-only file system"),
        (bad_write, "ledger.write", "ledger.shut", "Input/output error"),
        (bad_sync, "ledger.write", "ledger.shut", "Input/output error"),
    ],
)
def test_nothing_is_signed_that_is_not_on_disk(
    world: FaultyWorld,
    fault: Callable[[FaultyDisk], None],
    rule: str,
    later: str,
    reason: str,
) -> None:
    world.issue()
    before = world.signed()
    fault(world.disk)
    with pytest.raises(LedgerError, match="the ledger") as caught:
        world.issue()
    assert caught.value.rule == rule
    assert status_name(caught.value) == "UNAVAILABLE"
    for _ in range(3):
        with pytest.raises(LedgerError, match="takes no intent") as caught:
            world.issue()
        assert caught.value.rule == later
    assert world.signed() == before
    assert reason in str(world.ledger.problem())


def test_a_sync_that_hangs_lets_nobody_sign(world: FaultyWorld) -> None:
    disk = world.disk
    disk.in_sync.clear()
    disk.may_sync.clear()
    first = threading.Thread(target=world.issue)
    first.start()
    assert disk.in_sync.wait(20)
    with pytest.raises(LedgerError, match=r"does not answer|takes no intent") as caught:
        world.issue()
    assert status_name(caught.value) == "UNAVAILABLE"
    assert world.signed() == 0
    assert "does not answer" in str(world.ledger.problem())
    disk.may_sync.set()
    first.join()
    assert world.signed() == 1
    assert world.ledger.problem() is None
    world.issue()


@pytest.mark.parametrize("fault", [full, bad_write, bad_sync])
def test_an_attempt_under_way_gets_its_outcome_in_the_end(
    tmp_path: Path, world: FaultyWorld, fault: Callable[[FaultyDisk], None]
) -> None:
    # The disk fails between the intent and the outcome, which nobody waits for: the
    # certificate is the caller's.
    ca = world.cas["a"]
    ca.hook = lambda _: fault(world.disk)
    world.issue()
    with suppress(LedgerError):
        world.ledger._journal.flush()
    world.disk.room = world.disk.write_fault = world.disk.sync_fault = None
    rows = world.ended()
    kinds = [row["kind"] for row in rows]
    if fault is full:
        # There was room again at the end.
        assert kinds == ["intent", "resumed", "issued"]
    else:
        world.ledger = world.open_ledger()
        kinds = [row["kind"] for row in world.ended()]
        assert kinds[0] == "intent"
        assert kinds[1] in {"issued", "unknown"}
        assert len(kinds) == 2
    assert verify(tmp_path / "journal", tmp_path / "heads.jsonl").intact
