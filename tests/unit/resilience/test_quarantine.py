"""The issuing CAs that are stopped: who knows of it, and until when."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.resilience.latch_file import Content, LatchFile
from bridge.resilience.quarantine import StoppedCAs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/latch.json"


def cleared(path: Path) -> None:
    with LatchFile(path).change() as content:
        assert content.clear("a", by="alice", reason="it was mended")


def test_a_stop_is_of_one_certificate(path: Path) -> None:
    StoppedCAs(path).add("a", "0a", "another name")
    stopped = StoppedCAs(path)
    assert stopped.reason("0a") == "another name"
    assert stopped.reason("0b") is None


def test_a_clearance_ends_the_stop_in_every_process(path: Path) -> None:
    one, other = StoppedCAs(path), StoppedCAs(path)
    one.add("a", "0a", "another name")
    assert other.reason("0a")
    cleared(path)
    assert not one
    assert not other
    # It may be stopped again.
    one.add("a", "0a", "another key")
    assert other.reason("0a") == "another key"


def test_a_stop_has_one_entry_whoever_meets_it(path: Path) -> None:
    for _ in range(2):
        StoppedCAs(path).add("a", "0a", "another name")
    content = LatchFile(path).read()
    assert len(content.entries) == len(content.notes) == 1


def test_a_stop_that_cannot_be_written_holds_in_its_process_and_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("no folder")
    stopped = StoppedCAs(path)
    stopped.add("a", "0a", "another name")
    assert stopped.reason("0a") == "another name"
    assert [entry.name for entry in stopped.latched()] == ["a"]
    assert str(path.parent) in stopped.trouble()
    assert "cannot be told of the stop" in caplog.text
    # Later it can.
    path.parent.unlink()
    stopped.write()
    assert stopped.trouble() == ""
    assert StoppedCAs(path).reason("0a") == "another name"
    cleared(path)
    assert not stopped


DAMAGES: dict[str, Callable[[Path], object]] = {
    "damaged": lambda path: path.write_bytes(b"{"),
    "no file of ours": lambda path: path.write_bytes(b"[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_while_the_file_cannot_be_read_the_last_state_holds(
    damage: Callable[[Path], object], path: Path
) -> None:
    stopped = StoppedCAs(path)
    stopped.add("a", "0a", "another name")
    assert stopped.reason("0a")
    damage(path)
    assert stopped.reason("0a") == "another name"
    assert str(path) in stopped.trouble()


def test_a_look_reads_the_file_only_when_it_has_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = StoppedCAs(path)
    stopped.add("a", "0a", "another name")
    read = LatchFile.read
    reads, stats = [], []
    stat = os.stat

    def counted(file: LatchFile) -> Content:
        reads.append(file)
        return read(file)

    def looked(at: str | Path, **options: Any) -> os.stat_result:
        if at == str(path):  # a read looks by a `Path`, and others at their own files
            stats.append(at)
        return stat(at, **options)

    monkeypatch.setattr(LatchFile, "read", counted)
    monkeypatch.setattr(os, "stat", looked)
    for _ in range(100):
        stopped.reason("0b")
    assert len(reads) == 1
    assert len(stats) == 100
