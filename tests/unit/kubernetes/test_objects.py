"""What a watcher writes, every process reads: all of it, and as it is now."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import ReviewError
from bridge.kubernetes.objects import (
    ACCOUNTS,
    KINDS,
    PODS,
    ClusterObject,
    ObjectIndex,
    WatchState,
)

WEB = ClusterObject("shop", "web-0", "1", "web", "node-1")
API = ClusterObject("pay", "api-0", "2", "api", "node-1", 1000.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "watched"


@pytest.fixture
def index(path: Path) -> Iterator[ObjectIndex]:
    with closing(ObjectIndex(path)) as made:
        made.create(["one", "two"])
        yield made


def test_another_process_reads_what_was_written(index: ObjectIndex, path: Path) -> None:
    with closing(ObjectIndex(path)) as reader:
        assert reader.find("one", PODS, "shop", "web-0") is None
        index.publish("one", PODS, [WEB, API], 1.0)
        assert reader.find("one", PODS, "shop", "web-0") == WEB
        assert reader.find("one", PODS, "pay", "api-0") == API
        index.put("one", PODS, changed := WEB._replace(deleted_at=5.0), 2.0)
        assert reader.find("one", PODS, "shop", "web-0") == changed
        index.remove("one", PODS, WEB, 3.0)
        assert reader.find("one", PODS, "shop", "web-0") is None


def test_what_is_published_replaces_what_was_there_of_its_kind(
    index: ObjectIndex,
) -> None:
    for source in ("one", "two"):
        index.publish(source, PODS, [WEB], 1.0)
        index.publish(source, ACCOUNTS, [ClusterObject("shop", "web", "3")], 1.0)
    index.publish("one", PODS, [API], 2.0)
    assert index.find("one", PODS, "shop", "web-0") is None
    assert index.find("one", ACCOUNTS, "shop", "web") is not None
    assert index.find("two", PODS, "shop", "web-0") == WEB


def test_a_publication_that_fails_changes_nothing(index: ObjectIndex) -> None:
    index.publish("one", PODS, [WEB], 1.0)
    broken = API._replace(name=object())  # type: ignore[arg-type]
    with pytest.raises(ReviewError, match="index of this cluster") as caught:
        index.publish("one", PODS, [API, broken], 2.0)
    assert caught.value.rule == "review.index"
    assert index.find("one", PODS, "shop", "web-0") == WEB
    assert index.find("one", PODS, "pay", "api-0") is None
    index.put("one", PODS, API, 3.0)  # and nothing is left locked


def test_the_age_is_that_of_the_watch_that_lags_most(index: ObjectIndex) -> None:
    assert index.state("one") == WatchState(None)
    index.publish("one", PODS, [], 10.0)
    assert index.state("one") == WatchState(None)  # the accounts are not listed yet
    assert index.state("one", (PODS,)) == WatchState(10.0)
    index.publish("one", ACCOUNTS, [], 5.0)
    assert index.state("one") == WatchState(5.0)
    for kind, at in zip(KINDS, (30.0, 31.0), strict=True):
        index.confirm("one", kind, at)
    assert index.state("one") == WatchState(30.0)
    assert index.state("two") == WatchState(None)


def test_the_objects_of_a_cluster_are_counted_by_kind(
    index: ObjectIndex, path: Path
) -> None:
    assert index.counts("one") == {PODS: 0, ACCOUNTS: 0}
    index.publish("one", PODS, [WEB, API], 1.0)
    index.publish("two", PODS, [WEB], 1.0)
    assert index.counts("one") == {PODS: 2, ACCOUNTS: 0}
    path.unlink()
    assert index.counts("one") == {}


def test_trouble_is_told_until_the_watch_hears_again(index: ObjectIndex) -> None:
    index.trouble("one", PODS, "no answer")
    assert index.state("one") == WatchState(None, "no answer")
    for kind in KINDS:
        index.publish("one", kind, [], 1.0)
    index.trouble("one", PODS, "no answer")
    assert index.state("one") == WatchState(1.0, "no answer")
    index.put("one", PODS, WEB, 2.0)
    assert index.state("one") == WatchState(1.0)


def test_a_watcher_that_starts_forgets_other_clusters_alone(
    index: ObjectIndex, path: Path
) -> None:
    index.publish("one", PODS, [WEB], 1.0)
    index.publish("two", PODS, [WEB], 1.0)
    with closing(ObjectIndex(path)) as next_one:
        next_one.create(["two", "three"])
        assert next_one.find("one", PODS, "shop", "web-0") is None
        assert next_one.find("two", PODS, "shop", "web-0") == WEB
        assert next_one.state("two", (PODS,)) == WatchState(1.0)


def test_an_index_that_nobody_made_has_seen_nothing(path: Path) -> None:
    with closing(ObjectIndex(path)) as reader:
        state = reader.state("one")
        assert (state.seen_at, "unable to open" in state.trouble) == (None, True)
        with pytest.raises(ReviewError, match="cannot be used"):
            reader.find("one", PODS, "shop", "web-0")
        assert not path.exists()


def test_the_file_is_private(index: ObjectIndex, path: Path) -> None:
    index.publish("one", PODS, [WEB], 1.0)
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_kept_of_a_pod() -> None:
    found = {
        "metadata": {
            "namespace": "shop",
            "name": "web-0",
            "uid": "1",
            "deletionTimestamp": "1970-01-01T00:20:00Z",
        },
        "spec": {"serviceAccountName": "web", "nodeName": "node-1", "more": {}},
        "status": {"phase": "Succeeded"},
    }
    kept = ("shop", "web-0", "1", "web", "node-1", 1200.0, True)
    assert ClusterObject.of(found) == kept


def test_what_is_kept_of_metadata_alone() -> None:
    found = {"metadata": {"name": "node-1", "uid": "1"}}
    assert ClusterObject.of(found) == ClusterObject("", "node-1", "1")


def test_a_damaged_file_is_told(index: ObjectIndex, path: Path) -> None:
    index.close()
    for one in path.parent.iterdir():
        one.unlink()
    path.write_bytes(b"no database" * 1000)
    assert "not a database" in index.state("one").trouble


def damage(path: Path, where: int) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        file.write(b"no database " * 10_000)


@pytest.mark.parametrize(
    ("where", "what"), [(0, "not a database"), (4096, "malformed")]
)
def test_a_damaged_file_is_made_anew(
    index: ObjectIndex, path: Path, where: int, what: str
) -> None:
    index.publish("one", PODS, [WEB._replace(name=str(i)) for i in range(2000)], 1.0)
    index.close()
    damage(path, where)
    with closing(ObjectIndex(path)) as reader, closing(ObjectIndex(path)) as writer:
        with pytest.raises(ReviewError, match="cannot be used") as caught:
            reader.find("one", PODS, "shop", "7")
        assert what in caught.value.detail
        writer.create(["one"])
        assert reader.find("one", PODS, "shop", "7") is None
        writer.publish("one", PODS, [WEB], 2.0)
        assert reader.find("one", PODS, "shop", "web-0") == WEB
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_is_no_damaged_one(path: Path) -> None:
    path.mkdir()
    with closing(ObjectIndex(path)) as writer, pytest.raises(ReviewError):
        writer.create(["one"])
    assert path.is_dir()


def test_a_reader_notices_that_the_file_is_another(
    index: ObjectIndex, path: Path
) -> None:
    index.publish("one", PODS, [WEB], 1.0)
    with closing(ObjectIndex(path)) as reader:
        assert reader.find("one", PODS, "shop", "web-0") == WEB
        for one in tuple(path.parent.iterdir()):
            one.unlink()
        with pytest.raises(ReviewError, match="cannot be used"):
            reader.find("one", PODS, "shop", "web-0")
        index.create(["one"])
        assert reader.find("one", PODS, "shop", "web-0") is None
        index.publish("one", PODS, [API], 2.0)
        assert reader.find("one", PODS, "pay", "api-0") == API


def test_an_error_of_any_kind_takes_a_change_back(index: ObjectIndex) -> None:
    index.publish("one", PODS, [WEB], 1.0)
    with pytest.raises(UnicodeEncodeError):
        index.publish("one", PODS, [API, WEB._replace(name="\ud800")], 2.0)
    assert index.find("one", PODS, "shop", "web-0") == WEB
    assert index.find("one", PODS, "pay", "api-0") is None
    index.put("one", PODS, API, 3.0)  # and nothing is left locked


@pytest.mark.parametrize("text", ["a\ud800", "\U0001f600"])
@pytest.mark.parametrize("where", ["namespace", "name", "uid", "account", "node"])
def test_text_that_is_no_ascii_is_refused(where: str, text: str) -> None:
    metadata: dict[str, Any] = {"namespace": "shop", "name": "web-0", "uid": "1"}
    spec: dict[str, Any] = {}
    names = {"account": "serviceAccountName", "node": "nodeName"}
    (spec if where in names else metadata)[names.get(where, where)] = text
    with pytest.raises(ValueError, match="expected a text in ASCII"):
        ClusterObject.of({"metadata": metadata, "spec": spec})


def test_trouble_that_is_no_unicode_is_told(index: ObjectIndex) -> None:
    index.trouble("one", PODS, "said \ud800")
    assert index.state("one").trouble == "said ?"


def test_a_reader_does_not_wait_for_a_lock(index: ObjectIndex, path: Path) -> None:
    index.close()
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        closing(ObjectIndex(path)) as reader,
    ):
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert "locked" in reader.state("one").trouble
        assert time.monotonic() - began < 2.0


def test_a_writer_waits_for_a_lock(index: ObjectIndex, path: Path) -> None:
    with closing(
        sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        later = threading.Timer(0.5, other.execute, ["ROLLBACK"])
        later.start()
        index.put("one", PODS, WEB, 1.0)
        later.join()
    assert index.find("one", PODS, "shop", "web-0") == WEB
