"""Hands out loopback ports that no other test takes.

A port that the kernel hands out (port 0) and that is closed again may go to anyone
before the program under test opens it: another worker of the test run, or an outgoing
connection. So these ports come from below the kernel's own range, and each is locked
for as long as this process lives.
"""

import errno
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

_PORTS = range(20_000, 32_000)
"""Linux hands out 32,768 and up by itself."""

_held: list[int] = []
# Descriptors of the lock files. They stay open on purpose: closing one frees its port.


def reserve() -> int:
    """Return a free TCP port on 127.0.0.1 that is this process's alone.

    Raises:
        OSError: Every port is taken.
    """
    folder = Path(tempfile.gettempdir()) / f"meshca-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for port in random.sample(_PORTS, k=200):
        lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if _is_mine(lock) and _is_free(port):
            _held.append(lock)
            return port
        os.close(lock)
    raise OSError(errno.EADDRINUSE, "no free port among 200 on 127.0.0.1")


def address() -> str:
    """Return `127.0.0.1:PORT` with a reserved port."""
    return f"127.0.0.1:{reserve()}"


def _is_mine(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
