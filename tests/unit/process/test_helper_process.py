"""The helpers under their parent: one process, another after a crash or a reload."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bridge.config import ConfigText
from bridge.process.helper_process import FEEDER, Helper, HelperProcesses, watcher
from bridge.process.role import FeederOrder, Order, WatcherOrder
from tests.support.harness.configuration import text
from tests.unit.system.test_child_process import FakeChild as FakeProcess

TEXT = text(limits={"drain": "15s"})
BOUND = {
    "verify": "bound",
    "issuer": "https://kubernetes.default.svc",
    "server": "https://10.0.0.1",
    "ca_file": "ca.pem",
    "token_file": "token",
}


class FakeChild(FakeProcess):
    def __init__(self, order: Order) -> None:
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


def held(helper: Helper, children: list[FakeChild]) -> HelperProcesses:
    def start(_helper: Helper, order: Order) -> FakeChild:
        children.append(FakeChild(order))
        return children[-1]

    return HelperProcesses(helper, "INFO", start)


@pytest.fixture
def feeders(children: list[FakeChild]) -> HelperProcesses:
    return held(FEEDER, children)


@pytest.fixture
def watchers(tmp_path: Path, children: list[FakeChild]) -> HelperProcesses:
    return held(watcher(tmp_path / "watched"), children)


def bound(**changed: object) -> str:
    return text(clusters=[{"name": "one", "tokens": BOUND | changed}])


def test_one_feeder_gets_what_it_has_to_feed(
    tmp_path: Path, write: Write, feeders: HelperProcesses, children: list[FakeChild]
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


def test_where_hosts_share_an_archive_the_feeder_gets_the_file_of_the_latch(
    tmp_path: Path, write: Write, feeders: HelperProcesses, children: list[FakeChild]
) -> None:
    shared = TEXT.replace("sqlite:///archive.db", "postgresql://db.example/ledger")
    feeders.run(write(shared), 0.0)
    order = FeederOrder.read(children[0].order.line())
    assert order.latch == str(tmp_path / "journal/state/latch.json")


def test_another_section_ledger_gets_a_feeder_of_its_own(
    write: Write, feeders: HelperProcesses, children: list[FakeChild]
) -> None:
    feeders.run(write(TEXT), 0.0)
    feeders.run(write(TEXT.replace("drain: 15s", "drain: 20s")), 1.0)
    assert len(children) == 1, "the ledger is the same"
    source = write(TEXT.replace("journal: journal", "journal: other"))
    feeders.run(source, 2.0)
    old, new = children
    assert (old.signals, new.signals) == (["TERM"], [])
    assert FeederOrder.read(new.order.line()).journal.endswith("/other")
    feeders.run(source, 2.0 + 20 + 7.9)
    assert old.signals == ["TERM"], "it feeds while workers drain"
    feeders.run(source, 2.0 + 20 + 8)
    assert old.signals == ["TERM", "KILL"]
    feeders.run(source, 31.0)
    feeders.stop(31.0)
    assert new.signals == ["TERM"]


def test_of_the_same_journals_the_feeder_before_ends_at_once(
    write: Write, feeders: HelperProcesses, children: list[FakeChild]
) -> None:
    feeders.run(write(TEXT), 0.0)
    feeders.run(write(TEXT.replace("archive.db", "b.db")), 1.0)
    old, new = children
    assert (old.signals, new.signals) == (["TERM", "KILL"], [])
    assert FeederOrder.read(new.order.line()).archive.endswith("/b.db")


@pytest.mark.parametrize(
    ("helper", "grace"),
    [(FEEDER, 8), (watcher(Path("watched")), 2)],
    ids=["for the last rows", "with nothing to finish"],
)
def test_an_end_waits_for_a_helper_and_no_longer(
    helper: Helper, grace: int, write: Write, children: list[FakeChild]
) -> None:
    helpers = held(helper, children)
    assert helpers.is_gone
    helpers.run(write(bound()), 0.0)
    helpers.stop(1.0)
    assert not helpers.is_gone
    helpers.tick(1.0 + grace - 0.1)
    assert children[0].signals == ["TERM"]
    helpers.tick(1.0 + grace)
    assert children[0].signals == ["TERM", "KILL"]
    helpers.tick(1.0 + grace + 0.1)
    assert helpers.is_gone
    assert len(children) == 1


def test_all_are_killed_at_once(
    write: Write, feeders: HelperProcesses, children: list[FakeChild]
) -> None:
    feeders.run(write(TEXT), 0.0)
    feeders.run(write(TEXT.replace("archive.db", "b.db")), 1.0)
    feeders.kill()
    assert [child.signals[-1] for child in children] == ["KILL", "KILL"]


def test_one_watcher_gets_the_configuration_and_the_index(
    tmp_path: Path, write: Write, watchers: HelperProcesses, children: list[FakeChild]
) -> None:
    source = write(bound())
    for now in range(3):
        watchers.run(source, float(now))
    (child,) = children
    order = WatcherOrder.read(child.order.line())
    assert order == child.order
    assert order.index == str(tmp_path / "watched")
    assert order.text == source.text


def test_no_watcher_is_started_where_no_cluster_is_watched(
    write: Write, watchers: HelperProcesses, children: list[FakeChild]
) -> None:
    watchers.run(write(text()), 0.0)
    assert children == []
    watchers.stop(1.0)
    assert watchers.is_gone


def test_a_reload_that_leaves_the_clusters_as_they_are_leaves_the_watcher_alone(
    write: Write, watchers: HelperProcesses, children: list[FakeChild]
) -> None:
    watchers.run(write(bound()), 0.0)
    clusters = [{"name": "one", "tokens": BOUND}]
    watchers.run(write(text(clusters=clusters, workers=4)), 1.0)
    assert len(children) == 1
    assert children[0].signals == []


def test_other_clusters_get_another_watcher_once_the_first_is_gone(
    write: Write, watchers: HelperProcesses, children: list[FakeChild]
) -> None:
    watchers.run(write(bound()), 0.0)
    changed = write(bound(server="https://10.0.0.2"))
    watchers.run(changed, 1.0)
    assert (len(children), children[0].signals) == (1, ["TERM"])
    watchers.run(changed, 3.1)  # and killed, since it does not obey
    assert children[0].signals[-1] == "KILL"
    children[0].status = -9
    watchers.run(changed, 3.2)
    assert len(children) == 2
    assert "10.0.0.2" in children[1].order.text


def test_another_home_of_the_remote_secrets_gets_another_watcher(
    write: Write, watchers: HelperProcesses, children: list[FakeChild]
) -> None:
    home = {key: BOUND[key] for key in ("server", "ca_file", "token_file")}
    joined = {"verify": "bound", "issuer": BOUND["issuer"], "remote_secret": True}
    shared = partial(text, clusters=[{"name": "one", "tokens": joined}])
    for now, namespace in enumerate(("istio-system", "other")):
        secrets = home | {"namespace": namespace}
        watchers.run(write(shared(remote_secrets=secrets)), float(now))
    assert children[0].signals == ["TERM"]


def test_one_that_ends_is_started_again(
    write: Write, watchers: HelperProcesses, children: list[FakeChild]
) -> None:
    source = write(bound())
    watchers.run(source, 0.0)
    children[0].status = -9
    for now in (1.0, 1.1, 1.3):
        watchers.run(source, now)
    assert len(children) == 2
