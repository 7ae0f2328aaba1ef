"""A set of files is replaced in each way that people replace files: all are seen."""

import os
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import watchfiles

from bridge.system import file_watch as module
from bridge.system.file_watch import FileWatch
from bridge.system.files import digest_of, stamp_of
from tests.support.harness.file_shapes import write_shape
from tests.support.parts.pki import Authority, new_chain, write_private

PATIENCE_SECONDS = 20.0
FILES = ("tls.key", "tls.crt", "ca.crt")

Replace = Callable[[Path, Authority], object]


class Calls:
    """Counts what a watch tells, and waits for it."""

    def __init__(self) -> None:
        self._seen = threading.Semaphore(0)

    def __call__(self) -> None:
        self._seen.release()

    def wait(self, timeout: float = PATIENCE_SECONDS) -> bool:
        return self._seen.acquire(timeout=timeout)

    def came(self) -> bool:
        return self._seen.acquire(blocking=False)


def mount(folder: Path, ca: Authority) -> None:
    """Write a Secret as the kubelet mounts it: files lead through the link `..data`."""
    write_shape(folder / "..v1", "tls", ca)
    (folder / "..data").symlink_to("..v1")
    for name in FILES:
        (folder / name).symlink_to(f"..data/{name}")


def turn_the_data_link(folder: Path, ca: Authority) -> None:
    write_shape(folder / "..v2", "tls", ca)
    (folder / "..data_tmp").symlink_to("..v2")
    (folder / "..data_tmp").rename(folder / "..data")


def rewrite_in_place(folder: Path, ca: Authority) -> None:
    write_shape(folder / "..v1", "tls", ca)


def rename_over(folder: Path, ca: Authority) -> None:
    write_shape(folder / "new", "tls", ca)
    for name in FILES:
        (folder / "new" / name).rename(folder / name)


def replace_the_folder(folder: Path, ca: Authority) -> None:
    fresh = folder.with_name("fresh")
    write_shape(fresh, "tls", ca)
    folder.rename(folder.with_name("gone"))
    fresh.rename(folder)


def change_and_keep_size_and_time(folder: Path, _: Authority) -> None:
    # What a look at size and time alone would miss.
    path = folder / "tls.crt"
    found = path.stat()
    other = folder / "other"
    other.write_bytes(path.read_bytes().swapcase())
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.rename(path)


def remove_a_file(folder: Path, _: Authority) -> None:
    (folder / "ca.crt").unlink()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture(params=["events and looks", "no events to be had"])
def watched(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    folder = tmp_path / "secret"
    folder.mkdir()
    mount(folder, new_chain())
    if request.param == "no events to be had":

        def no_inotify(*_: object, **__: object) -> None:
            raise OSError(24, "inotify instance limit reached")

        monkeypatch.setattr(watchfiles, "watch", no_inotify)
    paths = [folder / name for name in FILES]
    watch = FileWatch(paths, digest_of(paths), calls, poll_seconds=0.05)
    watch.start()
    yield folder
    watch.close()


REPLACEMENTS = [
    turn_the_data_link,
    rewrite_in_place,
    rename_over,
    replace_the_folder,
    change_and_keep_size_and_time,
    remove_a_file,
]


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_replacement_shows_without_reading(tmp_path: Path, replace: Replace) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    mount(folder, new_chain())
    paths = [folder / name for name in FILES]
    before = stamp_of(paths)
    assert stamp_of(paths) == before
    replace(folder, new_chain())
    assert stamp_of(paths) != before


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_replacement_is_told(watched: Path, calls: Calls, replace: Replace) -> None:
    replace(watched, new_chain())
    assert calls.wait()


def test_a_swap_and_a_swap_back_are_both_told(watched: Path, calls: Calls) -> None:
    turn_the_data_link(watched, new_chain())
    assert calls.wait()
    (watched / "..data_tmp").symlink_to("..v1")
    (watched / "..data_tmp").rename(watched / "..data")
    assert calls.wait()


def test_a_link_that_turns_in_another_folder_is_told(
    watched: Path, calls: Calls
) -> None:
    store = watched.with_name("store")
    store.mkdir()
    for number in (1, 2, 3):
        write_shape(store / f"v{number}", "tls", new_chain())
    (store / "current").symlink_to("v1")
    (watched / "..data_tmp").symlink_to("../store/current")
    (watched / "..data_tmp").rename(watched / "..data")
    # From here on, nothing happens in the watched folder: only a look can find it.
    for number in (2, 3):
        assert calls.wait()
        (store / "next").symlink_to(f"v{number}")
        (store / "next").rename(store / "current")
    assert calls.wait()


def test_a_swap_during_a_look_is_looked_at_again(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (("/1", 0, 0, 0, 0, 0),), (("/2", 0, 0, 0, 0, 0),)
    # Looks come in pairs around each reading; the swap falls into the first pair.
    stamps = iter([one, two, two, two, two, two])
    digests = iter(["mixed", "new", "new"])
    monkeypatch.setattr(module, "stamp_of", lambda _: next(stamps))
    monkeypatch.setattr(module, "digest_of", lambda _: next(digests))
    assert FileWatch([tmp_path], "old", calls)._settled() == (two, "new")


def test_files_that_never_settle_are_told_and_looked_at_again(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0.0)
    stamps = (((str(number), 0, 0, 0, 0, 0),) for number in count())
    monkeypatch.setattr(module, "stamp_of", lambda _: next(stamps))
    monkeypatch.setattr(module, "digest_of", lambda _: "busy")
    assert FileWatch([tmp_path], "old", calls)._settled() == (None, "busy")


def test_the_same_content_anew_is_not_told(watched: Path, calls: Calls) -> None:
    for name in FILES:
        content = (watched / "..v1" / name).read_bytes()
        write_private(watched / "fresh", content)
        (watched / "fresh").rename(watched / "..v1" / name)
    # What is told next is the next change, and nothing was told before it.
    remove_a_file(watched, new_chain())
    assert calls.wait()
    assert not calls.came()


def test_events_are_told_without_a_look(tmp_path: Path, calls: Calls) -> None:
    mount(tmp_path, new_chain())
    paths = [tmp_path / name for name in FILES]
    # With looks this far apart, only an event can be in time.
    watch = FileWatch(paths, digest_of(paths), calls, poll_seconds=600)
    watch.start()
    # The kernel is asked some time after the start: turn the link until it is heard.
    # What is heard first may be the look at the start; the second is an event.
    heard = 0
    for number in range(2, 100):
        write_shape(tmp_path / f"..v{number}", "tls", new_chain())
        (tmp_path / "..data_tmp").symlink_to(f"..v{number}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        heard += calls.wait(0.5)
        if heard == 2:
            break
    watch.close()
    assert heard == 2


def test_an_error_of_the_caller_does_not_end_the_watch(
    tmp_path: Path, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("one")

    def fail() -> None:
        calls()
        raise ValueError("the change cannot be used")

    watch = FileWatch([path], "", fail, poll_seconds=0.01)
    watch.start()
    assert calls.wait()
    path.write_text("two")
    assert calls.wait()
    watch.close()
    assert "the change cannot be used" in caplog.text
