"""Connections to Vault: hostile servers, deadlines, reuse, names, and their end."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bridge.system import host_addresses
from bridge_vault import connection
from bridge_vault.connection import Connections, ExchangeError, HTTPAnswer
from tests.support.parts import netports
from tests.support.parts.scripted_http import (
    OK,
    Script,
    ScriptedServer,
    answering,
    json_answer,
    saying,
    server_tls,
    silent,
    trickling,
)

_AT_ONCE = 5.0
"""What must happen long before a deadline; the machine may be busy."""
_DESCRIPTORS = Path("/proc/self/fd")
_HEAD = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_LAST = OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")
_LONG = _HEAD + b"Content-Length: 4000000\r\n\r\n"


@contextlib.contextmanager
def opened(
    server: ScriptedServer | str, ca_file: Path | None = None
) -> Iterator[Connections]:
    tls = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
    url = server if isinstance(server, str) else server.url
    connections = Connections(url, tls)
    try:
        yield connections
    finally:
        connections.close()


def ask(
    connections: Connections,
    *,
    seconds: float = 10.0,
    path: str = "/v1/x",
    headers: dict[str, str] | None = None,
    body: bytes | None = b"{}",
) -> HTTPAnswer:
    deadline = time.monotonic() + seconds
    return connections.exchange("POST", path, headers or {}, body, deadline, deadline)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(silent, id="no answer"),
        pytest.param(trickling(b"", b"H"), id="the status line trickles"),
        pytest.param(trickling(_HEAD, b"A: b\r\n"), id="headers trickle"),
        pytest.param(trickling(_LONG, b"x"), id="the body trickles"),
        pytest.param(trickling(_CHUNKED, b"1\r\nx\r\n"), id="chunks trickle"),
        pytest.param(trickling(_CHUNKED + b"0\r\n", b"A: b\r\n"), id="trailers"),
        pytest.param(trickling(b"", b"HTTP/1.1 100 \r\n\r\n"), id="100 without end"),
    ],
)
def test_the_deadline_is_that_of_the_whole_answer(script: Script) -> None:
    with ScriptedServer(script) as server, opened(server) as connections:
        began = time.monotonic()
        with (
            server.ending_after(_AT_ONCE),
            pytest.raises(ExchangeError, match="no answer in time") as caught,
        ):
            ask(connections, seconds=0.3)
        assert 0.3 <= time.monotonic() - began < 0.3 + 2
    assert caught.value.is_sent
    assert caught.value.is_late


@pytest.mark.parametrize(
    "script", [silent, trickling(b"", b"\x16")], ids=["silent", "trickles"]
)
def test_the_deadline_is_that_of_the_tls_handshake_too(
    tmp_path: Path, script: Script
) -> None:
    _, ca_file = server_tls(tmp_path)
    with ScriptedServer(script) as server:
        url = server.url.replace("http:", "https:")
        with opened(url, ca_file) as connections:
            began = time.monotonic()
            with (
                server.ending_after(_AT_ONCE),
                pytest.raises(ExchangeError, match=r"no connection in time|SSL") as e,
            ):
                ask(connections, seconds=0.3)
            assert time.monotonic() - began < 0.3 + 2
    assert not e.value.is_sent


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        pytest.param(b"", "connection was cut", id="closed without an answer"),
        pytest.param(b"HTTP/1.1 100 \r\n\r\n" * 200_000, "longer", id="many 100"),
        pytest.param(b"HTTP/1.1 103 \r\n\r\n" * 200_000, "no HTTP", id="many 103"),
        pytest.param(_HEAD + b"A: b\r\n" * 300, "no HTTP", id="many headers"),
        pytest.param(_HEAD + b"A" * 3_000_000, "no HTTP", id="a long header"),
        pytest.param(b"H" * 3_000_000, "no HTTP", id="a long status line"),
        pytest.param(_LONG + b"x" * 4_000_000, "longer", id="a long body"),
        pytest.param(_HEAD + b"\r\n" + b"x" * 4_000_000, "longer", id="until closed"),
        pytest.param(
            _HEAD + b"Content-Length: 9000000000000\r\n\r\nx",
            "not whole",
            id="a length that no memory has",
        ),
        pytest.param(
            _CHUNKED + b"400\r\n" + (b"x" * 1024 + b"\r\n400\r\n") * 4000,
            "longer",
            id="chunks without end",
        ),
        pytest.param(
            _CHUNKED + b"FFFFFFFFFFFF\r\nx", "not whole", id="a chunk no memory has"
        ),
        pytest.param(
            _CHUNKED + b"-1\r\n" + b"x" * 4_000_000, "longer", id="a chunk below 0"
        ),
        pytest.param(_CHUNKED + b"zz\r\n", "not whole", id="a chunk of no size"),
        pytest.param(
            _CHUNKED + b"0\r\n" + b"A: b\r\n" * 400_000, "longer", id="many trailers"
        ),
        pytest.param(_HEAD + b"Content-Length: 9\r\n\r\nx", "not whole", id="cut"),
        pytest.param(_CHUNKED + b"9\r\nx", "not whole", id="a chunk that is cut"),
        pytest.param(b"SSH-2.0-x\r\n", "no HTTP", id="another protocol"),
        pytest.param(b"HTTP/2 200 \r\n\r\n", "no HTTP", id="a version not asked for"),
        pytest.param(b"HTTP/1.1 2OO OK\r\n\r\n", "no HTTP", id="a status of letters"),
    ],
)
def test_an_answer_that_is_none_ends_the_call_at_once(answer: bytes, text: str) -> None:
    with ScriptedServer(saying(answer)) as server, opened(server) as connections:
        began = time.monotonic()
        with pytest.raises(ExchangeError, match=text) as caught:
            ask(connections, seconds=60)
        assert time.monotonic() - began < _AT_ONCE
    assert caught.value.is_sent
    assert not caught.value.is_late


@pytest.mark.parametrize(
    ("answer", "body", "connections"),
    [
        pytest.param(OK, b"{}", 1, id="kept"),
        pytest.param(_CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", b"{}", 1, id="chunks"),
        pytest.param(
            _CHUNKED + b"2\r\n{}\r\n0\r\nA: b\r\n\r\n", b"{}", 1, id="a trailer"
        ),
        pytest.param(b"HTTP/1.1 204 \r\n\r\n", b"", 1, id="204"),
        pytest.param(b"HTTP/1.1 103 \r\nA: b\r\n\r\n" + OK, b"{}", 1, id="after 103"),
        pytest.param(b"HTTP/1.1 100 \r\n\r\n" + OK, b"{}", 1, id="after 100"),
        pytest.param(OK.replace(b"1.1", b"1.0"), b"{}", 2, id="HTTP/1.0"),
        pytest.param(_LAST, b"{}", 2, id="close"),
        pytest.param(OK + b"HTTP", b"{}", 2, id="bytes after the answer"),
        pytest.param(OK + OK, b"{}", 2, id="another answer after the answer"),
        pytest.param(
            OK.replace(b"h: 2", b"h: 1"), b"{", 2, id="a length that is too short"
        ),
    ],
)
def test_a_connection_is_kept_only_after_a_whole_answer(
    answer: bytes, body: bytes, connections: int
) -> None:
    with ScriptedServer(answering(answer)) as server, opened(server) as pool:
        assert [ask(pool).body for _ in range(2)] == [body, body]
        assert server.connections == connections


def test_an_answer_that_comes_unasked_is_nobodys() -> None:
    is_sent = threading.Event()

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        number = server.connections
        while server.read(sock):
            sock.sendall(json_answer(b"%d" % number))
            if number == 1:
                sock.sendall(json_answer(b"99"))
                is_sent.set()

    with ScriptedServer(script) as server, opened(server) as connections:
        assert ask(connections).body == b"1"
        assert is_sent.wait(_AT_ONCE)
        assert ask(connections).body == b"2"


def test_a_connection_that_the_server_has_closed_is_not_used() -> None:
    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        sock.sendall(OK)
        sock.close()
        is_closed.set()

    is_closed = threading.Event()
    with ScriptedServer(script) as server, opened(server) as connections:
        for _ in range(5):
            is_closed.clear()
            assert ask(connections).status == 200
            assert is_closed.wait(_AT_ONCE)
        assert len(server.requests) == 5


def test_connections_that_were_idle_for_long_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer(answering(OK)) as server, opened(server) as connections:
        ask(connections)
        monkeypatch.setattr(connection, "_IDLE_SECONDS", 0.0)
        ask(connections)
        assert server.connections == 2
        assert len(connections._idle) == 0


def test_a_request_that_did_not_go_out_whole_was_not_sent() -> None:
    def script(_: ScriptedServer, sock: socket.socket) -> None:
        sock.recv(1)  # what is left unread resets the connection

    with (
        ScriptedServer(script) as server,
        opened(server) as connections,
        pytest.raises(ExchangeError, match="connection was cut") as caught,
    ):
        ask(connections, body=b"x" * 20_000_000)
    assert not caught.value.is_sent


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/x", {"X-Vault-Token": "hidden\r\nX-Other: y"}),
        ("/v1/x", {"X-Vault-Token": "hidden\0"}),
        ("/v1/x", {"X-Vault-Token": "hidden\n"}),
        ("/v1/x", {"X-Vault-Token": "hidden\N{EURO SIGN}"}),
        ("/v1/x hidden", {}),
        ("/v1/x\r\nhidden: y", {}),
        ("/v1/\N{EURO SIGN}hidden", {}),
    ],
)
def test_what_would_be_another_request_is_not_sent_and_not_told(
    path: str, headers: dict[str, str]
) -> None:
    with ScriptedServer(answering(OK)) as server, opened(server) as connections:
        with pytest.raises(ExchangeError, match="does not permit") as caught:
            ask(connections, path=path, headers=headers)
        assert server.connections == 0
    assert not caught.value.is_sent
    assert "hidden" not in str(caught.value)


def test_the_request_is_as_the_server_expects_it() -> None:
    with ScriptedServer(answering(OK)) as server:
        with opened(f"{server.url}/vault/") as connections:
            ask(connections, headers={"A": "b"}, body=b'{"c": 1}')
            ask(connections, body=None)
        host = f"Host: 127.0.0.1:{server.port}\r\nAccept-Encoding: identity\r\n"
        first = f"POST /vault/v1/x HTTP/1.1\r\n{host}A: b\r\nContent-Length: 8\r\n\r\n"
        assert server.requests == [
            first.encode() + b'{"c": 1}',
            f"POST /vault/v1/x HTTP/1.1\r\n{host}\r\n".encode(),
        ]


def test_tls_is_verified_against_the_bundle(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    (tls, ca_file), (_, other) = (server_tls(folder) for folder in folders)
    with ScriptedServer(answering(OK), tls) as server:
        with opened(server, ca_file) as connections:
            assert [ask(connections).status for _ in range(2)] == [200, 200]
            assert server.connections == 1
        with opened(server, other) as connections:
            with pytest.raises(ExchangeError, match="certificate verify failed") as e:
                ask(connections)
            assert not e.value.is_sent
        named = server.url.replace("127.0.0.1", "localhost")
        with (
            opened(named, ca_file) as connections,
            pytest.raises(ExchangeError, match="certificate verify failed"),
        ):
            ask(connections)


def addresses_of(*ports: int) -> list[tuple[object, ...]]:
    kind = socket.SOCK_STREAM
    return [(socket.AF_INET, kind, 0, "", ("127.0.0.1", port)) for port in ports]


@pytest.fixture
def black_hole() -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):  # its queue is full: the kernel drops what follows
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_name_with_an_address_that_is_a_black_hole_has_another_one(
    monkeypatch: pytest.MonkeyPatch, black_hole: int
) -> None:
    with ScriptedServer(answering(_LAST)) as server:
        found = addresses_of(black_hole, server.port)
        monkeypatch.setattr(host_addresses, "_look_up", lambda *_: found)
        monkeypatch.setattr(host_addresses, "_CONNECT_SECONDS", 0.2)
        with opened("http://vault.example:1") as connections:
            assert ask(connections, seconds=10).status == 200
            monkeypatch.setattr(host_addresses, "_CONNECT_SECONDS", 60.0)
            # The address that was well comes first now.
            assert ask(connections, seconds=10).status == 200


def test_a_name_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(answering(OK)) as server:
        found = [addresses_of(netports.reserve()), addresses_of(server.port)]

        def look_up(*_: object) -> list[tuple[object, ...]]:
            return found.pop(0) if len(found) > 1 else found[0]

        monkeypatch.setattr(host_addresses, "_look_up", look_up)
        with opened("http://vault.example:1") as connections:
            with pytest.raises(ExchangeError, match="refused"):
                ask(connections)
            deadline = time.monotonic() + _AT_ONCE
            while time.monotonic() < deadline:
                with contextlib.suppress(ExchangeError):
                    assert ask(connections).status == 200
                    return
    pytest.fail("the new address was not used")


def test_a_lookup_that_hangs_holds_no_call_beyond_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    with ScriptedServer(answering(OK)) as server:

        def look_up(*_: object) -> list[tuple[object, ...]]:
            release.wait(60)
            return addresses_of(server.port)

        monkeypatch.setattr(host_addresses, "_look_up", look_up)
        with opened("http://vault.example:1") as connections:
            for _ in range(2):
                with pytest.raises(ExchangeError, match="not resolved in time") as e:
                    ask(connections, seconds=0.1)
                assert e.value.is_late
                assert not e.value.is_sent
            names = [one.name for one in threading.enumerate()]
            assert names.count("resolve-vault.example") == 1
            release.set()
            assert ask(connections).status == 200


def test_a_lookup_without_a_thread_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer(answering(OK)) as server:
        found = addresses_of(server.port)
        monkeypatch.setattr(host_addresses, "_look_up", lambda *_: found)

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with opened("http://vault.example:1") as connections:
            with monkeypatch.context() as exhausted:
                exhausted.setattr(threading.Thread, "start", refuse)
                with pytest.raises(ExchangeError, match="no more threads") as caught:
                    ask(connections)
            assert not caught.value.is_sent
            assert ask(connections).status == 200


def test_a_name_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(host_addresses, "_look_up", look_up)
    text = "vault.example: the name is not resolved: Name or service not known"
    with (
        opened("http://vault.example:1") as connections,
        pytest.raises(ExchangeError, match=text) as caught,
    ):
        ask(connections)
    assert not caught.value.is_sent


def test_what_is_closed_makes_no_calls() -> None:
    with ScriptedServer(answering(OK)) as server, opened(server) as connections:
        ask(connections)
        connections.close()
        with pytest.raises(ExchangeError, match="are closed") as caught:
            ask(connections)
        assert len(server.requests) == 1
    assert not caught.value.is_sent


def test_a_call_that_runs_ends_well_and_keeps_no_connection() -> None:
    is_asked, go_on, is_closed = (threading.Event() for _ in range(3))

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        is_asked.set()
        go_on.wait(60)
        sock.sendall(OK)
        if not sock.recv(1):
            is_closed.set()

    with ScriptedServer(script) as server, opened(server) as connections:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ask, connections)
            assert is_asked.wait(_AT_ONCE)
            connections.close()
            go_on.set()
            assert running.result().status == 200
        assert is_closed.wait(_AT_ONCE)


def test_each_of_many_callers_gets_its_own_answer() -> None:
    def script(server: ScriptedServer, sock: socket.socket) -> None:
        while head := server.read(sock):
            sock.sendall(json_answer(head.split()[1]))

    def calls(connections: Connections, number: int) -> bool:
        paths = [f"/v1/{number}-{count}" for count in range(20)]
        return all(ask(connections, path=one).body == one.encode() for one in paths)

    with ScriptedServer(script) as server, opened(server) as connections:
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda one: calls(connections, one), range(16)))
        assert server.connections <= 16


def test_no_descriptor_and_no_thread_is_left() -> None:
    answers = [OK, b"", b"HTTP/1.1 200\r\n", b"x\r\n", OK + OK, _LONG, _CHUNKED]

    def script(server: ScriptedServer, sock: socket.socket) -> None:
        server.read(sock)
        sock.sendall(answers[server.connections % len(answers)])

    before = len(list(_DESCRIPTORS.iterdir())), threading.active_count()
    with ScriptedServer(script) as server, opened(server) as connections:
        for _ in range(70):
            with contextlib.suppress(ExchangeError):
                ask(connections)
    assert (len(list(_DESCRIPTORS.iterdir())), threading.active_count()) == before
