"""The addresses of a host: names that hang, move or are not there, and deadlines."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bridge.system import host_addresses
from bridge.system.host_addresses import HostAddresses
from tests.support.parts import netports

AT_ONCE = 5.0
"""What must happen long before a deadline; the machine may be busy."""


@pytest.fixture
def port() -> Iterator[int]:
    """Return the port of a listener that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def hosts() -> HostAddresses:
    return HostAddresses("vault.example", 1)


def connect(hosts: HostAddresses, seconds: float = 10.0) -> int:
    """Connect to a host; return the port of the address that took it."""
    until = time.monotonic() + seconds
    found = hosts.resolved(until)
    with hosts.opened(found, until, lambda sock, _: sock) as sock:
        port: int = sock.getpeername()[1]
        return port


def addresses_of(*ports: int) -> list[tuple[object, ...]]:
    kind = socket.SOCK_STREAM
    return [(socket.AF_INET, kind, 0, "", ("127.0.0.1", port)) for port in ports]


@pytest.fixture
def black_hole() -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):  # its queue is full: the kernel drops what follows
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_name_with_an_address_that_is_a_black_hole_has_another_one(
    monkeypatch: pytest.MonkeyPatch, hosts: HostAddresses, black_hole: int, port: int
) -> None:
    found = addresses_of(black_hole, port)
    monkeypatch.setattr(host_addresses, "_look_up", lambda *_: found)
    monkeypatch.setattr(host_addresses, "_CONNECT_SECONDS", 0.2)
    assert connect(hosts) == port
    monkeypatch.setattr(host_addresses, "_CONNECT_SECONDS", 60.0)
    # The address that was well comes first now.
    assert connect(hosts) == port


def test_a_name_that_moves_is_followed(
    monkeypatch: pytest.MonkeyPatch, hosts: HostAddresses, port: int
) -> None:
    found = [addresses_of(netports.reserve()), addresses_of(port)]

    def look_up(*_: object) -> list[tuple[object, ...]]:
        return found.pop(0) if len(found) > 1 else found[0]

    monkeypatch.setattr(host_addresses, "_look_up", look_up)
    with pytest.raises(ConnectionRefusedError, match="refused"):
        connect(hosts)
    deadline = time.monotonic() + AT_ONCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            assert connect(hosts) == port
            return
    pytest.fail("the new address was not used")


def test_a_lookup_that_hangs_holds_no_call_beyond_its_deadline(
    monkeypatch: pytest.MonkeyPatch, hosts: HostAddresses, port: int
) -> None:
    release = threading.Event()

    def look_up(*_: object) -> list[tuple[object, ...]]:
        release.wait(60)
        return addresses_of(port)

    monkeypatch.setattr(host_addresses, "_look_up", look_up)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="not resolved in time"):
            connect(hosts, 0.1)
    names = [one.name for one in threading.enumerate()]
    assert names.count("resolve-vault.example") == 1
    release.set()
    assert connect(hosts) == port


def test_a_lookup_without_a_thread_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, hosts: HostAddresses, port: int
) -> None:
    monkeypatch.setattr(host_addresses, "_look_up", lambda *_: addresses_of(port))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="no more threads"):
            connect(hosts)
    assert connect(hosts) == port


def test_a_name_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, hosts: HostAddresses
) -> None:
    def look_up(*_: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(host_addresses, "_look_up", look_up)
    text = "vault.example: the name is not resolved: Name or service not known"
    with pytest.raises(OSError, match=text):
        connect(hosts)
