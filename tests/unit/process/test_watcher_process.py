"""The watcher under its parent: one where it is needed, another after a change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.config import ConfigText
from bridge.process.role import WatcherOrder
from bridge.process.watcher_process import WatcherProcesses
from tests.support.harness.configuration import text
from tests.unit.system.test_child_process import FakeChild as FakeProcess

Write = Callable[..., ConfigText]
BOUND = {
    "verify": "bound",
    "issuer": "https://kubernetes.default.svc",
    "server": "https://10.0.0.1",
    "ca_file": "ca.pem",
    "token_file": "token",
}


class FakeChild(FakeProcess):
    def __init__(self, order: WatcherOrder) -> None:
        super().__init__(1)
        self.order = order
        self.obeys = False


@pytest.fixture
def write(tmp_path: Path) -> Write:
    path = tmp_path / "bridge.yaml"

    def write(**changed: object) -> ConfigText:
        path.write_text(text(**changed))
        return ConfigText.read(path)

    return write


def bound(write: Write, **changed: object) -> ConfigText:
    return write(clusters=[{"name": "one", "tokens": BOUND | changed}])


@pytest.fixture
def children() -> list[FakeChild]:
    return []


@pytest.fixture
def watchers(tmp_path: Path, children: list[FakeChild]) -> WatcherProcesses:
    def start(order: WatcherOrder) -> FakeChild:
        children.append(FakeChild(order))
        return children[-1]

    return WatcherProcesses(tmp_path / "watched", "INFO", start)


def test_one_process_gets_the_configuration_and_the_index(
    tmp_path: Path, write: Write, watchers: WatcherProcesses, children: list[FakeChild]
) -> None:
    source = bound(write)
    for now in range(3):
        watchers.run(source, float(now))
    (child,) = children
    assert WatcherOrder.read(child.order.line()) == child.order
    assert child.order.index == str(tmp_path / "watched")
    assert child.order.text == source.text


def test_none_is_started_where_no_cluster_is_watched(
    write: Write, watchers: WatcherProcesses, children: list[FakeChild]
) -> None:
    watchers.run(write(), 0.0)
    assert children == []
    watchers.stop(1.0)
    assert watchers.is_gone


def test_a_reload_that_leaves_the_clusters_as_they_are_leaves_it_alone(
    write: Write, watchers: WatcherProcesses, children: list[FakeChild]
) -> None:
    watchers.run(bound(write), 0.0)
    clusters = [{"name": "one", "tokens": BOUND}]
    watchers.run(write(clusters=clusters, workers=4), 1.0)
    assert len(children) == 1
    assert children[0].signals == []


def test_other_clusters_get_another_process_once_the_first_is_gone(
    write: Write, watchers: WatcherProcesses, children: list[FakeChild]
) -> None:
    watchers.run(bound(write), 0.0)
    changed = bound(write, server="https://10.0.0.2")
    watchers.run(changed, 1.0)
    assert (len(children), children[0].signals) == (1, ["TERM"])
    watchers.run(changed, 3.1)  # and killed, since it does not obey
    assert children[0].signals[-1] == "KILL"
    children[0].status = -9
    watchers.run(changed, 3.2)
    assert len(children) == 2
    assert "10.0.0.2" in children[1].order.text


def test_another_home_of_the_remote_secrets_gets_another_process(
    write: Write, watchers: WatcherProcesses, children: list[FakeChild]
) -> None:
    home = {key: BOUND[key] for key in ("server", "ca_file", "token_file")}
    joined = {"verify": "bound", "issuer": BOUND["issuer"], "remote_secret": True}
    shared = {"clusters": [{"name": "one", "tokens": joined}]}
    for now, namespace in enumerate(("istio-system", "other")):
        secrets = home | {"namespace": namespace}
        watchers.run(write(**shared, remote_secrets=secrets), float(now))
    assert children[0].signals == ["TERM"]


def test_one_that_ends_is_started_again(
    write: Write, watchers: WatcherProcesses, children: list[FakeChild]
) -> None:
    source = bound(write)
    watchers.run(source, 0.0)
    children[0].status = -9
    for now in (1.0, 1.1, 1.3):
        watchers.run(source, now)
    assert len(children) == 2


def test_the_end_waits_for_it(
    write: Write, watchers: WatcherProcesses, children: list[FakeChild]
) -> None:
    watchers.run(bound(write), 0.0)
    watchers.stop(1.0)
    assert not watchers.is_gone
    children[0].status = -15
    watchers.tick(1.1)
    assert watchers.is_gone
