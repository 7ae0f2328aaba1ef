"""Processes that a served bridge starts."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

_FEEDER = b"bridge.process.feeder"
_WATCHER = b"bridge.process.watcher"


def feeders(pid: int) -> list[int]:
    """Return the processes that feed the archive for `pid`."""
    return [one for one in descendants(pid) if _FEEDER in command(one)]


def watchers(pid: int) -> list[int]:
    """Return the processes that watch the clusters of `pid`."""
    return [one for one in descendants(pid) if _WATCHER in command(one)]


def workers(pid: int) -> list[int]:
    """Return the worker processes of the parent `pid`."""
    # One that is ending has no command any more, and may hold its sockets still: it is
    # a worker until it is gone. One that is only starting has its parent's command.
    path, own = Path(f"/proc/{pid}/task/{pid}/children"), command(pid)
    found = (int(one) for one in path.read_text().split())
    return [one for one in found if not _is_other(command(one), own)]


def _is_other(text: bytes, own: bytes) -> bool:
    return text == own or any(name in text for name in (_FEEDER, _WATCHER))


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended, with all its threads and sockets."""
    try:
        state = _state(Path(f"/proc/{pid}"))
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return False
    # The first thread is a zombie before the others have ended, and only the last one
    # of them closes the sockets.
    return state != "Z" or len(threads) > 1


def await_gone(pids: Sequence[int], seconds: float) -> None:
    """Wait until none of the processes is alive.

    Raises:
        TimeoutError: One still is after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"one of {pids} is still there")
        time.sleep(0.02)


def pause(pid: int) -> None:
    """Stop a process (SIGSTOP), and return when it does nothing any more.

    Its threads take the signal in turn, and one that waits for a core goes on for a
    while where the machine is busy.
    """
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    while {_state(one) for one in threads.iterdir()} != {"T"}:
        time.sleep(0.005)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:
            continue  # the thread has ended
        for child in map(int, children):
            found += [child, *descendants(child)]
    return sorted(found)


def _state(folder: Path) -> str:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0]


def command(pid: int) -> bytes:
    # Empty for a moment while a program starts, and from then on when the process is
    # ending: then it has no program any more either.
    folder = Path(f"/proc/{pid}")
    try:
        while not (command := (folder / "cmdline").read_bytes()):
            (folder / "exe").readlink()
    except OSError:
        return b""
    return command
