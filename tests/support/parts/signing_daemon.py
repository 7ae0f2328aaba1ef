"""The daemon of docs/plugins.md: holds a CA key and signs behind a Unix socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bridge.x509.algorithm import algorithm_of, signature_of
from tests.support.parts.pki import Key, bundle, new_chain, new_key

_LARGEST = 1 << 16


class SigningDaemon:
    """Serves until it is stopped; each connection is for one request.

    Args:
        folder: For its socket and the chain of its CA.
    """

    def __init__(self, folder: Path) -> None:
        self._authority = new_chain()
        self._key: Key = self._authority.key
        self._well = threading.Event()
        self._well.set()
        self._listener: socket.socket | None = None
        self.secret = self._authority.key_pem().splitlines()[1]
        """A line of its key's PEM."""
        self.socket = folder / "sign.sock"
        self.chain = folder / "chain.pem"
        self.chain.write_bytes(bundle(*self._authority.chain))
        self.start()

    def start(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.socket))
        self._listener.listen(128)
        threading.Thread(target=self._serve, args=(self._listener,)).start()

    def stop(self) -> None:
        if self._listener is not None:
            # Closing does not wake a thread that waits in accept.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            self.socket.unlink()

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self._well.clear()
        try:
            yield
        finally:
            self._well.set()

    @contextmanager
    def other_key(self) -> Iterator[None]:
        self._key = new_key()
        try:
            yield
        finally:
            self._key = self._authority.key

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it was stopped
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._answer, args=(connection,)).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has gone
            request = connection.recv(_LARGEST)
            self._well.wait()
            if request == b"check":
                connection.send(b"ok")
                return
            name, _, tbs = request.partition(b"\n")
            algorithm = algorithm_of(self._key.public_key())
            if name.decode() == algorithm.name:
                connection.send(signature_of(self._key, algorithm, tbs))
