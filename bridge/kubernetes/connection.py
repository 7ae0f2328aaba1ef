"""One connection to an API server, and the answers that come on it.

An answer ends at one moment whatever the server does until then: the timeout of a
socket would hold for each read, and a server that sends a byte at a time would never
meet it.
"""

import http.client
import io
import re
import select
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

_LARGEST = 1 << 20
_IDLE_SECONDS = 30.0
"""A connection that is idle for longer is not used again: the server, or what stands
between, may be closing it."""
_LONGEST_LINE = 4 << 20
"""One object, of which etcd takes 1.5 MiB. Read as JSON, it may take 30 times as much
memory."""
_PIECE = 1 << 16
_MOST_PIECES = 4096
"""Of an answer: in pieces of two bytes, 1 MiB takes a second of CPU."""
_LONGEST_HEADER = 1 << 16
"""Of all headers together, too."""
_MOST_HEADERS = 100
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_NO_HEADERS = http.client.HTTPMessage()
_BODILESS = (http.client.NO_CONTENT, http.client.NOT_MODIFIED)
_FIRST = 1 << 14
_BESIDES = (
    rb"(?:(?!content-length:|transfer-encoding:|connection:)"
    rb"[a-z0-9-]+: [^\r\n]*\r\n)*"
)
_USUAL = re.compile(
    rb"HTTP/1\.1 (20[01]) [^\r\n]*\r\n%bcontent-length: ([0-9]{1,6})\r\n%b\r\n"
    % (_BESIDES, _BESIDES),
    re.IGNORECASE,
)
"""A head in which one header says where the answer ends, and none ends the connection.
"""


@dataclass(frozen=True, slots=True)
class APIAnswer:
    """A whole answer."""

    status: int
    """The HTTP status."""
    retry_after: str
    """The header, as it came; empty if there is none."""
    body: bytes
    keeps: bool
    """Whether another call may be made on the connection."""


class APIConnection:
    """One connection, for one call at a time.

    Args:
        sock: Is connected.
        context: Its TLS context.
    """

    def __init__(self, sock: ssl.SSLSocket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._context = context
        self._used_at = time.monotonic()

    def is_usable(self, context: ssl.SSLContext) -> bool:
        """Return whether another call may be made on it, with this TLS context."""
        # Whatever there is to read is no answer of ours: the server is closing.
        if context is not self._context:
            return False
        if time.monotonic() - self._used_at > _IDLE_SECONDS:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not self._sock.pending() and not poll.poll(0)

    def send(self, request: bytes, until: float) -> None:
        """Send a whole request.

        Raises:
            TimeoutError: It is not out by then.
            OSError: The connection is lost.
        """
        self._sock.settimeout(left(until))
        self._sock.sendall(request)

    def begin(self, until: float, first: bytes = b"") -> tuple["_Response", "_Timed"]:
        """Read the head of an answer. Raises as `receive` does.

        Args:
            until: When it has to be there.
            first: What was read of the answer before.
        """
        # Its constructor needs `makefile` and nothing else of a socket.
        timed: Any = _Timed(self._sock, until, first)
        # Whether it answers a HEAD is all that the method tells it.
        answer = _Response(timed, method="GET")
        answer.begin()
        return answer, timed

    def receive(self, until: float) -> APIAnswer:
        """Read a whole answer of at most 1 MiB.

        Raises:
            TimeoutError: It is not there by then.
            OSError: The connection is lost.
            HTTPException: It is no HTTP, or ends early.
            ValueError: It is longer.
        """
        first = self._piece(until)
        answer = self._usual(first, until) or self._any(first, until)
        self._used_at = time.monotonic()
        return answer

    def _usual(self, first: bytes, until: float) -> APIAnswer | None:
        # The answer to almost every call; None if it is another, which takes a fourth
        # of a call's CPU time more to read.
        head = _USUAL.match(first)
        if head is None:
            return None
        length, body = int(head[2]), bytearray(first[head.end() :])
        count = 0
        while len(body) < length:
            piece = self._piece(until)
            if not piece:
                raise http.client.IncompleteRead(bytes(body), length - len(body))
            body += piece
            if (count := count + 1) > _MOST_PIECES:
                raise _too_many_pieces()
        # What came besides would be taken for the answer of the next call.
        keeps = len(body) == length and not self._sock.pending()
        return APIAnswer(int(head[1]), "", bytes(body[:length]), keeps)

    def _any(self, first: bytes, until: float) -> APIAnswer:
        answer, timed = self.begin(until, first)
        with answer:
            read = _whole(answer)
        return replace(read, keeps=False) if timed.has_more() else read

    def _piece(self, until: float) -> bytes:
        self._sock.settimeout(left(until))
        return self._sock.recv(_FIRST)

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
        """Close it."""
        self._sock.close()


class _Response(http.client.HTTPResponse):
    # `http.client` has the parser of e-mails read the headers, which takes a fifth of
    # a call's CPU time. Here they are read line by line. What they say of the body's
    # end is not guessed, as it decides where the next answer begins.
    retry_after = ""

    def begin(self) -> None:
        line = self.fp.readline(_LONGEST_HEADER)
        if not line:
            raise http.client.RemoteDisconnected("the connection was closed")
        found = _STATUS.fullmatch(line)
        if found is None:
            raise http.client.BadStatusLine(line[:80].decode("latin-1"))
        self.version, self.status = 10 + int(found[1]), int(found[2])
        self.headers = self.msg = _NO_HEADERS
        headers = self._read_headers()
        self.retry_after = headers.get("retry-after", "")
        self.chunked, self.chunk_left = "transfer-encoding" in headers, None
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise http.client.UnknownTransferEncoding(headers["transfer-encoding"])
        self.length = None if self.chunked else _length(headers.get("content-length"))
        if self.status in _BODILESS or self.status < http.client.OK:
            self.length, self.chunked = 0, False
        self.will_close = (
            self.version == 10  # noqa: PLR2004 - as `http.client` has HTTP/1.0
            or "close" in headers.get("connection", "").lower()
            or (self.length is None and not self.chunked)
        )

    def _read_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        left = _LONGEST_HEADER
        for _ in range(_MOST_HEADERS + 1):
            line = self.fp.readline(left)
            left -= len(line)
            if line in {b"\r\n", b"\n"}:
                return headers
            found = _HEADER.fullmatch(line)
            if found is None:
                raise http.client.HTTPException("a line of the head is no header")
            name, value = found[1].decode().lower(), found[2].decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        raise http.client.HTTPException(f"more than {_MOST_HEADERS} headers")

    def _read_next_chunk_size(self) -> int:
        # `http.client` takes whatever `int` takes. Of a size below zero, it would read
        # and keep all that comes.
        if not (line := self.fp.readline(_LONGEST_HEADER)):
            raise http.client.IncompleteRead(b"")
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise http.client.HTTPException("the size of a chunk is no number")
        return int(found[1], 16)

    def _read_and_discard_trailer(self) -> None:
        self._read_headers()


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise http.client.HTTPException("the length of the answer is no number")
    return int(text)


def _too_many_pieces() -> ValueError:
    return ValueError(f"the answer comes in more than {_MOST_PIECES} pieces")


def _whole(answer: _Response) -> APIAnswer:
    pieces: list[bytes] = []
    size = 0
    while piece := answer.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST:
            raise ValueError(f"the answer has more than {_LARGEST} bytes")
        if len(pieces) > _MOST_PIECES:
            raise _too_many_pieces()
    body = b"".join(pieces)
    if answer.length:
        raise http.client.IncompleteRead(body)
    return APIAnswer(
        answer.status,
        answer.retry_after[:40],
        body,
        # After an informational status, the answer itself is still to come.
        not answer.will_close and answer.status >= http.client.OK,
    )


class Stream:
    """An answer that is read while the server writes it. For one thread."""

    def __init__(self, connection: APIConnection, until: float, silence: float) -> None:
        self._connection = connection
        self._silence = silence
        connection.keep_alive()
        self._answer, self._timed = connection.begin(until)
        self.status = self._answer.status
        """The HTTP status."""

    def lines(self) -> Iterator[bytes]:
        """Yield each line as it comes; end where the server ends the answer in order.

        Raises:
            TimeoutError: No line comes for too long.
            OSError: The connection is lost.
            HTTPException: It ends amid the answer.
            ValueError: A line is too long.
        """
        # Joined as it comes: a list of pieces of two bytes takes 30 times the memory.
        pending = bytearray()
        until = time.monotonic() + self._silence
        while piece := self._piece(until):
            *lines, rest = piece.split(b"\n")
            for line in lines:
                yield bytes(pending + line)
                pending.clear()
            if lines:
                until = time.monotonic() + self._silence
            pending += rest
            if len(pending) > _LONGEST_LINE:
                raise ValueError(f"a line has more than {_LONGEST_LINE} bytes")
        if pending or self._answer.length:
            raise http.client.IncompleteRead(bytes(pending))

    def body(self, most: int) -> bytes:
        """Return the whole answer, of at most `most` bytes. Raises as `lines` does."""
        read = bytearray()
        until = time.monotonic() + self._silence
        while piece := self._piece(until):
            read += piece
            if len(read) > most:
                raise ValueError(f"the answer has more than {most} bytes")
        if self._answer.length:
            raise http.client.IncompleteRead(b"")
        return bytes(read)

    def refusal(self, until: float) -> APIAnswer:
        """Return the whole answer, which is an error and short."""
        self._timed.until = until
        return _whole(self._answer)

    def close(self) -> None:
        """Close the connection; may be called by another thread."""
        self._answer.close()
        self._connection.close()

    def _piece(self, until: float) -> bytes:
        self._timed.until = until
        return self._answer.read1(_PIECE)


class _Timed(io.RawIOBase):
    # A socket to read from, up to one moment: a timeout of its own would hold for each
    # read, and a server that sends a byte at a time would never meet it.
    # What was read of the answer before comes first.
    def __init__(self, sock: ssl.SSLSocket, until: float, first: bytes) -> None:
        self._sock = sock
        self._first = first
        self.until = until
        self.is_over = False

    def makefile(self, _mode: str) -> io.BufferedReader:
        self._reader = _Reader(self)
        return self._reader

    def has_more(self) -> bool:
        # Whether more came than the answer, once that is closed.
        return bool(self._reader.rest or self._first or self._sock.pending())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.is_over:
            return 0
        if self._first:
            size = min(len(self._first), len(buffer))
            buffer[:size], self._first = self._first[:size], self._first[size:]
            return size
        self._sock.settimeout(left(self.until))
        return self._sock.recv_into(buffer)


class _Reader(io.BufferedReader):
    # Keeps what is left in it when `http.client` closes it, at the end of an answer.
    def __init__(self, timed: _Timed) -> None:
        super().__init__(timed)
        self._timed = timed
        self.rest = b""

    def close(self) -> None:
        if not self.closed:
            self._timed.is_over = True
            self.rest = self.peek(1)
        super().close()


def left(until: float) -> float:
    """Return the seconds until a moment of `time.monotonic`.

    Raises:
        TimeoutError: It is over.
    """
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the time is up")
    return seconds
