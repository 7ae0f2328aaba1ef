"""A TCP proxy on loopback that delays what a server answers, in a process of its own.

Run as `python -m tests.support.parts.delaying_proxy HOST:PORT PORT SECONDS`, it ends
with its standard input. Its CPU time is its own, not that of a benchmark beside it.
"""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.support.parts import netports

_ROOT = Path(__file__).resolve().parents[3]
_READY = b"ready\n"


class DelayingProxy:
    """Hands on bytes; those of the server come later. A context manager.

    Args:
        server: Its URL. With TLS, the handshake is delayed too.
        seconds: By how much.
    """

    def __init__(self, server: str, seconds: float = 0.005) -> None:
        parts = urlsplit(server)
        self._server = f"{parts.hostname}:{parts.port}"
        self._port = netports.reserve()
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"{parts.scheme}://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    def __enter__(self) -> Self:
        arguments = [self._server, str(self._port), str(self._seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.parts.delaying_proxy", *arguments],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != _READY:
            self.__exit__()
            raise RuntimeError("the delaying proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with self._process:  # closes its input, which ends it, and waits
            pass


class _ToServer(asyncio.Protocol):
    """A connection to the server: what comes from there leaves later."""

    def __init__(self, client: asyncio.Transport, seconds: float) -> None:
        self._client = client
        self._later = asyncio.get_running_loop().call_later
        self._seconds = seconds

    def data_received(self, data: bytes) -> None:
        self._later(self._seconds, self._client.write, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._later(self._seconds, self._client.close)


class _ToClient(asyncio.Protocol):
    """A connection of a client: what comes from there is handed on at once."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._address = (host, port)
        self._seconds = seconds
        self._server: asyncio.Transport | None = None
        self._early = bytearray()
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        loop = asyncio.get_running_loop()
        self._connecting = loop.create_task(self._connect(transport))

    async def _connect(self, client: asyncio.Transport) -> None:
        try:
            self._server, _ = await asyncio.get_running_loop().create_connection(
                lambda: _ToServer(client, self._seconds), *self._address
            )
        except OSError:
            client.abort()
            return
        self._server.write(bytes(self._early))

    def data_received(self, data: bytes) -> None:
        if self._server is None:
            self._early += data
        else:
            self._server.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._server is not None:
            self._server.close()


async def _serve(server: str, port: int, seconds: float) -> None:
    host, _, server_port = server.rpartition(":")
    loop = asyncio.get_running_loop()
    await loop.create_server(
        lambda: _ToClient(host, int(server_port), seconds), "127.0.0.1", port
    )
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
