"""HTTP/1.1 over connections that are kept, each answer with one end.

An answer ends at one moment whatever the server does until then: the timeout of a
socket would hold for each read, and a server that sends a byte at a time would never
meet it. What an answer's head says of the body's end is not guessed, as it decides
where the next answer begins.
"""

import contextlib
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import (
    BadStatusLine,
    HTTPException,
    IncompleteRead,
    RemoteDisconnected,
    UnknownTransferEncoding,
)

from bridge.system.host_addresses import HostAddresses, left

_LARGEST = 1 << 20
_IDLE_SECONDS = 20.0
"""A connection that is idle for longer is not used again: the server, or what stands
between, may be closing it, and a POST on a closed one leaves open whether it was
served."""
_MOST_IDLE = 64
_PIECE = 1 << 14
_MOST_PIECES = 4096
"""Of an answer: in pieces of two bytes, 1 MiB takes a second of CPU."""
_LARGEST_HEAD = 1 << 16
"""Of all lines of an answer's heads and trailers together."""
_MOST_HEADERS = 100
_LONGEST_SIZE = 256
"""The line before a chunk: its size, and extensions, which no server has."""
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_EMPTY = (b"\r\n", b"\n")
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_BESIDES = (
    rb"(?:(?!content-length:|transfer-encoding:|connection:)"
    rb"[a-z0-9-]+: [^\r\n]*\r\n){0,49}"
)
_USUAL = re.compile(
    rb"HTTP/1\.1 (20[01]) [^\r\n]*\r\n%bcontent-length: ([0-9]{1,6})\r\n%b\r\n"
    % (_BESIDES, _BESIDES),
    re.IGNORECASE,
)
"""A head in which one header says where the answer ends, and none ends the connection.
Of more headers than this takes, there may be too many.
"""


@dataclass(frozen=True, slots=True)
class HTTPPeer:
    """A server: where it is, and how it is verified."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    """None for plain HTTP."""
    name: str
    """What its certificate has to be for."""


@dataclass(frozen=True, slots=True)
class HTTPAnswer:
    """A whole answer."""

    status: int
    """200 or more."""
    head: bytes
    """Its headers, as they came."""
    body: bytes
    keeps: bool
    """Whether another call may be made on the connection."""

    def header(self, name: str) -> str:
        """Return a header as it came; empty if there is none."""
        return _header(self.head, name.encode()) or ""


class HTTPClient:
    """Connections that are kept for further calls. Safe between threads.

    A call is `sent` and then `answer`: an error of the first says that the server does
    not have the request whole, one of the second that it may have it.
    """

    def __init__(self) -> None:
        self._hosts: tuple[str, int, HostAddresses] | None = None
        self._idle: deque[HTTPConnection] = deque()
        self.is_closed = False

    def sent(
        self, request: bytes, peer: HTTPPeer, until: float, connected_by: float
    ) -> "HTTPConnection":
        """Send a whole request, and return the connection that has it.

        Args:
            request: Head and body. In two pieces they cost a packet more.
            peer: To whom.
            until: Of `time.monotonic`.
            connected_by: The same, for a new connection.

        Raises:
            TimeoutError: It is not out by then.
            OSError: There is no connection, or it is lost.
            ValueError: The host's name is none.
        """
        if (connection := self._idle_one(peer)) is not None:
            try:
                connection.send(request, until)
            except OSError:
                pass  # the server had closed it, and the request did not go out
            else:
                return connection
        connection = self.opened(peer, connected_by)
        connection.send(request, until)
        return connection

    def answer(self, connection: "HTTPConnection", until: float) -> HTTPAnswer:
        """Receive the answer to what was sent, and keep the connection if it may be.

        Raises:
            Exception: See `HTTPConnection.receive`.
        """
        answer = connection.receive(until)
        if answer.keeps and len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        if self.is_closed:
            self.close()
        elif (oldest := self._oldest()) is not None and oldest.is_old:
            # Nobody may ask for so many at once again.
            self._drop(oldest)
        return answer

    def opened(self, peer: HTTPPeer, until: float) -> "HTTPConnection":
        """Return a new connection. Raises as `sent` does."""
        known = self._hosts
        if known is None or known[:2] != (peer.host, peer.port):
            known = peer.host, peer.port, HostAddresses(peer.host, peer.port)
            self._hosts = known
        hosts, tls = known[2], peer.tls

        def secured(plain: socket.socket, ends: float) -> socket.socket:
            if tls is None:
                return plain
            # The timeout is one for the whole handshake.
            plain.settimeout(left(ends))
            return tls.wrap_socket(plain, server_hostname=peer.name)

        found = hosts.resolved(until)
        try:
            return HTTPConnection(hosts.opened(found, until, secured), tls)
        except TimeoutError as error:
            raise TimeoutError("no connection in time") from error

    def close(self) -> None:
        """Close the idle connections; those in use close when their call ends."""
        self.is_closed = True
        while (oldest := self._oldest()) is not None:
            self._drop(oldest)

    def _oldest(self) -> "HTTPConnection | None":
        try:
            return self._idle[0]
        except IndexError:
            return None

    def _drop(self, connection: "HTTPConnection") -> None:
        # Another thread may have taken it meanwhile.
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
            connection.close()

    def _idle_one(self, peer: HTTPPeer) -> "HTTPConnection | None":
        # The last one in first: those that a quiet time leaves over grow old.
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_usable(peer.tls):
                return connection
            connection.close()


class HTTPConnection:
    """One connection, for one call at a time. It is closed where one of them fails.

    Args:
        sock: Is connected.
        tls: Its TLS context; None for plain HTTP.
    """

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._sock = sock
        self._tls = tls
        # What TLS has read and deciphered. A plain socket has nothing.
        self._pending: Callable[[], int] = getattr(sock, "pending", int)
        self._used_at = time.monotonic()

    @property
    def is_old(self) -> bool:
        """Whether it was idle for so long that it is not used again."""
        return time.monotonic() - self._used_at >= _IDLE_SECONDS

    def is_usable(self, tls: ssl.SSLContext | None) -> bool:
        """Return whether another call may be made on it, with this TLS context."""
        # Whatever there is to read is no answer of ours: the server is closing.
        if tls is not self._tls or self.is_old:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def send(self, request: bytes, until: float) -> None:
        """Send a whole request.

        Raises:
            TimeoutError: It is not out by then.
            OSError: The connection is lost.
        """
        try:
            self._sock.settimeout(left(until))
            self._sock.sendall(request)
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise TimeoutError("it could not be sent in time") from error
            if isinstance(error, OSError):
                text = f"the connection was cut: {error.strerror or error}"
                raise ConnectionError(text) from error
            raise

    def begin(self, until: float) -> "IncomingAnswer":
        """Read the head of an answer, until a moment. Raises as `receive` does."""
        try:
            return IncomingAnswer(self._sock, until)
        except BaseException:
            self.close()
            raise

    def receive(self, until: float) -> HTTPAnswer:
        """Read a whole answer of at most 1 MiB.

        Raises:
            TimeoutError: It is not there by then.
            OSError: The connection is lost.
            HTTPException: It is no HTTP, or ends early. Its text has what came.
            ValueError: It is longer.
        """
        try:
            incoming = IncomingAnswer(self._sock, until)
            body = incoming.whole()
        except BaseException:
            self.close()
            raise
        self._used_at = time.monotonic()
        # What came besides would be taken for the answer of the next call.
        keeps = incoming.keeps and not self._pending()
        return HTTPAnswer(incoming.status, incoming.head, body, keeps)

    def keep_alive(self) -> None:
        """Let the system notice a peer that is gone without a word."""
        for option, value in (
            (socket.TCP_KEEPIDLE, 15),
            (socket.TCP_KEEPINTVL, 15),
            (socket.TCP_KEEPCNT, 3),
        ):
            self._sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def close(self) -> None:
        """Close it; may be called by another thread."""
        self._sock.close()


class IncomingAnswer:
    """An answer whose head is there, and whose body comes. For one thread.

    Args:
        sock: Of the connection.
        until: When the head has to be there.

    Raises:
        Exception: See `HTTPConnection.receive`.
    """

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self.until = until
        """When the next read ends."""
        self._came, self._at = b"", 0
        self._room = _LARGEST_HEAD
        self._is_chunked = False
        self._length: int | None
        self._more()
        # The head of almost every answer. Line by line it takes three times as long.
        if usual := _USUAL.match(self._came):
            self.status, self.head, self._at = int(usual[1]), usual[0], usual.end()
            self._length, self._stays = int(usual[2]), True
        else:
            self._read_head()

    def _read_head(self) -> None:
        while True:
            version, self.status = self._status()
            self.head = self._headers()
            if self.status >= HTTPStatus.OK:
                break  # else the answer itself is still to come
        coding = _header(self.head, b"transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise UnknownTransferEncoding(coding)
        length = _length(_header(self.head, b"content-length"))
        # RFC 9112, 6.3: chunks go before a length. With both, or with either where
        # there is no body, what stands between may see another end than we do.
        has_end = (coding is None) != (length is None)
        if self.status in _BODILESS:
            has_end, coding, length = coding is None and not length, None, 0
        self._is_chunked = coding is not None
        self._length = None if self._is_chunked else length
        connection = _header(self.head, b"connection") or ""
        self._stays = has_end and version == b"1" and "close" not in connection.lower()

    @property
    def keeps(self) -> bool:
        """Whether the connection may be used again, once the whole answer was read."""
        return self._stays and self._at == len(self._came)

    def pieces(self) -> Iterator[bytes]:
        """Yield what comes of the body; end where the answer ends in order.

        Raises:
            Exception: See `HTTPConnection.receive`.
        """
        if self._is_chunked:
            while size := self._chunk_size():
                yield from self._counted(size)
                if self._line(2) not in _EMPTY:
                    raise HTTPException("a chunk does not end where its size says")
            self._headers()  # trailers
        elif self._length is not None:
            yield from self._counted(self._length)
        else:
            while piece := self._some(_PIECE):
                yield piece

    def whole(self) -> bytes:
        """Return the whole body, of at most 1 MiB. Raises as `pieces` does."""
        if self._length is not None and self._length == len(self._came) - self._at:
            return self._taken(len(self._came))
        pieces: list[bytes] = []
        size = 0
        for piece in self.pieces():
            pieces.append(piece)
            size += len(piece)
            if size > _LARGEST:
                raise ValueError(f"the answer has more than {_LARGEST} bytes")
            if len(pieces) > _MOST_PIECES:
                raise _too_many_pieces()
        return b"".join(pieces)

    def _status(self) -> tuple[bytes, int]:
        line = self._head_line()
        if not line:
            raise RemoteDisconnected("the connection was closed")
        found = _STATUS.fullmatch(line)
        if found is None:
            raise BadStatusLine(line[:80].decode("latin-1"))
        return found[1], int(found[2])

    def _headers(self) -> bytes:
        lines: list[bytes] = []
        while (line := self._head_line()) not in _EMPTY:
            if not _HEADER.fullmatch(line):
                raise HTTPException("a line of the head is no header")
            lines.append(line)
            if len(lines) > _MOST_HEADERS:
                raise HTTPException(f"more than {_MOST_HEADERS} headers")
        return b"".join(lines)

    def _chunk_size(self) -> int:
        if not (line := self._line(_LONGEST_SIZE)):
            raise IncompleteRead(b"")
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise HTTPException("the size of a chunk is no number")
        return int(found[1], 16)

    def _counted(self, size: int) -> Iterator[bytes]:
        while size:
            if not (piece := self._some(size)):
                raise IncompleteRead(b"", size)
            size -= len(piece)
            yield piece

    def _head_line(self) -> bytes:
        line = self._line(self._room)
        self._room -= len(line)
        if not self._room:
            raise HTTPException(f"the head has more than {_LARGEST_HEAD} bytes")
        return line

    def _line(self, most: int) -> bytes:
        # With its end, which is not there if the line is longer, or is cut.
        while not (end := self._came.find(b"\n", self._at, self._at + most) + 1):
            if len(self._came) - self._at >= most or not self._more():
                end = self._at + most
                break
        return self._taken(end)

    def _some(self, most: int) -> bytes:
        if self._at == len(self._came):
            self._more()
        return self._taken(self._at + most)

    def _taken(self, end: int) -> bytes:
        taken = self._came[self._at : end]
        self._at += len(taken)
        return taken

    def _more(self) -> bool:
        self._sock.settimeout(left(self.until))
        piece = self._sock.recv(_PIECE)
        self._came, self._at = self._came[self._at :] + piece, 0
        return bool(piece)


def _header(head: bytes, name: bytes) -> str | None:
    # Of several, all.
    found = re.findall(rb"(?im)^%b:(.*)" % name, head)
    # Of the blanks, what HTTP has, and the end of the line.
    values = [one.strip(b" \t\r") for one in found]
    return b", ".join(values).decode("latin-1") if found else None


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise HTTPException("the length of the answer is no number")
    return int(text)


def _too_many_pieces() -> ValueError:
    return ValueError(f"the answer comes in more than {_MOST_PIECES} pieces")
