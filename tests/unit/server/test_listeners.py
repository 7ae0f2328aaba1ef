import socket

import pytest

from bridge.server.listeners import close_listeners


def test_only_the_listener_is_closed_and_what_it_let_in_goes_on() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            accepted, _ = listener.accept()
            with accepted:
                assert close_listeners({address[1]}) == 1
                client.sendall(b"on")
                assert accepted.recv(2) == b"on"
        with pytest.raises(ConnectionRefusedError), socket.socket() as late:
            late.connect(address)
        with socket.create_connection(other.getsockname()):
            pass


def test_nothing_is_closed_where_nothing_listens() -> None:
    assert close_listeners({1}) == 0
