"""Whose connections are closed, over real sockets of this process."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bridge.server.transport import connection_guard as module
from bridge.server.transport.connection_guard import ConnectionGuard, connections


class House:
    """A listener, its accepted connections, and the clients at their other ends."""

    def __init__(
        self,
        address: str,
        *,
        knows_peers: bool = True,
        most: int = module.MOST_CONNECTIONS,
    ) -> None:
        self._stack = ExitStack()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = self._stack.enter_context(
            socket.create_server((address, 0), family=family)
        )
        self.told: list[tuple[str, int]] = []
        self.guard = ConnectionGuard(
            knows_peers=knows_peers,
            most=most,
            closed=lambda reason, count: self.told.append((reason, count)),
        )
        self.port = self.listener.getsockname()[1]
        self.guard.ports = {self.port}
        self.clients: list[socket.socket] = []

    def connect(self) -> str:
        """Connect; return the client's name as grpc has it."""
        name = self.listener.getsockname()
        client = self._stack.enter_context(socket.create_connection(name[:2]))
        self._stack.enter_context(self.listener.accept()[0])
        client.settimeout(5)
        self.clients.append(client)
        host, port = client.getsockname()[:2]
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def closed(self) -> list[bool]:
        return [self._is_closed(client) for client in self.clients]

    def close(self) -> None:
        self._stack.close()

    @staticmethod
    def _is_closed(client: socket.socket) -> bool:
        client.setblocking(False)
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture(params=["127.0.0.1", "::1"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    made = House(request.param)
    yield made
    made.close()


def test_a_connection_with_too_much_junk_is_closed_and_no_other(house: House) -> None:
    junk, quiet = house.connect(), house.connect()
    for _ in range(module._JUNK):
        house.guard.junk(junk)
        house.guard.junk(quiet)
    house.guard.look(0)
    assert house.closed() == [False, False]
    house.guard.junk(junk)
    house.guard.look(0)
    assert house.closed() == [True, False]
    assert house.told == [("junk", 1)]


def test_junk_now_and_then_is_forgiven(house: House) -> None:
    peer = house.connect()
    for _ in range(3):
        for _ in range(module._JUNK):
            house.guard.junk(peer)
        house.guard.look(module._JUNK / module._JUNK_PER_SECOND)
    assert house.closed() == [False]
    assert not house.guard._junk


def test_a_peer_that_has_left_is_nobody_else(house: House) -> None:
    house.connect()
    for _ in range(module._JUNK + 1):
        house.guard.junk("ipv4:127.0.0.1:1")
    house.guard.look(0)
    assert house.closed() == [False]
    assert house.told == []


def test_behind_a_proxy_junk_closes_nothing() -> None:
    house = House("127.0.0.1", knows_peers=False)
    peer = house.connect()
    for _ in range(module._JUNK + 1):
        house.guard.junk(peer)
    house.guard.look(0)
    assert house.closed() == [False]
    house.close()


@pytest.mark.parametrize(
    ("most", "knows_peers", "closed"),
    [
        (8, True, [True, False, False]),
        (8, False, [False, False, False]),
        (2, False, [True, True, False]),
        (400, True, [False] * 3),
    ],
    ids=["of an address", "an address is a proxy", "in all", "few"],
)
def test_above_a_bound_the_longest_idle_connections_are_closed(
    most: int,
    closed: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    *,
    knows_peers: bool,
) -> None:
    house = House("127.0.0.1", knows_peers=knows_peers, most=most)
    peers = [house.connect() for _ in range(3)]

    def idle(ports: set[int]) -> Iterator[module.Connection]:
        for one in connections(ports):
            yield module.Connection(
                one.descriptor, one.host, one.peer, 9.0 - peers.index(one.peer)
            )

    monkeypatch.setattr(module, "connections", idle)
    house.guard.count()
    assert house.closed() == closed
    house.close()


def test_a_descriptor_that_stands_for_another_connection_is_left_alone(
    house: House,
) -> None:
    house.connect()
    (found,) = connections({house.port})
    other = module.Connection(found.descriptor, found.host, "ipv4:127.0.0.1:1", 0.0)
    assert not other.shut_down()
    assert house.closed() == [False]
    assert found.shut_down()
    assert house.closed() == [True]


def test_how_long_a_connection_is_idle_is_seen(house: House) -> None:
    house.connect()
    house.clients[0].sendall(b"x")
    (found,) = connections({house.port})
    assert 0 <= found.idle_seconds < 60
