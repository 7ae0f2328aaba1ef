"""The archive feeder under its parent: one process, another after a crash or reload."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.config import ConfigText
from bridge.process.feeder_process import FeederProcesses
from bridge.process.role import FeederOrder
from tests.support.harness.configuration import text
from tests.unit.system.test_child_process import FakeChild as FakeProcess

TEXT = text(limits={"drain": "15s"})


class FakeChild(FakeProcess):
    def __init__(self, order: FeederOrder) -> None:
        super().__init__(1)
        self.order = order
        self.obeys = False


Write = Callable[[str], ConfigText]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    path = tmp_path / "bridge.yaml"

    def write(text: str) -> ConfigText:
        path.write_text(text)
        return ConfigText.read(path)

    return write


@pytest.fixture
def children() -> list[FakeChild]:
    return []


@pytest.fixture
def feeders(children: list[FakeChild]) -> FeederProcesses:
    def start(order: FeederOrder) -> FakeChild:
        children.append(FakeChild(order))
        return children[-1]

    return FeederProcesses("INFO", start)


def test_one_process_gets_what_it_has_to_feed(
    tmp_path: Path, write: Write, feeders: FeederProcesses, children: list[FakeChild]
) -> None:
    source = write(TEXT)
    for now in range(3):
        feeders.run(source, float(now))
    (child,) = children
    order = FeederOrder.read(child.order.line())
    assert order == child.order
    assert order.journal == str(tmp_path / "journal")
    assert order.archive == f"sqlite:///{tmp_path}/archive.db"
    assert (order.entries, order.seconds) == (10_000, 60)
    # The file is this host's alone: nobody else has latched anything in it.
    assert order.latch == ""


def test_where_hosts_share_an_archive_it_gets_the_file_of_the_latch(
    tmp_path: Path, write: Write, feeders: FeederProcesses, children: list[FakeChild]
) -> None:
    shared = TEXT.replace("sqlite:///archive.db", "postgresql://db.example/ledger")
    feeders.run(write(shared), 0.0)
    assert children[0].order.latch == str(tmp_path / "journal/state/latch.json")


def test_another_section_ledger_gets_a_process_of_its_own(
    write: Write, feeders: FeederProcesses, children: list[FakeChild]
) -> None:
    feeders.run(write(TEXT), 0.0)
    feeders.run(write(TEXT.replace("drain: 15s", "drain: 20s")), 1.0)
    assert len(children) == 1, "the ledger is the same"
    source = write(TEXT.replace("journal: journal", "journal: other"))
    feeders.run(source, 2.0)
    old, new = children
    assert (old.signals, new.signals) == (["TERM"], [])
    assert new.order.journal.endswith("/other")
    feeders.run(source, 2.0 + 20 + 7.9)
    assert old.signals == ["TERM"], "it feeds while workers drain"
    feeders.run(source, 2.0 + 20 + 8)
    assert old.signals == ["TERM", "KILL"]
    feeders.run(source, 31.0)
    feeders.stop(31.0)
    assert new.signals == ["TERM"]


def test_of_the_same_journals_the_process_before_ends_at_once(
    write: Write, feeders: FeederProcesses, children: list[FakeChild]
) -> None:
    feeders.run(write(TEXT), 0.0)
    feeders.run(write(TEXT.replace("archive.db", "b.db")), 1.0)
    old, new = children
    assert (old.signals, new.signals) == (["TERM", "KILL"], [])
    assert new.order.archive.endswith("/b.db")


def test_an_end_waits_for_the_last_rows_and_no_longer(
    write: Write, feeders: FeederProcesses, children: list[FakeChild]
) -> None:
    assert feeders.is_gone
    feeders.run(write(TEXT), 0.0)
    feeders.stop(1.0)
    assert not feeders.is_gone
    feeders.tick(8.9)
    assert children[0].signals == ["TERM"]
    feeders.tick(9.0)
    assert children[0].signals == ["TERM", "KILL"]
    feeders.tick(9.1)
    assert feeders.is_gone
    assert len(children) == 1


def test_all_are_killed_at_once(
    write: Write, feeders: FeederProcesses, children: list[FakeChild]
) -> None:
    feeders.run(write(TEXT), 0.0)
    feeders.run(write(TEXT.replace("archive.db", "b.db")), 1.0)
    feeders.kill()
    assert [child.signals[-1] for child in children] == ["KILL", "KILL"]
