"""When memory is given back to the system."""

import ctypes
import errno
import threading

import pytest

from bridge.system.memory import Trimmer
from tests.support.harness.in_process_server import WAIT_SECONDS


class Process:
    def __init__(self) -> None:
        self.resident = 100
        self.used = 0.0
        self.trims = 0

    def trim(self) -> None:
        self.trims += 1
        self.resident = 100

    def trimmer(self) -> Trimmer:
        made = Trimmer(self.trim, lambda: self.resident, lambda: self.used)
        made.look(1.0)
        self.trims = 0
        return made


@pytest.mark.parametrize(
    ("resident", "used", "trims"),
    [
        pytest.param(150, 0.1, 1, id="grown and calm"),
        pytest.param(150, 0.9, 0, id="grown and at work"),
        pytest.param(101, 0.1, 0, id="hardly grown"),
    ],
)
def test_memory_is_given_back(resident: int, used: float, trims: int) -> None:
    process = Process()
    trimmer = process.trimmer()
    process.resident, process.used = resident, used
    trimmer.look(1.0)
    assert process.trims == trims


def test_it_is_held_against_what_was_left_last_time() -> None:
    process = Process()
    trimmer = process.trimmer()
    process.resident = 150
    trimmer.look(1.0)
    process.resident = 101
    trimmer.look(1.0)
    assert process.trims == 1


def test_a_library_that_cannot_do_it_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert Trimmer.of_this_process() is None


def test_this_process_can() -> None:
    trimmer = Trimmer.of_this_process()
    assert trimmer is not None
    trimmer.start()
    trimmer.close()


def test_a_look_that_fails_is_told_and_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A rush of callers that takes all file descriptors is when it is needed.
    monkeypatch.setattr("bridge.system.memory._LOOK_SECONDS", 0.0)
    answers = iter([OSError(errno.EMFILE, "Too many open files")])
    again = threading.Event()

    def resident() -> int:
        for error in answers:
            raise error
        again.set()
        return 100

    trimmer = Trimmer(lambda: None, resident, lambda: 0.0)
    trimmer.start()
    try:
        assert again.wait(WAIT_SECONDS)
    finally:
        trimmer.close()
    assert "Too many open files" in caplog.text
