"""A server on loopback that says what a test tells it to, byte for byte."""

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509

from tests.support.parts.pki import bundle, key_pem, new_key, new_root, write_private

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_END = b"\r\n\r\n"

Script = Callable[["ScriptedServer", socket.socket], None]
"""Serves one connection, which is closed when it returns."""


class ScriptedServer:
    """A context manager; each connection has a thread, which ends with the block.

    Args:
        script: What is done with each connection.
        tls: Of the server; None for plain HTTP.
    """

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self.tls = tls
        """Of the connections to come."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self.requests: list[bytes] = []
        """Each whole request, in the order in which they came."""
        self.connections = 0
        self.over = threading.Event()
        """Set at the end of the block: whatever waits waits for this."""
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._accept)
        self._threads.append(thread)
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def ending_after(self, seconds: float) -> Iterator[None]:
        """End its connections when the block takes longer.

        A client that waits for ever then fails its test, and does not hang it.
        """
        timer = threading.Timer(seconds, self.over.set)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def read(self, sock: socket.socket) -> bytes:
        """Return the next request of a connection, and keep it; empty at its end.

        What is kept is in one list for all connections: its last one may be another's.
        """
        data = b""
        while _END not in data and (more := _received(sock)):
            data += more
        head, _, body = data.partition(_END)
        length = _length(head)
        while len(body) < length and (more := _received(sock)):
            body += more
        if not head:
            return b""
        request = head + _END + body
        self.requests.append(request)
        return request

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            if self.tls is not None:
                sock = stack.enter_context(self.tls.wrap_socket(sock, server_side=True))
            self._script(self, sock)


def answering(*answers: bytes) -> Script:
    """Return a script: an answer a request, the last one for all that follow."""
    left = list(answers)

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        while server.read(sock):
            sock.sendall(left.pop(0) if len(left) > 1 else left[0])

    return script


def saying(answer: bytes) -> Script:
    """Return a script: one answer a connection, which is closed after it."""

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        sock.sendall(answer)

    return script


def trickling(start: bytes, piece: bytes) -> Script:
    """Return a script: a piece each 20 ms, without an end."""

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        sock.sendall(start)
        while not server.over.wait(0.02):
            sock.sendall(piece)

    return script


def silent(server: ScriptedServer, sock: socket.socket) -> None:
    """Read, and say nothing."""
    server.read(sock)
    server.over.wait()


def json_answer(
    body: bytes, status: int = 200, headers: Iterable[str] = (), kind: str = ""
) -> bytes:
    """Return a whole answer that keeps the connection."""
    lines = [
        f"HTTP/1.1 {status} of a test",
        f"Content-Type: {kind or 'application/json'}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def server_tls(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a CA and a certificate for 127.0.0.1; return its context and the CA."""
    now = datetime.now(UTC)
    root = new_root("CA of a server", not_before=now - timedelta(hours=1))
    key = new_key()
    leaf = root.issue_leaf(
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        key=key,
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=1),
    )
    certificate, ca_file = folder / "server.pem", folder / "ca.pem"
    certificate.write_bytes(bundle(leaf))
    ca_file.write_bytes(root.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        certificate, write_private(folder / "server.key", key_pem(key))
    )
    return context, ca_file


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
