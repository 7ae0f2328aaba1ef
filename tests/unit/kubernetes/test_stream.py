"""An answer that is read while it comes: its memory, and a peer that is gone."""

import socket
import time
import tracemalloc
from collections.abc import Callable
from http.client import HTTPException
from typing import cast

import pytest

from bridge.kubernetes.stream import Stream
from bridge.system.http_client import HTTPConnection

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Sock:
    """A connection on which these bytes come."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._taken = 0
        self.options: list[tuple[int, ...]] = []
        self.is_closed = False

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv(self, size: int) -> bytes:
        piece = self._data[self._taken : self._taken + size]
        self._taken += size
        return piece

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)

    def close(self) -> None:
        self.is_closed = True


def stream(sock: Sock) -> Stream:
    connection = HTTPConnection(cast("socket.socket", sock), None)
    return Stream(connection, time.monotonic() + 60, 60)


def of_page(found: Stream) -> bytes:
    return found.body(1 << 20)


def of_watch(found: Stream) -> bytes:
    (line,) = found.lines()
    return line


def test_the_system_notices_the_peer_of_a_stream_that_is_gone_without_a_word() -> None:
    sock = Sock(CHUNKED + b"1\r\n\n\r\n0\r\n\r\n")
    stream(sock)
    assert set(sock.options) == {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    }


def test_the_connection_of_a_stream_without_a_head_is_closed() -> None:
    sock = Sock(b"SSH-2.0-x\r\n")
    with pytest.raises(HTTPException, match="SSH"):
        stream(sock)
    assert sock.is_closed


@pytest.mark.parametrize("read", [of_page, of_watch])
def test_an_answer_in_small_pieces_takes_no_more_memory_than_a_whole_one(
    read: Callable[[Stream], bytes],
) -> None:
    pieces = 30_000
    sock = Sock(CHUNKED + b"2\r\n{}\r\n" * pieces + b"1\r\n\n\r\n0\r\n\r\n")
    tracemalloc.start()
    try:
        found = read(stream(sock))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.strip() == b"{}" * pieces
    assert peak < 6 * len(found)
