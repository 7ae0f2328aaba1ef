import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from bridge.config import ConfigText, parse
from bridge.errors import ConfigError
from bridge.process.reload import Reloads
from bridge.process.role import (
    BROKEN,
    HELD,
    REFUSED,
    UNPROVEN,
    WITHOUT_KEYS,
    WorkerOrder,
)
from bridge.process.supervisor import Supervisor, WorkerDefaults
from bridge.process.worker_process import WorkerProcess
from bridge.system.child_process import ChildProcess
from tests.support.harness.configuration import smallest, text
from tests.unit.system.test_child_process import FakeChild as FakeProcess


class FakeChild(FakeProcess):
    """A worker that does what a test says."""

    def __init__(self, order: WorkerOrder, pid: int) -> None:
        super().__init__(pid)
        self.order = order
        self.is_ready = True
        self.is_silent = False
        self.is_released = not order.is_held
        self.without_keys = self.unproven = ""
        self.words = ""

    def refusal(self) -> str:
        return self.words

    def release(self) -> None:
        self.is_released = True

    def get(self, page: str, timeout: float) -> tuple[int, str]:
        if self.status is not None:
            raise ConnectionRefusedError
        if self.is_silent:
            raise TimeoutError
        named = {WITHOUT_KEYS: self.without_keys, UNPROVEN: self.unproven}
        warnings = {warning: names for warning, names in named.items() if names}
        parts = {"ledger": "ok", "listeners": "ok" if self.is_ready else "shut"}
        if self.is_ready and not self.is_released:
            parts |= HELD
        is_ready = self.is_ready and self.is_released
        state = {"ready": is_ready, "parts": parts, "warnings": warnings}
        return 200, json.dumps(state)


class Nursery:
    """Spawns fakes, and keeps all that it spawned."""

    def __init__(self) -> None:
        self.born: list[FakeChild] = []
        self.prepare: Callable[[FakeChild], None] = lambda _child: None

    def __call__(self, order: WorkerOrder) -> FakeChild:
        child = FakeChild(order, 100 + len(self.born))
        self.prepare(child)
        self.born.append(child)
        return child

    def alive(self) -> list[str]:
        return [child.order.writer for child in self.born if child.status is None]


def source(workers: int = 2, chain: str = "chain.pem", **changed: Any) -> ConfigText:
    path = Path("/etc/meshca/bridge.yaml")
    cas = {"seoul-1": {"plugin": "file", "chain": chain}}
    limits = {"drain": "5s"}
    written = text(workers=workers, issuing_cas=cas, limits=limits, **changed)
    return ConfigText(path, written, parse(written, path))


class FakePart:
    """A part of the parent that keeps what it was asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None

    def prepare(self, source: ConfigText) -> None:
        self.asked.append(f"prepare {source.config.workers}")
        if self.error is not None:
            raise self.error

    def commit(self) -> None:
        self.asked.append("commit")

    def discard(self) -> None:
        self.asked.append("discard")


class Supervision:
    def __init__(self, workers: int = 2) -> None:
        self.nursery = Nursery()
        self.registry = CollectorRegistry()
        self.reloads = Reloads(self.registry)
        around = WorkerDefaults(folder="/run/m", cpus=[4, 7])
        self.part = FakePart()
        self.supervisor = Supervisor(
            source(workers), self.nursery, around, self.reloads, [self.part]
        )

    def tick(self, *times: float) -> None:
        for now in times:
            self.supervisor.tick(now)

    def reload(self, source: ConfigText, *times: float) -> None:
        """Reload at the first of the times, and tick at each."""
        self.supervisor.reload(source, times[0])
        self.tick(*times)

    def counted(self, result: str) -> float:
        labels = {"result": result}
        return self.registry.get_sample_value("meshca_reloads_total", labels) or 0.0


def started(workers: int = 2) -> Supervision:
    one = Supervision(workers)
    one.tick(0)
    return one


def unready(child: FakeChild) -> None:
    child.is_ready = False


def refuse(child: FakeChild) -> None:
    child.status, child.words = REFUSED, "chain.pem: no chain"


@pytest.fixture
def order() -> WorkerOrder:
    return WorkerOrder(path="/x", text="", writer="w0", cpu=0, folder="/run/m")


def test_an_order_is_read_as_it_was_written(order: WorkerOrder) -> None:
    assert WorkerOrder.read(order.line()) == order
    assert order.line().count(b"\n") == 1


def test_workers_have_names_and_cores_of_their_own() -> None:
    one = started(3)
    orders = [child.order for child in one.nursery.born]
    assert [order.writer for order in orders] == ["w0", "w1", "w2"]
    assert [order.cpu for order in orders] == [4, 7, 4]


def test_bridges_that_share_an_archive_have_writers_of_other_names() -> None:
    one = started()
    one.reload(source(2, ledger={"replica": "seoul-2"}), 1, 1)
    assert one.nursery.alive() == ["seoul-2-w0", "seoul-2-w1"]


def test_a_new_configuration_replaces_the_workers_when_its_own_are_ready() -> None:
    one = started()
    assert one.supervisor.is_settled
    one.nursery.prepare = unready
    one.reload(source(1), 1)
    assert one.nursery.alive() == ["w0", "w1", "w2"]
    assert not one.supervisor.is_settled
    one.nursery.born[-1].is_ready = True
    one.tick(2, 2)
    assert one.nursery.alive() == ["w2"]
    assert [worker.order.writer for worker in one.supervisor.serving()] == ["w2"]
    assert (one.counted("ok"), one.counted("refused")) == (1, 0)
    one.nursery.prepare = lambda _child: None
    one.reload(source(2), 3, 3)
    assert one.nursery.alive() == ["w0", "w1"]


def test_a_reload_says_what_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    one = started()
    caplog.set_level("INFO", "bridge.process.supervisor")
    for workers, now in ((3, 1), (3, 2)):
        one.reload(source(workers), now)
    assert caplog.messages == [
        f"a new configuration, starting its workers: {told}"
        for told in ("workers: 2 becomes 3", "no key has changed")
    ]


def test_workers_that_refuse_a_configuration_leave_the_old_ones_serving() -> None:
    one = started()
    one.nursery.prepare = refuse
    one.reload(source(), 1, 1)
    assert one.nursery.alive() == ["w0", "w1"]
    assert one.counted("refused") == 1
    assert "chain.pem: no chain" in one.reloads.warnings()["configuration"]
    assert one.supervisor.is_settled


def test_workers_that_do_not_get_ready_in_time_are_ended() -> None:
    one = started(1)
    one.nursery.prepare = unready
    one.supervisor.reload(source(1), 1)
    one.tick(30.9)
    assert one.nursery.alive() == ["w0", "w1"]
    one.tick(31.0)
    assert one.nursery.alive() == ["w0"]
    assert "w1 listeners: shut" in one.reloads.warnings()["configuration"]


def test_no_worker_of_a_reload_listens_before_all_of_them_could() -> None:
    one = started()
    assert all(child.is_released for child in one.nursery.born)
    one.nursery.prepare = lambda child: setattr(
        child, "is_ready", child.order.writer == "w2"
    )
    one.reload(source(2), 1)
    *_, ready, other = one.nursery.born
    one.tick(2)
    assert not ready.is_released
    other.is_ready = True
    one.tick(3)
    assert ready.is_released
    assert other.is_released
    one.tick(4)
    assert one.nursery.alive() == ["w2", "w3"]
    # What follows a worker of the configuration in service is not held.
    other.status = 1
    one.tick(5, 6)
    assert not one.nursery.born[-1].order.is_held


def test_workers_that_are_prepared_late_have_time_to_listen() -> None:
    one = started(1)
    one.nursery.prepare = unready
    one.reload(source(1), 1)
    new = one.nursery.born[-1]
    new.is_ready, new.release = True, lambda: None  # type: ignore[method-assign]
    one.tick(30.9, 31, 35.8)
    assert one.nursery.alive() == ["w0", "w1"]
    new.is_released = True
    one.tick(35.85)
    assert one.nursery.alive() == ["w1"]
    assert one.counted("ok") == 1


def test_workers_that_do_not_listen_are_ended() -> None:
    one = started(1)
    one.nursery.prepare = lambda child: setattr(child, "release", lambda: None)
    one.reload(source(1), 1, 2, 30.9, 31)
    assert one.nursery.alive() == ["w0"]
    assert one.counted("refused") == 1


def test_no_worker_listens_whose_configuration_is_refused() -> None:
    one = started(1)
    one.nursery.prepare = lambda child: setattr(child, "unproven", "seoul-1")
    one.reload(source(1, chain="other.pem"), 1, 2, 30.9, 31)
    assert one.counted("refused") == 1
    assert not one.nursery.born[-1].is_released


def test_a_newer_configuration_takes_the_place_of_one_that_is_not_ready_yet() -> None:
    one = started(1)
    one.nursery.prepare = unready
    one.reload(source(1), 1)
    one.nursery.prepare = lambda _child: None
    one.reload(source(1), 2, 2, 2)
    assert one.nursery.alive() == ["w2"]
    assert one.counted("ok") == 1


def test_a_part_of_the_parent_is_in_service_once_a_first_worker_is_ready() -> None:
    one = Supervision()
    one.nursery.prepare = unready
    one.tick(0)
    assert one.part.asked == []
    one.nursery.born[0].is_ready = True
    one.tick(1, 2)
    assert one.part.asked == ["commit"]


def test_workers_of_a_configuration_have_the_trust_anchors_that_were_checked() -> None:
    one = Supervision(workers=1)
    content = bytes(range(256))
    one.reload(replace(source(1), anchors=content), 1)
    order = WorkerOrder.read(one.nursery.born[-1].order.line())
    assert order.anchors is not None
    assert order.anchors.encode("latin-1") == content


def test_a_part_of_the_parent_is_replaced_with_the_workers() -> None:
    one = started()
    one.nursery.prepare = unready
    one.reload(source(1), 1)
    assert one.part.asked == ["commit", "prepare 1"]
    one.nursery.born[-1].is_ready = True
    one.tick(2)
    assert one.part.asked == ["commit", "prepare 1", "commit"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConfigError("admin.listen: cannot listen"), "cannot listen"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
    ids=["refused", "no descriptor", "no thread"],
)
def test_a_part_that_cannot_be_prepared_refuses_the_configuration(
    error: Exception, says: str
) -> None:
    one = started()
    one.part.error = error
    one.reload(source(1), 1)
    assert one.part.asked == ["commit", "prepare 1", "discard"]
    assert one.counted("refused") == 1
    assert says in one.reloads.warnings()["configuration"]
    assert one.nursery.alive() == ["w0", "w1"]


def test_a_part_is_discarded_with_workers_that_are_refused() -> None:
    one = started(1)
    one.nursery.prepare = lambda child: setattr(child, "status", REFUSED)
    one.reload(source(1), 1, 1)
    assert one.part.asked.count("commit") == 1
    assert one.part.asked[-1] == "discard"


KUBERNETES, *_ = smallest()["clusters"]
BOTH = [KUBERNETES, {**KUBERNETES, "name": "second"}]
# Clusters without token keys: of the old workers, of the new ones; is it replaced?
KEYS = [
    ("", "", True),
    ("", "Kubernetes", False),
    ("", "Kubernetes, second", False),
    ("Kubernetes", "Kubernetes", True),
    ("", "second", True),  # its keys could not be read before either
]


@pytest.mark.parametrize(("old", "new", "is_replaced"), KEYS)
def test_a_reload_does_not_lose_the_token_keys_of_a_cluster(
    old: str, new: str, *, is_replaced: bool
) -> None:
    one = Supervision(workers=1)
    one.nursery.prepare = lambda child: setattr(child, "without_keys", old)
    one.tick(0)
    one.nursery.prepare = lambda child: setattr(child, "without_keys", new)
    one.reload(source(1, clusters=BOTH), 1, 2, 30.9, 31)
    assert (one.counted("ok"), one.counted("refused")) == (is_replaced, not is_replaced)
    assert one.nursery.alive() == (["w1"] if is_replaced else ["w0"])
    if not is_replaced:
        told = one.reloads.warnings()["configuration"]
        assert (
            "no token keys or remote secret of Kubernetes, which the old workers have"
        ) in told


@pytest.mark.parametrize(
    ("chain", "unproven", "is_replaced"),
    [
        ("chain.pem", "seoul-1", True),  # as it was: it may be down
        ("other.pem", "", True),
        ("other.pem", "seoul-1", False),
    ],
)
def test_an_issuing_ca_that_has_changed_has_to_sign_before_a_reload_takes_effect(
    chain: str, unproven: str, *, is_replaced: bool
) -> None:
    one = started(1)
    one.nursery.prepare = lambda child: setattr(child, "unproven", unproven)
    one.reload(source(1, chain=chain), 1, 2, 30.9, 31)
    assert one.nursery.alive() == (["w1"] if is_replaced else ["w0"])
    told = one.reloads.warnings().get("configuration", "")
    assert ("issuing_cas.seoul-1 has not signed" in told) is not is_replaced


def test_a_new_worker_that_does_not_answer_may_lack_the_keys() -> None:
    one = started(1)
    one.nursery.prepare = lambda child: setattr(child, "without_keys", "Kubernetes")
    one.reload(source(1), 1)
    one.nursery.born[-1].is_silent = True
    one.tick(2)
    assert one.nursery.alive() == ["w0", "w1"]
    one.nursery.born[-1].is_silent = False
    one.tick(3)
    assert one.nursery.alive() == ["w0", "w1"]
    one.nursery.born[-1].without_keys = ""
    one.tick(4, 4)
    assert one.nursery.alive() == ["w1"]


def test_a_single_worker_keeps_to_no_core() -> None:
    one = started(1)
    assert [child.order.cpu for child in one.nursery.born] == [None]


def test_a_reason_that_a_full_disk_cut_in_a_character_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChildProcess, "__init__", lambda *_: None)
    order = WorkerOrder(path="", text="", writer="w0", cpu=None, folder=str(tmp_path))
    worker = WorkerProcess(order)
    order.reason.write_bytes("ledger.journal: Stra\u00dfe".encode()[:-2])
    assert worker.refusal() == "ledger.journal: Stra\ufffd"


def test_the_bridge_has_started_when_a_worker_says_how_it_is() -> None:
    # The archive feeder starts then, and does not slow the workers' own start.
    one = Supervision()
    one.nursery.prepare = lambda child: setattr(child, "is_silent", True)
    one.tick(0)
    assert not one.supervisor.has_started
    one.nursery.born[0].is_silent = one.nursery.born[0].is_ready = False
    one.tick(1)
    assert one.supervisor.has_started, "the ledger may need the feeder to get ready"


def test_a_first_configuration_that_is_refused_is_an_error() -> None:
    one = Supervision()
    one.nursery.prepare = refuse
    one.tick(0)
    with pytest.raises(ConfigError, match=r"chain\.pem: no chain"):
        one.tick(1)


def test_a_worker_whose_journal_is_broken_is_not_started_again() -> None:
    one = started()
    first = one.nursery.born[0]
    first.status, first.words = BROKEN, "journal/w0/00000001.jsonl:7: edited"
    one.tick(*range(1, 100))
    assert one.nursery.alive() == ["w1"]
    assert len(one.nursery.born) == 2
    assert one.supervisor.is_settled
    assert (
        "edited; not started again until a reload" in one.supervisor.serving()[0].reason
    )
    # A reload begins with workers of other names: the journal stays as it is.
    one.reload(source(2), 100, 101)
    assert one.nursery.alive() == ["w2", "w3"]
    # Then the name is free, and the next reload finds whether it was mended.
    one.nursery.prepare = unready
    one.reload(source(1), 102)
    last = one.nursery.born[-1]
    assert last.order.writer == "w0"
    last.status, last.words = BROKEN, "still edited"
    one.tick(103)
    assert "still edited" in one.reloads.warnings()["configuration"]
    assert one.nursery.alive() == ["w2", "w3"]


def test_a_journal_that_is_broken_at_the_start_ends_it() -> None:
    one = Supervision(workers=1)
    one.nursery.prepare = unready
    one.tick(0)
    one.nursery.born[0].status, one.nursery.born[0].words = BROKEN, "edited"
    with pytest.raises(ConfigError, match="edited"):
        one.tick(1)


def test_a_worker_that_is_refused_later_is_started_again() -> None:
    one = started(1)
    one.nursery.born[0].status = REFUSED
    one.tick(1, 2)
    assert one.nursery.alive() == ["w0"]
    assert one.supervisor.restarts() == {"w0": 1}


def test_workers_that_do_not_end_are_ended_by_force() -> None:
    one = Supervision()
    one.nursery.prepare = lambda child: setattr(child, "obeys", child.pid != 100)
    one.tick(0)
    one.supervisor.stop(10)
    one.tick(10)
    assert one.nursery.alive() == ["w0"]
    one.tick(21.9)  # drain and margin
    assert not one.supervisor.is_over
    one.tick(22.0, 22.1)
    assert one.supervisor.is_over
    assert one.nursery.born[0].signals == ["TERM", "KILL"]
    assert one.nursery.born[1].signals == ["TERM"]
    assert len(one.nursery.born) == 2


def test_restarts_of_workers_that_were_replaced_stay_counted() -> None:
    one = started(1)
    one.nursery.born[0].status = -11
    one.tick(1, 2)
    one.reload(source(1), 3, 4, 5)
    assert one.supervisor.restarts() == {"w0": 1, "w1": 0}
