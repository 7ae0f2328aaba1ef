"""Requests to Vault: how they are sent, and what an error of one leaves open."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.sdk import HTTPAnswer
from bridge_vault.connection import Connections, NoAnswerError
from tests.support.parts import netports
from tests.support.parts.scripted_http import (
    OK,
    Script,
    ScriptedServer,
    answering,
    saying,
    server_tls,
    silent,
)

_HEAD = b"HTTP/1.1 200 OK\r\n"
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
    ("script", "text", "is_late"),
    [
        pytest.param(silent, "^no answer in time$", True, id="no answer"),
        pytest.param(
            saying(b""),
            "^the connection was cut: the connection was closed$",
            False,
            id="closed without an answer",
        ),
        pytest.param(
            saying(b"SSH-hidden\r\n"),
            r"^the answer is not whole, or no HTTP \(BadStatusLine\)$",
            False,
            id="another protocol",
        ),
        pytest.param(
            saying(_LONG + b"x" * 4_000_000),
            "^the answer has more than 1048576 bytes$",
            False,
            id="a long answer",
        ),
    ],
)
def test_without_an_answer_a_request_that_went_out_may_have_been_served(
    script: Script, text: str, *, is_late: bool
) -> None:
    with (
        ScriptedServer(script) as server,
        opened(server) as connections,
        pytest.raises(NoAnswerError, match=text) as caught,
    ):
        ask(connections, seconds=0.3 if is_late else 60)
    assert caught.value.is_sent
    assert caught.value.is_late == is_late


def cutting(_: ScriptedServer, sock: socket.socket) -> None:
    sock.recv(1)  # what is left unread resets the connection


def not_reading(server: ScriptedServer, _: socket.socket) -> None:
    server.over.wait()


@pytest.mark.parametrize(
    ("script", "text", "is_late"),
    [
        (cutting, "connection was cut", False),
        (not_reading, "not be sent in time", True),
    ],
)
def test_a_request_that_did_not_go_out_whole_was_not_sent(
    script: Script, text: str, *, is_late: bool
) -> None:
    with (
        ScriptedServer(script) as server,
        opened(server) as connections,
        pytest.raises(NoAnswerError, match=text) as caught,
    ):
        ask(connections, seconds=0.3 if is_late else 60, body=b"x" * 20_000_000)
    assert not caught.value.is_sent
    assert caught.value.is_late == is_late


def test_without_a_connection_nothing_was_sent(tmp_path: Path) -> None:
    tls, _ = server_tls(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = server_tls(tmp_path / "other")
    with ScriptedServer(answering(OK), tls) as server, ScriptedServer(silent) as mute:
        nobody = f"http://127.0.0.1:{netports.reserve()}"
        for url, text, is_late in (
            (nobody, f"^{nobody}: Connection refused$", False),
            (server.url, "verify failed: .*: compare ca_file and the host", False),
            (mute.url.replace("http:", "https:"), "in time$", True),
        ):
            with (
                opened(url, other) as connections,
                pytest.raises(NoAnswerError, match=text) as caught,
            ):
                ask(connections, seconds=0.5)
            assert not caught.value.is_sent
            assert caught.value.is_late == is_late


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
        with pytest.raises(NoAnswerError, match="does not permit") as caught:
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


def test_what_is_closed_makes_no_calls() -> None:
    with ScriptedServer(answering(OK)) as server, opened(server) as connections:
        ask(connections)
        connections.close()
        with pytest.raises(NoAnswerError, match="are closed") as caught:
            ask(connections)
        assert len(server.requests) == 1
    assert not caught.value.is_sent
