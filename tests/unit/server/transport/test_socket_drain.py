import fcntl
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.server.transport.socket_drain import close_listeners


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


_TRY_TO_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("locked")
"""


def test_locks_of_the_process_on_its_files_stay(tmp_path: Path) -> None:
    # SQLite has some on the archive: without them another worker takes itself for the
    # last one, and removes the log that this one still writes into.
    path = tmp_path / "file"
    with path.open("w+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        close_listeners({1})
        command = [sys.executable, "-c", _TRY_TO_LOCK, str(path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "locked\n"
