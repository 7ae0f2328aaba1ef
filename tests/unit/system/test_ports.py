import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bridge.errors import ConfigError
from bridge.system.ports import require_free
from tests.support.parts import netports

HELD = """
import socket, sys
held = socket.socket()
held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
held.bind(("127.0.0.1", 0))
held.listen()
print(held.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that listens with SO_REUSEPORT, as a bridge's workers do."""
    command = [sys.executable, "-c", HELD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate()


def test_a_port_in_use_is_refused_and_its_owner_named(
    holder: subprocess.Popen[str],
) -> None:
    assert holder.stdout is not None
    port = int(holder.stdout.readline())
    said = (
        rf"^fronts\.x: cannot listen on 127\.0\.0\.1:{port}: it is in use by python.* "
    )
    with pytest.raises(ConfigError, match=rf"{said}\(pid {holder.pid}\); stop that"):
        require_free("fronts.x", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=rf"in use by .*\(pid {holder.pid}\)"):
        require_free("fronts.x", f"0.0.0.0:{port}")


def test_a_free_port_is_left_free() -> None:
    port = netports.reserve()
    require_free("fronts.x", f"127.0.0.1:{port}")
    with socket.socket() as own:
        own.bind(("127.0.0.1", port))
    require_free("fronts.x", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("192.0.2.1:1", "Cannot assign requested address"),
        ("no.such.host.invalid:1", "cannot listen on no.such.host.invalid:1: "),
    ],
)
def test_an_address_that_is_not_of_this_machine_is_refused(
    address: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        require_free("fronts.x", address)


def test_a_port_of_the_own_workers_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    # This process listens, and stands for a worker of this or of a parent that is gone.
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        address = f"127.0.0.1:{own.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"\(pid {os.getpid()}\)"):
            require_free("fronts.x", address)
        monkeypatch.setattr("bridge.system.ports._WORKER", b"")
        require_free("fronts.x", address)
