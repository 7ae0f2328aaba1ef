"""Answers and where they end, deadlines, and which connections are used again."""

import contextlib
import gc
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from bridge.system import host_addresses, http_client
from bridge.system.http_client import (
    HTTPAnswer,
    HTTPClient,
    HTTPConnection,
    HTTPPeer,
)
from tests.support.parts.scripted_http import (
    Script,
    ScriptedServer,
    answering,
    json_answer,
    saying,
    server_tls,
    silent,
    trickling,
)

AT_ONCE = 5.0
"""What must happen long before a deadline; the machine may be busy."""
DESCRIPTORS = Path("/proc/self/fd")
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LONG = OK + b"Content-Length: 4000000\r\n\r\n"
WHOLE = json_answer(b"{}")
BIG = bytes(2_000_000)
BLANKS = b"a" + b" " * 60_000 + b"b"


class Sock:
    """A connection on which these bytes come, some at a time, and then its end."""

    def __init__(self, data: bytes, piece: int = 1 << 20) -> None:
        self._data = io.BytesIO(data)
        self._piece = piece

    @property
    def taken(self) -> int:
        """How many bytes were read."""
        return self._data.tell()

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv(self, size: int) -> bytes:
        return self._data.read(min(size, self._piece))

    def pending(self) -> int:
        return len(self._data.getbuffer()) - self.taken

    def close(self) -> None:
        pass


def connection(sock: Sock) -> HTTPConnection:
    return HTTPConnection(cast("socket.socket", sock), None)


def received(data: bytes, piece: int = 1 << 20) -> HTTPAnswer:
    return connection(Sock(data, piece)).receive(time.monotonic() + 10)


TWO = b"Content-Length: 2\r\n"
KEPT = {
    "length": OK + TWO + b"\r\n{}",
    "bare": OK + b"content-length:2\n\n{}",
    "chunks": CHUNKED.replace(b"c", b"C") + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "extensions and a trailer": CHUNKED
    + b"01 ;a=b\r\n{\r\n1\r\n}\r\n0;\r\nX: 1\r\n\r\n",
    "after informational answers": (
        b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 103 \r\nA: b\r\n\r\n" + WHOLE
    ),
    "empty": OK + b"X:\r\n" + TWO + b"\r\n{}",
    "100 headers": OK + b"X: a\r\n" * 99 + TWO + b"\r\n{}",
}
NOT_KEPT = {
    "to the end": OK + b"\r\n{}",
    "closes, said last": OK + TWO + b"Connection: close\r\n\r\n{}",
    "closes": OK + b"Connection: close\r\n" + TWO + b"\r\n{}",
    "said second": OK + b"Connection: a\r\nConnection: close\r\n" + TWO + b"\r\n{}",
    "1.0": b"HTTP/1.0 200 OK\r\n" + TWO + b"\r\n{}",
    "more than it says": OK + TWO + b"\r\n{}x",
    "a second answer": WHOLE + WHOLE,
    "more than chunks": CHUNKED + b"2\r\n{}\r\n0\r\n\r\n\n",
    **{
        f"chunks and a length of {length}": CHUNKED[:-2]
        + b"Content-Length: %d\r\n\r\n2\r\n{}\r\n0\r\n\r\n" % length
        # The second one is that of all chunks.
        for length in (9, 12)
    },
}


@pytest.mark.parametrize("piece", [1, 40, 1 << 20])
@pytest.mark.parametrize("name", [*KEPT, *NOT_KEPT])
def test_a_head_says_where_its_answer_ends(name: str, piece: int) -> None:
    answer = received((KEPT | NOT_KEPT)[name], piece)
    assert (answer.body, answer.keeps) == (b"{}", name in KEPT)


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (CHUNKED + b"1\r\n \r\n" * 4096 + b"0\r\n\r\n", b" " * 4096),
    ],
    ids=["no body by its status", "many chunks"],
)
def test_an_answer_may_have_nothing_or_many_chunks(data: bytes, body: bytes) -> None:
    answer = received(data)
    assert (answer.body, answer.keeps) == (body, True)


@pytest.mark.parametrize(
    ("header", "keeps"),
    [
        (b"", True),
        (b"Content-Length: 0\r\n", True),
        (TWO, False),
        (b"Transfer-Encoding: chunked\r\n", False),
    ],
)
@pytest.mark.parametrize("status", [b"204", b"304"])
def test_a_body_that_may_not_be_is_not_the_next_answer(
    status: bytes, header: bytes, *, keeps: bool
) -> None:
    answer = received(b"HTTP/1.1 %b \r\n%b\r\n" % (status, header))
    assert (answer.body, answer.keeps) == (b"", keeps)


def test_a_long_header_takes_no_long_time_to_read() -> None:
    began = time.process_time()
    answer = received(OK + b"Content-Length: 0\r\nConnection: " + BLANKS + b"\r\n\r\n")
    assert time.process_time() - began < 1
    assert answer.header("connection").encode() == BLANKS


@pytest.mark.parametrize("status", [b"200", b"429"])
def test_headers_are_told_as_they_came(status: bytes) -> None:
    answer = received(
        b"HTTP/1.1 %b \r\nRETRY-AFTER:  7 \r\nA: 1\r\nB: 3\r\nA: 2\r\n"
        b"Content-Length: 0\r\n\r\n" % status
    )
    assert answer.status == int(status)
    told = [answer.header(name) for name in ("retry-after", "a", "B", "C", "HTTP/1.1")]
    assert told == ["7", "1, 2", "3", "", ""]


SIZES = (b"-1", b"+2", b" 2", b"0x2", b"0_2", b"", b"2 2", b"0" * 16, b"zz")
TOO_LONG = "head has more than 65536 bytes"
HEADER = b"X: " + b"a" * 40_000 + b"\r\n"
NO_ANSWERS = {
    "nothing": (b"", "closed"),
    "cut": (b"HTTP/1.1 2", "2"),
    "version": (b"HTTP/2.0 200 OK\r\n\r\n", "2.0"),
    "status": (b"HTTP/1.1 99 X\r\n\r\n", "99"),
    "a status of letters": (b"HTTP/1.1 2OO OK\r\n\r\n", "2OO"),
    "another protocol": (b"SSH-2.0-x\r\n", "SSH"),
    "two lengths": (OK + TWO + b"Content-Length: 3\r\n\r\n{}x", "no number"),
    "negative": (OK + b"Content-Length: -2\r\n\r\n{}", "no number"),
    "folded": (OK + b"X: a\r\n folded\r\n\r\n", "no header"),
    "a blank in a name": (OK + b"X : a\r\n\r\n", "no header"),
    "a bare return": (OK + b"X: a\rY: b\r\n\r\n", "no header"),
    "no end": (OK + TWO, "no header"),
    "a coding": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "gzip"),
    "a coding after another blank": (
        OK + TWO + b"Transfer-Encoding: \vchunked\r\n\r\n{}",
        "chunked",
    ),
    "a length before another blank": (OK + TWO[:-2] + b"\f\r\n\r\n{}", "no number"),
    "many headers": (OK + b"X: a\r\n" * 101 + b"\r\n", "more than 100 headers"),
    "many headers before a length": (
        OK + b"X: a\r\n" * 100 + TWO + b"\r\n{}",
        "more than 100 headers",
    ),
    "many headers around a length": (
        OK + b"X: a\r\n" * 50 + TWO + b"X: a\r\n" * 50 + b"\r\n{}",
        "more than 100 headers",
    ),
    "many trailers": (CHUNKED + b"0\r\n" + b"X: a\r\n" * 101, "more than 100 headers"),
    "a long status line": (b"H" * 70_000, TOO_LONG),
    "a long header": (OK + b"X: " + b"a" * 70_000, TOO_LONG),
    "long headers": (OK + HEADER + HEADER + b"\r\n", TOO_LONG),
    "informational without end": (b"HTTP/1.1 103 \r\n\r\n" * 10_000, TOO_LONG),
    "a short body": (OK + b"Content-Length: 3\r\n\r\n{}", "1 more expected"),
    "a long body is short": (LONG + b"x", "3999999 more expected"),
    "a longer chunk": (CHUNKED + b"2\r\n{}}\r\n0\r\n\r\n", "chunk does not end"),
    "a cut chunk": (CHUNKED + b"9\r\nx", "8 more expected"),
    "no last chunk": (CHUNKED + b"2\r\n{}\r\n", "0 bytes read"),
    **{
        f"the size {size.decode()!r}": (
            CHUNKED + size + b"\r\n{}\r\n0\r\n\r\n",
            "size of a chunk",
        )
        for size in (*SIZES, b"2;" + b"a" * 300)
    },
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_not_understood_or_not_whole_is_no_answer(name: str) -> None:
    data, told = NO_ANSWERS[name]
    with pytest.raises(http.client.HTTPException, match=told):
        received(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(LONG + BIG, "1048576 bytes", id="length"),
        pytest.param(OK + b"\r\n" + BIG, "1048576 bytes", id="no length"),
        pytest.param(
            CHUNKED + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 2000,
            "1048576 bytes",
            id="chunks",
        ),
        pytest.param(
            CHUNKED + b"1\r\n \r\n" * 4097 + b"0\r\n\r\n", "4096 pieces", id="pieces"
        ),
        pytest.param(CHUNKED + b"3fffffff\r\n" + BIG, "1048576 bytes", id="a chunk"),
    ],
)
def test_no_more_is_read_than_an_answer_may_have(data: bytes, told: str) -> None:
    sock = Sock(data)
    with pytest.raises(ValueError, match=f"more than {told}"):
        connection(sock).receive(time.monotonic() + 10)
    assert sock.taken < 1_100_000


def test_the_usual_answer_comes_in_few_pieces_too() -> None:
    head = OK + b"Content-Length: 900000\r\n\r\n"
    with pytest.raises(ValueError, match="in more than 4096 pieces"):
        received(head + bytes(900_000), len(head))


@contextlib.contextmanager
def serving(
    script: Script, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[ScriptedServer, HTTPClient]]:
    client = HTTPClient()
    with ScriptedServer(script, tls) as server, contextlib.closing(client):
        yield server, client


def peer(
    server: ScriptedServer, ca_file: Path | None = None, name: str = "127.0.0.1"
) -> HTTPPeer:
    tls = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
    return HTTPPeer("127.0.0.1", server.port, tls, name)


def ask(
    client: HTTPClient, to: HTTPPeer, seconds: float = 30.0, path: str = "/"
) -> HTTPAnswer:
    until = time.monotonic() + seconds
    request = f"GET {path} HTTP/1.1\r\n\r\n".encode()
    return client.answer(client.sent(request, to, until, until), until)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(silent, id="no answer"),
        pytest.param(trickling(b"", b"H"), id="the status line trickles"),
        pytest.param(trickling(OK, b"A: b\r\n"), id="headers trickle"),
        pytest.param(trickling(WHOLE[:-2], b""), id="a head alone"),
        pytest.param(
            trickling(WHOLE.replace(b": 2", b": 9999"), b"x"), id="the body trickles"
        ),
        pytest.param(trickling(LONG, b"x"), id="a long body trickles"),
        pytest.param(trickling(CHUNKED, b"1\r\nx\r\n"), id="chunks trickle"),
        pytest.param(trickling(CHUNKED + b"0\r\n", b"A: b\r\n"), id="trailers"),
        pytest.param(trickling(b"", b"HTTP/1.1 100 \r\n\r\n"), id="100 without end"),
    ],
)
def test_the_deadline_is_that_of_the_whole_answer(script: Script) -> None:
    with serving(script) as (server, client):
        until = time.monotonic() + 0.3
        connection = client.sent(b"GET / HTTP/1.1\r\n\r\n", peer(server), until, until)
        with server.ending_after(AT_ONCE), pytest.raises(TimeoutError, match="time"):
            client.answer(connection, until)
        assert 0 <= time.monotonic() - until < 2


def test_the_deadline_of_a_request_is_not_that_of_its_connection() -> None:
    def script(server: ScriptedServer, _: socket.socket) -> None:
        server.over.wait()

    with serving(script) as (server, client):
        now = time.monotonic()
        with (
            server.ending_after(AT_ONCE),
            pytest.raises(TimeoutError, match="could not be sent in time"),
        ):
            client.sent(bytes(20_000_000), peer(server), now + 0.3, now + 60)


@pytest.mark.parametrize(
    "script", [silent, trickling(b"", b"\x16")], ids=["silent", "trickles"]
)
def test_the_deadline_is_that_of_the_tls_handshake_too(
    tmp_path: Path, script: Script
) -> None:
    _, ca_file = server_tls(tmp_path)
    with serving(script) as (server, client):
        began = time.monotonic()
        with (
            server.ending_after(AT_ONCE),
            pytest.raises(OSError, match=r"no connection in time|SSL"),
        ):
            ask(client, peer(server, ca_file), 0.3)
        assert time.monotonic() - began < 0.3 + 2


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        pytest.param(WHOLE, 1, id="kept"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", 1, id="chunks"),
        pytest.param(WHOLE.replace(b"1.1", b"1.0"), 2, id="HTTP/1.0"),
        pytest.param(WHOLE + b"HTTP", 2, id="bytes after the answer"),
    ],
)
def test_a_connection_is_kept_only_after_a_whole_answer(
    tmp_path: Path, answer: bytes, connections: int, *, is_tls: bool
) -> None:
    tls, ca_file = server_tls(tmp_path) if is_tls else (None, None)
    with serving(answering(answer), tls) as (server, client):
        to = peer(server, ca_file)
        assert [ask(client, to).body for _ in range(2)] == [b"{}", b"{}"]
        assert server.connections == connections


@pytest.mark.parametrize("is_tls", [False, True])
def test_an_answer_that_comes_unasked_is_nobodys(
    tmp_path: Path, *, is_tls: bool
) -> None:
    is_sent = threading.Event()

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        number = server.connections
        while server.read(sock):
            sock.sendall(json_answer(b"%d" % number))
            if number == 1:
                sock.sendall(json_answer(b"99"))
                is_sent.set()

    tls, ca_file = server_tls(tmp_path) if is_tls else (None, None)
    with serving(script, tls) as (server, client):
        to = peer(server, ca_file)
        assert ask(client, to).body == b"1"
        assert is_sent.wait(AT_ONCE)
        assert ask(client, to).body == b"2"


def test_a_connection_that_the_server_has_closed_is_not_used() -> None:
    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        sock.sendall(WHOLE)
        sock.close()
        is_closed.set()

    is_closed = threading.Event()
    with serving(script) as (server, client):
        for _ in range(5):
            is_closed.clear()
            assert ask(client, peer(server)).status == 200
            assert is_closed.wait(AT_ONCE)
        assert len(server.requests) == 5


def test_a_request_that_did_not_go_out_is_sent_on_a_new_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(answering(WHOLE)) as (server, client):
        ask(client, peer(server))
        monkeypatch.setattr(HTTPConnection, "is_usable", lambda *_: True)
        client._idle[0]._sock.shutdown(socket.SHUT_RDWR)
        assert ask(client, peer(server)).status == 200
        assert (server.connections, len(server.requests)) == (2, 2)


def test_a_request_that_went_out_is_not_sent_again() -> None:
    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        sock.sendall(WHOLE)
        server.read(sock)

    with serving(script) as (server, client):
        ask(client, peer(server))
        with pytest.raises(ConnectionError, match="closed"):
            ask(client, peer(server))
        assert (server.connections, len(server.requests)) == (1, 2)


def test_connections_that_were_idle_for_long_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(answering(WHOLE)) as (server, client):
        ask(client, peer(server))
        (kept,) = client._idle
        kept._used_at = began = time.monotonic() - 15
        ask(client, peer(server))
        assert (server.connections, kept._used_at > began) == (1, True)
        monkeypatch.setattr(http_client, "_IDLE_SECONDS", 0.0)
        ask(client, peer(server))
        assert server.connections == 2
        assert len(client._idle) == 0


def test_a_bounded_number_of_connections_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_client, "_MOST_IDLE", 0)
    with serving(answering(WHOLE)) as (server, client):
        ask(client, peer(server))
        assert len(client._idle) == 0


def test_a_server_is_verified_and_a_change_of_it_is_followed(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    (tls, ca_file), (_, other) = (server_tls(folder) for folder in folders)
    with serving(answering(WHOLE), tls) as (server, client):
        assert ask(client, peer(server, ca_file)).status == 200
        # What was verified otherwise is not used.
        assert ask(client, peer(server, ca_file)).status == 200
        assert server.connections == 2
        for wrong in (peer(server, other), peer(server, ca_file, "localhost")):
            with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
                ask(client, wrong)
        with ScriptedServer(saying(WHOLE)) as elsewhere:
            assert ask(client, peer(elsewhere)).status == 200


def test_a_name_is_not_looked_up_for_each_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def look_up(_: str, port: int) -> list[object]:
        asked.append(port)
        where = ("127.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", where)]

    monkeypatch.setattr(host_addresses, "_look_up", look_up)
    with serving(answering(WHOLE.replace(b"1.1", b"1.0"))) as (server, client):
        named = HTTPPeer("server.example", server.port, None, "")
        for _ in range(2):
            ask(client, named)
        assert (server.connections, len(asked)) == (2, 1)


def test_a_call_that_runs_ends_well_and_keeps_no_connection() -> None:
    is_asked, go_on, is_closed = (threading.Event() for _ in range(3))

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        is_asked.set()
        go_on.wait(60)
        sock.sendall(WHOLE)
        if not sock.recv(1):
            is_closed.set()

    with serving(script) as (server, client):
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ask, client, peer(server))
            assert is_asked.wait(AT_ONCE)
            client.close()
            go_on.set()
            assert running.result().status == 200
        assert is_closed.wait(AT_ONCE)


def test_each_of_many_callers_gets_its_own_answer() -> None:
    def script(server: ScriptedServer, sock: socket.socket) -> None:
        while head := server.read(sock):
            sock.sendall(json_answer(head.split()[1]))

    with serving(script) as (server, client):

        def calls(number: int) -> bool:
            paths = [f"/{number}-{count}" for count in range(20)]
            return all(
                ask(client, peer(server), path=one).body == one.encode()
                for one in paths
            )

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(calls, range(16)))
        assert server.connections <= 16


def test_no_descriptor_and_no_thread_is_left() -> None:
    answers = [WHOLE, b"", OK, b"x\r\n", WHOLE + WHOLE, LONG, CHUNKED]

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        sock.sendall(answers[server.connections % len(answers)])

    gc.collect()
    before = len(list(DESCRIPTORS.iterdir())), threading.active_count()
    with serving(script) as (server, client):
        for _ in range(70):
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask(client, peer(server))
    # What an earlier test left may end meanwhile.
    assert len(list(DESCRIPTORS.iterdir())) <= before[0]
    assert threading.active_count() <= before[1]
