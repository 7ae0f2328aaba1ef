"""Connections to Vault over HTTP/1.1, with one deadline for the whole answer.

Clients in common use bound each read of a socket: an answer that trickles holds them
for as long as it likes. Here the time that is left bounds each read.
"""

import io
import ipaddress
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

_LARGEST_ANSWER = 1024 * 1024
_MOST_IDLE = 64
_IDLE_SECONDS = 20.0
"""An idle connection is not used after this time: proxies and servers close theirs, and
a POST on a closed connection leaves open whether it was served."""
_CONNECT_SECONDS = 1.0
"""For one address of a name that has several."""
_RESOLVE_SECONDS = 30.0
"""A name that was resolved so long ago is resolved again, beside the calls."""
_PORTS = {"http": 80, "https": 443}


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
        self._port = parts.port or _PORTS[parts.scheme]
        self._tls = tls
        self._names = _Names(self._host, self._port)
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
        connection = self._taken(connected_by)
        try:
            path = self._prefix + path
            answer = connection.exchange(method, path, headers, body, deadline)
        except BaseException:
            connection.close()
            raise
        is_kept = connection.is_reusable and len(self._idle) < _MOST_IDLE
        if is_kept and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close the idle connections; those in use are closed after their answer."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _taken(self, deadline: float) -> "_Connection":
        while True:
            try:
                connection = self._idle.pop()  # the one used last
            except IndexError:
                return self._opened(deadline)
            if connection.is_fresh():
                return connection
            connection.close()

    def _opened(self, deadline: float) -> "_Connection":
        found = self._names.resolved(deadline)
        problem = "the name has no address"
        for number, one in enumerate(found, start=1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise ExchangeError(problem, is_sent=False, is_late=True)
            seconds = left if number == len(found) else min(left, _CONNECT_SECONDS)
            try:
                return _Connection(
                    self._host, self._port, self._connected(one, seconds)
                )
            except TimeoutError:
                problem = f"{self.address}: no connection in time"
            except (OSError, ValueError) as error:
                problem = f"{self.address}: {_text(error)}"
        is_late = time.monotonic() >= deadline
        raise ExchangeError(problem, is_sent=False, is_late=is_late)

    def _connected(self, found: "_Found", seconds: float) -> socket.socket:
        family, kind, protocol, _, address = found
        plain = socket.socket(family, kind, protocol)
        try:
            plain.settimeout(seconds)
            plain.connect(address)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                return plain
            # The timeout is one for the whole handshake.
            return self._tls.wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise


_Found = tuple[Any, Any, int, str, Any]


class _Names:
    # The addresses of a host. They are looked up in a thread, since a lookup that hangs
    # cannot be ended. The last known ones are used while a new lookup runs.
    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._known: list[_Found] = []
        self._known_at = float("-inf")
        self._lookup: threading.Event | None = None
        self._problem = ""
        if _is_literal(host):
            self._known = _look_up(host, port)
            self._known_at = float("inf")

    def resolved(self, deadline: float) -> list[_Found]:
        known, now = self._known, time.monotonic()
        if now - self._known_at < _RESOLVE_SECONDS:
            return known
        lookup = self._begin()
        if known:
            return known
        if not lookup.wait(max(0.0, deadline - now)):
            text = f"{self._host}: the name is not resolved in time"
            raise ExchangeError(text, is_sent=False, is_late=True)
        if not self._known:
            raise ExchangeError(self._problem, is_sent=False, is_late=False)
        return self._known

    def _begin(self) -> threading.Event:
        with self._lock:
            if self._lookup is None:
                self._lookup = threading.Event()
                threading.Thread(
                    target=self._run,
                    args=(self._lookup,),
                    name=f"resolve-{self._host}",
                    daemon=True,
                ).start()
            return self._lookup

    def _run(self, lookup: threading.Event) -> None:
        try:
            self._known = _look_up(self._host, self._port)
            self._known_at = time.monotonic()
        except (OSError, UnicodeError) as error:
            self._problem = f"{self._host}: the name is not resolved: {_text(error)}"
        finally:
            with self._lock:
                self._lookup = None
            lookup.set()


class _Connection:
    # A connection that is open.
    def __init__(self, host: str, port: int, opened: socket.socket) -> None:
        self._host = host
        self._port = port
        self._socket = opened
        self._used = time.monotonic()
        self.is_reusable = False

    def is_fresh(self) -> bool:
        # A server that closed the connection, or says anything unasked, makes it
        # readable.
        if time.monotonic() - self._used >= _IDLE_SECONDS:
            return False
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> HTTPAnswer:
        self.is_reusable = is_sent = False
        try:
            # It writes a request onto the socket, and does no more for us.
            writer = HTTPConnection(self._host, self._port)
            writer.sock = self._socket
            self._socket.settimeout(_left(deadline))
            writer.request(method, path, body, dict(headers))
            is_sent = True
            response = _Response(self._socket, method, deadline)
            response.begin()
            content = response.read(_LARGEST_ANSWER + 1)
        except TimeoutError as error:
            text = "no answer in time" if is_sent else "it could not be sent in time"
            raise ExchangeError(text, is_sent=is_sent, is_late=True) from error
        except (OSError, HTTPException, ValueError) as error:
            text = f"the connection was cut: {_text(error)}"
            raise ExchangeError(text, is_sent=is_sent, is_late=False) from error
        if len(content) > _LARGEST_ANSWER:
            text = f"the answer is longer than {_LARGEST_ANSWER} bytes"
            raise ExchangeError(text, is_sent=True, is_late=False)
        self.is_reusable = response.isclosed() and not response.will_close
        self._used = time.monotonic()
        return HTTPAnswer(response.status, response.headers, content)

    def close(self) -> None:
        self._socket.close()


class _Response(HTTPResponse):
    # Reads with the time that is left until the deadline.
    def __init__(self, sock: socket.socket, method: str, deadline: float) -> None:
        super().__init__(_Readable(sock, deadline), method=method)  # type: ignore[arg-type]  # it needs only `makefile`


class _Readable(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _look_up(host: str, port: int) -> list[_Found]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _text(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"certificate verify failed: {error.verify_message}: compare "
            "ca_file and the host name of the address with it"
        )
    text = getattr(error, "strerror", None) or str(error)
    return text or type(error).__name__
