"""How the head of an answer is read, and where its body ends."""

import http.client
import io
import socket
import ssl
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, cast

import pytest

from bridge.kubernetes.connection import (
    _FIRST,
    APIAnswer,
    APIConnection,
    Stream,
)

OK = b"HTTP/1.1 200 OK\r\n"


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Sock:
    """A connection on which these bytes come, some at a time, and then its end."""

    def __init__(self, data: bytes, piece: int = 1 << 20) -> None:
        self._data = io.BytesIO(data)
        self._piece = piece
        self.options: list[tuple[int, ...]] = []

    @property
    def taken(self) -> int:
        """How many bytes were read."""
        return self._data.tell()

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv(self, size: int) -> bytes:
        return self._data.read(min(size, self._piece))

    def recv_into(self, buffer: Any) -> int:
        return self._data.readinto(buffer[: self._piece])

    def pending(self) -> int:
        return len(self._data.getbuffer()) - self.taken

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)


def connection(sock: Sock) -> APIConnection:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return APIConnection(cast("ssl.SSLSocket", sock), context)


def received(data: bytes, piece: int = 1 << 20) -> APIAnswer:
    return connection(Sock(data, piece)).receive(time.monotonic() + 10)


@pytest.mark.parametrize("piece", [1, 40, 1 << 20])
@pytest.mark.parametrize(
    ("data", "body", "keeps"),
    [
        pytest.param(OK + b"Content-Length: 2\r\n\r\n{}", b"{}", True, id="length"),
        pytest.param(OK + b"content-length:2\n\n{}", b"{}", True, id="bare"),
        pytest.param(
            OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
            b"{}",
            True,
            id="chunks",
        ),
        pytest.param(
            CHUNKED + b"01 ;a=b\r\n{\r\n001\r\n}\r\n0;\r\nX: 1\r\n\r\n",
            b"{}",
            True,
            id="chunks with extensions and a trailer",
        ),
        pytest.param(
            OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"",
            True,
            id="chunks and a length",
        ),
        pytest.param(
            CHUNKED + b"1\r\n \r\n" * 4096 + b"0\r\n\r\n",
            b" " * 4096,
            True,
            id="many chunks",
        ),
        pytest.param(OK + b"\r\n{}", b"{}", False, id="to the end"),
        pytest.param(
            OK + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}",
            b"{}",
            False,
            id="closes, said last",
        ),
        pytest.param(
            OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
            b"{}",
            False,
            id="closes",
        ),
        pytest.param(
            OK + b"Connection: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            b"",
            False,
            id="closes, said second",
        ),
        pytest.param(
            b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}", False, id="1.0"
        ),
        pytest.param(
            b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, id="no body by its status"
        ),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\n", b"", False, id="before the answer"
        ),
        pytest.param(
            OK + b"Content-Length: 2\r\n\r\n{}x", b"{}", False, id="more than it says"
        ),
        pytest.param(OK + b"X:\r\nContent-Length: 0\r\n\r\n", b"", True, id="empty"),
    ],
)
def test_a_head_says_where_its_answer_ends(
    data: bytes, body: bytes, piece: int, *, keeps: bool
) -> None:
    answer = received(data, piece)
    assert (answer.body, answer.keeps) == (body, keeps)


def test_what_comes_after_a_full_buffer_is_noticed() -> None:
    head = OK + b"Content-Length:%d\n\n" % (io.DEFAULT_BUFFER_SIZE - 38)
    whole = head.ljust(io.DEFAULT_BUFFER_SIZE)
    assert len(head) == 38
    assert received(whole).keeps
    assert not received(whole + b"x").keeps


def test_what_a_head_says_besides() -> None:
    answer = received(
        b"HTTP/1.1 429 \r\nRETRY-AFTER: \t 7 \r\nContent-Length: 0\r\n\r\n"
    )
    assert (answer.status, answer.retry_after) == (429, "7")


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        pytest.param(b"", http.client.RemoteDisconnected, "closed", id="nothing"),
        pytest.param(b"HTTP/1.1 2", http.client.BadStatusLine, "2", id="cut"),
        pytest.param(
            b"HTTP/2.0 200 OK\r\n\r\n", http.client.BadStatusLine, "2.0", id="version"
        ),
        pytest.param(
            b"HTTP/1.1 99 X\r\n\r\n", http.client.BadStatusLine, "99", id="status"
        ),
        pytest.param(
            OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
            http.client.HTTPException,
            "no number",
            id="two lengths",
        ),
        pytest.param(
            OK + b"Content-Length: -2\r\n\r\n{}",
            http.client.HTTPException,
            "no number",
            id="negative",
        ),
        pytest.param(
            OK + b"Content-Length: 2\r\n folded\r\n\r\n{}",
            http.client.HTTPException,
            "no header",
            id="folded",
        ),
        pytest.param(
            OK + b"Content-Length : 2\r\n\r\n{}",
            http.client.HTTPException,
            "no header",
            id="a blank in a name",
        ),
        pytest.param(
            OK + b"X: a\rContent-Length: 2\r\n\r\n{}",
            http.client.HTTPException,
            "no header",
            id="a bare return",
        ),
        pytest.param(
            OK + b"Content-Length: 2\r\n",
            http.client.HTTPException,
            "no header",
            id="no end",
        ),
        pytest.param(
            OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
            http.client.UnknownTransferEncoding,
            "gzip",
            id="a coding",
        ),
        pytest.param(
            OK + b"X: a\r\n" * 101 + b"\r\n",
            http.client.HTTPException,
            "more than 100 headers",
            id="many",
        ),
        pytest.param(
            OK + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
            http.client.HTTPException,
            "no header",
            id="long",
        ),
        pytest.param(
            OK + b"Content-Length: 3\r\n\r\n{}",
            http.client.IncompleteRead,
            "2 bytes read",
            id="a short body",
        ),
        *(
            pytest.param(
                CHUNKED + size + b"\r\n{}\r\n0\r\n\r\n",
                http.client.HTTPException,
                "size of a chunk",
                id=f"the size {size.decode()!r}",
            )
            for size in (b"-1", b"+2", b" 2", b"0x2", b"0_2", b"", b"2 2", b"0" * 16)
        ),
        pytest.param(
            CHUNKED + b"2\r\n{}\r\n",
            http.client.IncompleteRead,
            "0 bytes read",
            id="no last chunk",
        ),
        pytest.param(
            OK + b"X: " + b"a" * 40_000 + b"\r\nY: " + b"a" * 40_000 + b"\r\n\r\n",
            http.client.HTTPException,
            "no header",
            id="long together",
        ),
        pytest.param(
            CHUNKED + b"1\r\n \r\n" * 4097 + b"0\r\n\r\n",
            ValueError,
            "in more than 4096 pieces",
            id="pieces",
        ),
        pytest.param(
            CHUNKED + b"0\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
            http.client.HTTPException,
            "more than 100 headers",
            id="many trailers",
        ),
    ],
)
def test_a_head_that_is_not_understood_is_an_error(
    data: bytes, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        received(data)


class Dripping(Sock):
    """Its bytes come one by one, after the head."""

    def recv(self, size: int) -> bytes:
        return super().recv(1 if self.taken else size)


def test_a_usual_answer_comes_in_few_pieces() -> None:
    head = OK + b"Content-Type: a\r\nContent-Length: 900000\r\n\r\n"
    sock = Dripping(head.ljust(_FIRST) + b" " * 900_000)
    with pytest.raises(ValueError, match="in more than 4096 pieces"):
        connection(sock).receive(time.monotonic() + 10)
    assert sock.taken < _FIRST + 5000


@pytest.mark.parametrize("size", [b"-1", b"%x" % (1 << 30)])
def test_no_more_is_read_than_an_answer_may_have(size: bytes) -> None:
    sock = Sock(CHUNKED + size + b"\r\n" + bytes(8 << 20))
    with pytest.raises((ValueError, http.client.HTTPException), match=r"than|size"):
        connection(sock).receive(time.monotonic() + 10)
    assert sock.taken < 2 << 20


def of_page(made: APIConnection) -> bytes:
    return Stream(made, time.monotonic() + 60, 60).body(1 << 20)


def of_watch(made: APIConnection) -> bytes:
    (line,) = Stream(made, time.monotonic() + 60, 60).lines()
    return line


def test_the_system_notices_the_peer_of_a_stream_that_is_gone_without_a_word() -> None:
    sock = Sock(CHUNKED + b"1\r\n\n\r\n0\r\n\r\n")
    Stream(connection(sock), time.monotonic() + 10, 60)
    assert set(sock.options) == {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    }


@pytest.mark.parametrize("read", [of_page, of_watch])
def test_an_answer_in_small_pieces_takes_no_more_memory_than_a_whole_one(
    read: Callable[[APIConnection], bytes],
) -> None:
    pieces = 100_000
    sock = Sock(CHUNKED + b"2\r\n{}\r\n" * pieces + b"1\r\n\n\r\n0\r\n\r\n")
    tracemalloc.start()
    try:
        found = read(connection(sock))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.strip() == b"{}" * pieces
    assert peak < 6 * len(found)
