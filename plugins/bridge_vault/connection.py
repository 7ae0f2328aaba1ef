"""Connections to Vault over HTTP/1.1, with one deadline for the whole answer.

Clients in common use bound each read of a socket: an answer that trickles holds them
for as long as it likes. Here the time that is left bounds each read.
"""

import contextlib
import io
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from bridge.sdk import HostAddresses

_LARGEST_ANSWER = 1024 * 1024
_LARGEST_REST = 64 * 1024
"""Of an answer, beside its body: status, headers, chunk sizes, trailers."""
_BUFFER = 16 * 1024
_FIRST_FINAL = 200
_MOST_INTERIM = 10
_MOST_IDLE = 64
_IDLE_SECONDS = 20.0
"""An idle connection is not used after this time: proxies and servers close theirs, and
a POST on a closed connection leaves open whether it was served."""
_PORTS = {"http": 80, "https": 443}
_LINE = re.compile(r"[ -~]*")
_PATH = re.compile(r"/[!-~]*")


class ExchangeError(Exception):
    """No answer came.

    Args:
        text: What happened, for the operator.
        is_sent: The request may have reached the server whole.
        is_late: The time was spent.
    """

    def __init__(self, text: str, *, is_sent: bool, is_late: bool) -> None:
        super().__init__(text)
        self.is_sent = is_sent
        self.is_late = is_late


@dataclass(frozen=True, slots=True)
class HTTPAnswer:
    """An answer of the server, whole."""

    status: int
    headers: Message
    body: bytes


class Connections:
    """The connections to one address of a server. Safe between threads.

    Args:
        address: `https://host:port`, perhaps with a path before the API's.
        tls: How the server is verified; None for plain HTTP.
    """

    def __init__(self, address: str, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(address)
        self.address = address
        """As it was given."""
        self._prefix = parts.path.rstrip("/")
        self._host = parts.hostname or ""
        self._authority = parts.netloc
        self._tls = tls
        port = parts.port or _PORTS[parts.scheme]
        self._hosts = HostAddresses(self._host, port)
        self._idle: deque[_Connection] = deque()
        self._is_closed = False

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
        connected_by: float,
    ) -> HTTPAnswer:
        """Send a request and read the whole answer.

        Args:
            method: In upper case.
            path: Begins with `/v1/`.
            headers: Of this request.
            body: JSON, or None.
            deadline: A value of `time.monotonic()`.
            connected_by: The same, for a new connection.

        Raises:
            ExchangeError: There was no answer in time.
        """
        request = self._written(method, path, headers, body)
        connection = self._taken(connected_by)
        try:
            answer = connection.exchange(method, request, deadline)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable and len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        if self._is_closed:
            self.close()
        elif (oldest := self._oldest()) is not None and oldest.is_old:
            # Nobody may ask for so many at once again.
            self._drop(oldest)
        return answer

    def close(self) -> None:
        """Close the idle connections; those in use are closed after their answer."""
        self._is_closed = True
        while (oldest := self._oldest()) is not None:
            self._drop(oldest)

    def _written(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        # In one piece: head and body in two cost a packet and a system call more.
        path = self._prefix + path
        lines = [
            f"Host: {self._authority}",
            "Accept-Encoding: identity",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if not _PATH.fullmatch(path) or not all(map(_LINE.fullmatch, lines)):
            # It may be the token, so it is not told.
            text = "the path or a header has characters that HTTP does not permit"
            raise ExchangeError(text, is_sent=False, is_late=False)
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
        return head.encode("ascii") + (body or b"")

    def _oldest(self) -> "_Connection | None":
        try:
            return self._idle[0]
        except IndexError:
            return None

    def _drop(self, connection: "_Connection") -> None:
        # Another thread may have taken it meanwhile.
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
            connection.close()

    def _taken(self, deadline: float) -> "_Connection":
        while True:
            if self._is_closed:
                text = f"{self.address}: the connections are closed"
                raise ExchangeError(text, is_sent=False, is_late=False)
            try:
                connection = self._idle.pop()  # the one used last
            except IndexError:
                return self._opened(deadline)
            if connection.is_fresh():
                return connection
            connection.close()

    def _opened(self, deadline: float) -> "_Connection":
        try:
            found = self._hosts.resolved(deadline)
        except OSError as error:
            is_late = isinstance(error, TimeoutError)
            raise ExchangeError(str(error), is_sent=False, is_late=is_late) from error
        try:
            return _Connection(self._hosts.opened(found, deadline, self._secured))
        except TimeoutError:
            problem = f"{self.address}: no connection in time"
        except (OSError, ValueError) as error:
            problem = f"{self.address}: {_text(error)}"
        is_late = time.monotonic() >= deadline
        raise ExchangeError(problem, is_sent=False, is_late=is_late)

    def _secured(self, plain: socket.socket, deadline: float) -> socket.socket:
        if self._tls is None:
            return plain
        # The timeout is one for the whole handshake.
        plain.settimeout(_left(deadline))
        return self._tls.wrap_socket(plain, server_hostname=self._host)


class _Connection:
    # A connection that is open.
    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._used = time.monotonic()
        self.is_reusable = False

    @property
    def is_old(self) -> bool:
        return time.monotonic() - self._used >= _IDLE_SECONDS

    def is_fresh(self) -> bool:
        # A server that closed the connection, or says anything unasked, makes it
        # readable.
        if self.is_old:
            return False
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def exchange(self, method: str, request: bytes, deadline: float) -> HTTPAnswer:
        self.is_reusable = is_sent = False
        incoming = _Incoming(self._socket, deadline)
        reader = _Reader(incoming, _BUFFER)
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(request)
            is_sent = True
            response = _begun(reader, method)
            content = response.read(_LARGEST_ANSWER + 1)
            if response.length and len(content) <= _LARGEST_ANSWER:
                raise IncompleteRead(content, response.length)
        except TimeoutError as error:
            text = "no answer in time" if is_sent else "it could not be sent in time"
            raise ExchangeError(text, is_sent=is_sent, is_late=True) from error
        except OSError as error:
            text = f"the connection was cut: {_text(error)}"
            raise ExchangeError(text, is_sent=is_sent, is_late=False) from error
        except (HTTPException, ValueError) as error:
            # Its text has the server's bytes.
            text = f"the answer is not whole, or no HTTP ({type(error).__name__})"
            raise ExchangeError(text, is_sent=is_sent, is_late=False) from error
        if len(content) > _LARGEST_ANSWER:
            raise _too_long()
        # Bytes after the answer would be taken for the next one.
        is_whole = response.isclosed() and not response.will_close
        self.is_reusable = is_whole and not reader.has_more(incoming)
        self._used = time.monotonic()
        return HTTPAnswer(response.status, response.headers, content)

    def close(self) -> None:
        self._socket.close()


def _begun(reader: "_Reader", method: str) -> HTTPResponse:
    # The library takes 103 for the answer.
    for _ in range(_MOST_INTERIM):
        response = HTTPResponse(reader, method=method)  # type: ignore[arg-type]  # it needs only `makefile`
        response.begin()
        if response.status >= _FIRST_FINAL:
            return response
    raise HTTPException("too many interim answers")


class _Reader(io.BufferedReader):
    # What `HTTPResponse` takes for its socket and the socket's file.
    def makefile(self, mode: str) -> io.BufferedReader:
        return self

    def close(self) -> None:
        # A response closes it before it is known what else was read.
        pass

    def has_more(self, incoming: "_Incoming") -> bool:
        incoming.is_over = True
        return bool(self.peek(1))


class _Incoming(io.RawIOBase):
    # Reads with the time that is left until the deadline, and no more than an answer.
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._room = _LARGEST_ANSWER + _LARGEST_REST
        self.is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.is_over:
            return None
        if self._room <= 0:
            raise _too_long()
        self._sock.settimeout(_left(self._deadline))
        count = self._sock.recv_into(buffer)
        self._room -= count
        return count


def _too_long() -> ExchangeError:
    text = f"the answer is longer than {_LARGEST_ANSWER} bytes"
    return ExchangeError(text, is_sent=True, is_late=False)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _text(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"certificate verify failed: {error.verify_message}: compare "
            "ca_file and the host name of the address with it"
        )
    text = getattr(error, "strerror", None) or str(error)
    return text or type(error).__name__
