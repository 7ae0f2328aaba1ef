"""How the head of an answer is read, and where its body ends."""

import http.client
import io
import ssl
import time
from typing import Any, cast

import pytest

from bridge.kubernetes.connection import APIAnswer, APIConnection

OK = b"HTTP/1.1 200 OK\r\n"


class Sock:
    """A connection on which these bytes come, and then its end."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv_into(self, buffer: Any) -> int:
        return self._data.readinto(buffer)

    def pending(self) -> int:
        return 0


def received(data: bytes) -> APIAnswer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    connection = APIConnection(cast("ssl.SSLSocket", Sock(data)), context)
    return connection.receive(time.monotonic() + 10)


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
        pytest.param(OK + b"\r\n{}", b"{}", False, id="to the end"),
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
    data: bytes, body: bytes, *, keeps: bool
) -> None:
    answer = received(data)
    assert (answer.body, answer.keeps) == (body, keeps)


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
    ],
)
def test_a_head_that_is_not_understood_is_an_error(
    data: bytes, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        received(data)
