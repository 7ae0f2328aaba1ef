"""Processes that a served bridge starts."""

from pathlib import Path

_FEEDER = b"bridge.ledger.archive.feedmain"


def feeders(pid: int) -> list[int]:
    """Return the processes that feed archives for `pid`, or for its workers."""
    return [one for one in descendants(pid) if _FEEDER in _command(one)]


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


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
