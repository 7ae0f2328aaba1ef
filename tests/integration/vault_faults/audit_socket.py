"""An audit device of Vault's kind `socket` that goes away where a test says so."""

import json
import socket
import struct
import threading
from pathlib import Path
from typing import Self

from tests.support.parts import netports

_RESET = struct.pack("ii", 1, 0)
"""A connection that is closed with this is reset: the next write to it fails."""


class AuditSocket:
    """Takes entries over TCP and appends them to a file. A context manager.

    Args:
        file: Has one entry a line.
    """

    def __init__(self, file: Path) -> None:
        self.address = netports.address()
        self._file = file
        self._lock = threading.Lock()
        self._last = ""
        self._listener: socket.socket | None = None
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.serve()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    @property
    def is_away(self) -> bool:
        """Whether nothing can be audited."""
        return self._listener is None

    def leave_after(self, path: str) -> None:
        """Close all after the next entry of a request with this in its path.

        Its answer then cannot be audited, nor any other request.
        """
        self._last = path

    def serve(self) -> None:
        """Listen, perhaps again; go away no more."""
        self._last = ""
        if not self.is_away:
            return
        host, _, port = self.address.partition(":")
        self._listener = socket.create_server((host, int(port)))
        threading.Thread(
            target=self._accept, args=(self._listener,), daemon=True
        ).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    self._keep(line)
        except (OSError, ValueError):
            return  # it was closed

    def _keep(self, line: bytes) -> None:
        with self._lock, self._file.open("ab") as file:
            file.write(line)
        if self._last:
            entry = json.loads(line)
            path: str = entry.get("request", {}).get("path", "")
            if entry["type"] == "request" and self._last in path:
                self._leave()

    def _leave(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # `close` alone leaves a thread in `accept`, and the port open.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        while self._connections:
            connection = self._connections.pop()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.shutdown(socket.SHUT_RD)
            connection.close()
