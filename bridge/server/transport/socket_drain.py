"""Closes the listener before the house: no new connections, while the old ones go on.

grpc closes its listeners and whatever is in a TLS handshake at once. A worker that
others follow on the same port has to let the handshakes finish: their clients would
see a connection that breaks.
"""

import os
import socket
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_HANDSHAKE_SECONDS = 0.3


def leave_to_others(addresses: Iterable[str], seconds: float) -> None:
    """Let no more connections in, and wait until those that came have shaken hands.

    Args:
        addresses: `host:port` of listeners of this process, which others share.
        seconds: The longest to wait.
    """
    if close_listeners({int(each.rpartition(":")[2]) for each in addresses}):
        time.sleep(min(seconds, _HANDSHAKE_SECONDS))


def close_listeners(ports: Collection[int]) -> int:
    """Let no more connections in on `ports`; return how many sockets that closed.

    What has been accepted is not touched. The kernel gives new connections to the
    other processes that listen on the port.
    """
    closed = 0
    for each in _listening(ports):
        with each, suppress(OSError):
            # Of the socket itself, whichever descriptor it is reached by.
            each.shutdown(socket.SHUT_RD)
            closed += 1
    return closed


def _listening(ports: Collection[int]) -> Iterator[socket.socket]:
    for path in Path("/proc/self/fd").iterdir():
        try:
            # Of sockets only: whoever closes a copy of a file's descriptor gives up all
            # POSIX locks of the process on the file, such as SQLite's on the archive.
            if not path.is_socket():
                continue
            copy = os.dup(int(path.name))
        except OSError:
            continue  # it was closed meanwhile
        try:
            found = socket.socket(fileno=copy)
        except OSError:  # no socket any more
            os.close(copy)
            continue
        if _is_listening(found, ports):
            yield found
        else:
            found.close()


def _is_listening(found: socket.socket, ports: Collection[int]) -> bool:
    if found.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    try:
        accepts = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return bool(accepts) and found.getsockname()[1] in ports
    except OSError:
        return False
