"""An issuing CA of files says that its files have changed, and stays as it is."""

import threading
from pathlib import Path

import pytest

from bridge.errors import BackendUnavailableError
from bridge_file import FileCA
from tests.support.harness.file_shapes import SHAPES, open_shape, write_shape
from tests.support.parts.pki import new_chain
from tests.unit.system.test_file_watch import PATIENCE_SECONDS, Calls


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_issuing_ca_tells_and_stays_as_it_is(
    tmp_path: Path, shape: str, calls: Calls
) -> None:
    old, new = new_chain(), new_chain()
    write_shape(tmp_path, shape, old)
    issuing_ca = open_shape(tmp_path, shape)
    issuing_ca.watch(calls)
    write_shape(tmp_path, shape, new)
    assert calls.wait()
    successor = open_shape(tmp_path, shape)
    assert successor.describe().certificate == new.certificate
    assert issuing_ca.describe().certificate == old.certificate
    issuing_ca.close()
    successor.close()


def test_a_change_between_load_and_watch_is_told(tmp_path: Path, calls: Calls) -> None:
    write_shape(tmp_path, "key", new_chain())
    issuing_ca = open_shape(tmp_path, "key")
    write_shape(tmp_path, "key", new_chain())
    issuing_ca.watch(calls)
    assert calls.wait()
    issuing_ca.close()


def test_the_one_who_is_told_may_close(tmp_path: Path) -> None:
    write_shape(tmp_path, "key", new_chain())
    issuing_ca = open_shape(tmp_path, "key")
    closed = threading.Event()

    def swap() -> None:
        issuing_ca.close()
        closed.set()

    issuing_ca.watch(swap)
    write_shape(tmp_path, "key", new_chain())
    assert closed.wait(PATIENCE_SECONDS)


def test_a_second_watch_is_a_mistake(tmp_path: Path, calls: Calls) -> None:
    write_shape(tmp_path, "key", new_chain())
    issuing_ca: FileCA = open_shape(tmp_path, "key")
    issuing_ca.watch(calls)
    with pytest.raises(RuntimeError, match="watched already"):
        issuing_ca.watch(calls)
    issuing_ca.close()


def test_a_closed_ca_starts_no_watch(tmp_path: Path, calls: Calls) -> None:
    write_shape(tmp_path, "key", new_chain())
    issuing_ca = open_shape(tmp_path, "key")
    issuing_ca.close()
    with pytest.raises(RuntimeError, match="or closed"):
        issuing_ca.watch(calls)


def test_a_closed_ca_has_no_key(tmp_path: Path) -> None:
    write_shape(tmp_path, "key", new_chain())
    issuing_ca = open_shape(tmp_path, "key")
    issuing_ca.check(timeout=1)
    issuing_ca.close()
    with pytest.raises(BackendUnavailableError, match="is closed"):
        issuing_ca.check(timeout=1)
