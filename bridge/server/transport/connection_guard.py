"""Closes the connections of peers that send junk, and those above a bound.

grpc has no call for it, so a connection is shut down at its socket. grpc then sees that
the peer has left.
"""

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from bridge.server.transport.socket_drain import DESCRIPTORS, copy_of, sockets_of
from bridge.system.background import BackgroundLoop

_STEP_SECONDS = 0.05
_CENSUS_SECONDS = 1.0
_JUNK = 50
"""A connection may begin so many junk calls at once, and then `_JUNK_PER_SECOND`. Less
than the streams that it may have: what is above those is not seen here."""
_JUNK_PER_SECOND = 2.0
MOST_CONNECTIONS = 4096
"""The most connections of a port, where descriptors are not scarce. grpc refuses more.
"""
_MOST_SHARE = 0.75
"""Of them, before those that have been idle longest are closed to make room."""
_SHARE_OF_ADDRESS = 0.25
_LAST_RECEIVED = 52
"""Where `struct tcp_info` has the milliseconds since data came. Source: linux/tcp.h."""
_INFO_BYTES = 104
_MAPPED = "::ffff:"


class ConnectionGuard:
    """Counts junk calls by connection, and closes those with too many.

    A call is junk if it asks for another method, is given up for its message, is taken
    back, or is refused for its token or its content. A connection none of whose calls
    can be granted is closed by `end`.

    Args:
        knows_peers: A connection stands for one peer, and an address for one workload.
            False behind a proxy: there only the bound on all connections holds.
        closed: Told how many connections were closed, and why: `junk`, `certificate`
            or `idle`.
        most: The most connections of a port.
    """

    def __init__(
        self,
        *,
        knows_peers: bool,
        closed: Callable[[str, int], None],
        most: int = MOST_CONNECTIONS,
    ) -> None:
        self.ports: Collection[int] = ()
        """Of the listeners; set once they are bound."""
        self.knows_peers = knows_peers
        self._closed = closed
        self._most = int(most * _MOST_SHARE)
        self._most_of_address = int(most * _SHARE_OF_ADDRESS)
        self._junk: dict[str, float] = {}
        self._over: dict[str, str] = {}
        """Why each connection is to be closed."""
        self._looked = self._counted = time.monotonic()
        self._loop = BackgroundLoop("connections", self._step, _STEP_SECONDS)

    def start(self) -> None:
        """Begin to look."""
        self._loop.start()

    def close(self) -> None:
        """Stop looking. May be called twice, or before `start`."""
        self._loop.close()

    def junk(self, peer: str) -> None:
        """Count a junk call.

        Args:
            peer: The connection, as grpc names it.
        """
        if not self.knows_peers:
            return
        count = self._junk[peer] = self._junk.get(peer, 0.0) + 1
        if count > _JUNK:
            self._over[peer] = "junk"

    def end(self, peer: str, reason: str) -> None:
        """Close a connection soon.

        Args:
            peer: The connection, as grpc names it.
            reason: For the count.
        """
        if self.knows_peers:
            self._over[peer] = reason

    def look(self, seconds: float) -> None:
        """Close what is to be closed; forgive a part of the junk of the others.

        Args:
            seconds: The time since the last look.
        """
        over, self._over = self._over, {}
        if over:
            for one in connections(self.ports):
                if one.peer in over:
                    self._shut(over[one.peer], [one])
        pardon = seconds * _JUNK_PER_SECOND
        for peer, count in self._junk.copy().items():
            if peer in over or count <= pardon:
                self._junk.pop(peer, None)
            else:
                self._junk[peer] = count - pardon

    def count(self) -> None:
        """Close the connections above the bounds, the longest idle first."""
        # As a rule a listing of the descriptors shows that there are few.
        if sum(1 for _ in DESCRIPTORS.iterdir()) <= self._most_of_address:
            return
        found = sorted(connections(self.ports), key=lambda one: -one.idle_seconds)
        excess = len(found) - self._most
        closing = dict.fromkeys(found[: max(0, excess)])
        if self.knows_peers:
            of_address = Counter(one.host for one in found)
            for one in found:
                if of_address[one.host] > self._most_of_address:
                    of_address[one.host] -= 1
                    closing[one] = None
        self._shut("idle", closing)

    def _shut(self, reason: str, found: "Iterable[Connection]") -> None:
        closed = sum(one.shut_down() for one in found)
        if closed:
            self._closed(reason, closed)

    def _step(self) -> None:
        now = time.monotonic()
        before, self._looked = self._looked, now
        self.look(now - before)
        if now - self._counted > _CENSUS_SECONDS:
            self._counted = now
            self.count()


@dataclass(frozen=True, slots=True)
class Connection:
    """An accepted connection of this process."""

    descriptor: int
    host: str
    peer: str
    """As grpc names it."""
    idle_seconds: float
    """Since the peer last sent anything."""

    def shut_down(self) -> bool:
        """End the connection, unless it has ended; return whether this did."""
        with suppress(OSError), copy_of(self.descriptor) as held:
            # The descriptor may stand for another connection by now.
            if _peer(held.getpeername())[1] == self.peer:
                held.shutdown(socket.SHUT_RDWR)
                return True
        return False


def connections(ports: Collection[int]) -> Iterator[Connection]:
    """Yield the accepted connections to `ports`."""
    for descriptor, held in sockets_of(ports):
        with suppress(OSError):  # it listens, or has ended
            host, peer = _peer(held.getpeername())
            info = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            (idle,) = struct.unpack_from("I", info, _LAST_RECEIVED)
            yield Connection(descriptor, host, peer, idle / 1000)


def _peer(name: tuple[str, int]) -> tuple[str, str]:
    # As `grpc_sockaddr_to_uri` writes it.
    host, port = name[0].removeprefix(_MAPPED), name[1]
    if ":" in host:
        return host, f"ipv6:%5B{host}%5D:{port}"
    return host, f"ipv4:{host}:{port}"
