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

DESCRIPTORS = Path("/proc/self/fd")
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
    for _, each in sockets_of(ports):
        with suppress(OSError):
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                # Shuts down the socket itself, also for grpc's descriptor of it.
                each.shutdown(socket.SHUT_RD)
                closed += 1
    return closed


def sockets_of(ports: Collection[int]) -> Iterator[tuple[int, socket.socket]]:
    """Yield the TCP sockets of this process with one of these local ports.

    Yields:
        The descriptor, and a copy that is closed when the next one is asked for.
    """
    for path in DESCRIPTORS.iterdir():
        with suppress(OSError):  # closed meanwhile
            # Sockets only: closing a copy of a file's descriptor releases all POSIX
            # locks of the process on that file, such as SQLite's on the archive.
            if not path.is_socket():
                continue
            with copy_of(int(path.name)) as held:
                if (
                    held.family in {socket.AF_INET, socket.AF_INET6}
                    and held.getsockname()[1] in ports
                ):
                    yield int(path.name), held


def copy_of(descriptor: int) -> socket.socket:
    """Return a copy of a socket, by its descriptor.

    Raises:
        OSError: It is no socket, or is closed.
    """
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
