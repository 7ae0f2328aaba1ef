"""Stops listening before the process ends: no new connections, the old ones go on.

grpc closes its listening sockets together with every connection in a TLS handshake. A
worker that shares its port with others has to let the handshakes finish, or their
clients would see a broken connection.
"""

import os
import socket
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_HANDSHAKE_SECONDS = 0.3


def leave_to_others(addresses: Iterable[str], seconds: float) -> None:
    """Close the listening sockets, and wait until TLS handshakes have finished.

    Args:
        addresses: `host:port` of listeners of this process whose ports others share.
        seconds: The longest to wait.
    """
    if close_listeners({int(each.rpartition(":")[2]) for each in addresses}):
        time.sleep(min(seconds, _HANDSHAKE_SECONDS))


def close_listeners(ports: Collection[int]) -> int:
    """Close the listening sockets on `ports`; return how many there were.

    Accepted connections go on. The kernel gives new connections to the other processes
    that listen on the port.
    """
    closed = 0
    for each in _listening(ports):
        with each, suppress(OSError):
            # Shuts down the socket itself, also for grpc's descriptor of it.
            each.shutdown(socket.SHUT_RD)
            closed += 1
    return closed


def _listening(ports: Collection[int]) -> Iterator[socket.socket]:
    for path in Path("/proc/self/fd").iterdir():
        try:
            # Sockets only: closing a copy of a file's descriptor releases all POSIX
            # locks of the process on that file, such as SQLite's on the archive.
            if not path.is_socket():
                continue
            copy = os.dup(int(path.name))
        except OSError:
            continue  # closed meanwhile
        try:
            found = socket.socket(fileno=copy)
        except OSError:  # no longer a socket
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
