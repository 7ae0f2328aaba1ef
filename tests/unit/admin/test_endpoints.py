import asyncio
import errno
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bridge.admin import endpoints
from bridge.admin.endpoints import PARTS, Admin, Views, readiness, split_address
from bridge.errors import ConfigError
from tests.support.harness.in_process_server import WAIT_SECONDS, Served
from tests.support.parts import netports


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as running:
        yield running


def ask(
    served: Served, path: str, method: str = "GET"
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(
        served.server.admin_address, timeout=WAIT_SECONDS
    )
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode()
    finally:
        connection.close()


def test_alive(served: Served) -> None:
    served.problems["ledger"] = "full"
    assert ask(served, "/healthz")[0] == 200


def test_ready_names_every_part(served: Served) -> None:
    status, _, text = ask(served, "/readyz")
    assert status == 200
    expected = {"ready": True, "parts": dict.fromkeys(PARTS, "ok"), "warnings": {}}
    assert json.loads(text) == expected


def test_not_ready_says_which_part_and_why(served: Served) -> None:
    served.problems["issuing CAs: seoul-1"] = "has not signed since the start"
    status, _, text = ask(served, "/readyz")
    assert status == 503
    parts = json.loads(text)["parts"]
    assert parts["issuing CAs: seoul-1"] == "has not signed since the start"
    assert "issuing CAs" not in parts
    assert parts["ledger"] == "ok"


def test_linkerds_pages_are_to_the_letter(served: Served) -> None:
    served.problems["ledger"] = "full"
    for path, status, text in (
        ("/ping", 200, "pong\n"),
        ("/ready", 500, "not ready\n"),
    ):
        assert ask(served, path)[::2] == (status, text)
    served.problems.clear()
    assert ask(served, "/ready")[::2] == (200, "ok\n")


def test_a_warning_does_not_stop_the_bridge() -> None:
    shown = readiness({}, {"serving certificate": "renewal failed"})
    assert shown["ready"] is True
    assert shown["warnings"] == {"serving certificate": "renewal failed"}


def test_metrics(served: Served) -> None:
    status, headers, text = ask(served, "/metrics?x=y")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert "citadel_server_csr_count 0.0" in text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/ping", "/ready"])
def test_head_is_get_without_the_body(served: Served, path: str) -> None:
    status, headers, text = ask(served, path, "HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_sent(served: Served, method: str) -> None:
    status, headers, _ = ask(served, "/readyz", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_other_pages_are_not_there(served: Served) -> None:
    assert ask(served, "/debug")[0] == 404


def test_a_peer_that_says_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        host, port = split_address(served.server.admin_address)
        silent = socket.create_connection((host, port), WAIT_SECONDS)
        assert ask(served, "/healthz")[0] == 200
        served.server.drain(0)
        silent.close()


def test_a_page_that_is_being_made_is_no_error_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def hang() -> dict[str, object]:
        begun.set()
        may_end.wait(WAIT_SECONDS)
        return readiness({}, {})

    admin = Admin("127.0.0.1:0", Views(hang, lambda: (b"", "text/plain")))
    admin.start()
    with socket.create_connection(split_address(admin.address)) as peer:
        peer.settimeout(WAIT_SECONDS)
        peer.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert begun.wait(WAIT_SECONDS)
        admin.close()
        assert peer.recv(1) == b""
    may_end.set()
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"admin.listen: .*{address}: .*in use"):
            Admin(address, Views(dict, lambda: (b"", "")))


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:99", ("127.0.0.1", 99)), ("[::1]:0", ("::1", 0))],
)
def test_an_address_is_split(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


def test_ipv6() -> None:
    admin = Admin("[::1]:0", Views(dict, lambda: (b"", "")))
    assert admin.address.startswith("[::1]:")
    admin.close()


# Peers that mean no good.


def open_to(served: Served) -> socket.socket:
    address = split_address(served.server.admin_address)
    return socket.create_connection(address, WAIT_SECONDS)


def answer_to(served: Served, sent: bytes) -> bytes:
    with open_to(served) as peer:
        peer.sendall(sent)
        return b"".join(iter(lambda: peer.recv(65536), b""))


def test_slow_senders_hold_no_thread_and_keep_nobody_out(served: Served) -> None:
    before = threading.active_count()
    slow = [open_to(served) for _ in range(300)]
    for one in slow:
        with suppress(OSError):
            one.sendall(b"GET /readyz HTTP/1.1\r\nHost: ")
    assert ask(served, "/readyz")[0] == 200
    assert ask(served, "/metrics")[0] == 200
    assert threading.active_count() <= before + 4
    for one in slow:
        one.close()


def test_peers_that_do_not_read_their_page_keep_nobody_out() -> None:
    large = b"x" * (8 << 20)
    views = Views(lambda: {"ready": True}, lambda: (large, "text/plain"))
    admin = Admin("127.0.0.1:0", views)
    admin.start()
    address = split_address(admin.address)
    try:
        with ExitStack() as greedy:
            first, *_ = peers = [
                greedy.enter_context(socket.create_connection(address, WAIT_SECONDS))
                for _ in range(endpoints._MOST_CONNECTIONS + 1)
            ]
            for one in peers:
                with suppress(OSError):
                    one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):
                while first.recv(1 << 20):
                    pass
            connection = http.client.HTTPConnection(admin.address, timeout=WAIT_SECONDS)
            connection.request("GET", "/readyz")
            assert connection.getresponse().status == 200
            connection.close()
    finally:
        admin.close()


@pytest.mark.parametrize("thread", ["page", "admin"])
def test_a_start_without_threads_is_an_error(
    monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith(thread):
            raise RuntimeError("can't start new thread")
        start(self)

    admin = Admin("127.0.0.1:0", Views(dict, lambda: (b"", "")))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        admin.start()
    admin.close()


def test_without_descriptors_for_its_loop_the_address_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    views = Views(dict, lambda: (b"", ""))
    address = netports.address()
    with monkeypatch.context() as lack:
        lack.setattr(asyncio, "new_event_loop", refuse)
        with pytest.raises(ConfigError, match=r"admin\.listen: .*Too many open files"):
            Admin(address, views)
    Admin(address, views).close()


def test_a_slow_sender_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "_REQUEST_SECONDS", 0.05)
    with open_to(served) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert slow.recv(1) == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nA: " + b"a" * 7_000 + b"\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nA: " + b"a" * 9_000, 431),
        (b"GET /healthz HTTP/1.1\r\n" + b"A: a\r\n" * 2_000, 431),
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
    ],
    ids=["long", "one long header", "many headers", *"abcde"],
)
def test_a_request_is_short_and_of_http_1(
    served: Served, sent: bytes, status: int
) -> None:
    assert answer_to(served, sent).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_view_that_fails_says_no_more_than_that() -> None:
    def fail() -> dict[str, object]:
        raise ValueError("of the inside")

    admin = Admin("127.0.0.1:0", Views(fail, lambda: (b"", "text/plain")))
    admin.start()
    try:
        connection = http.client.HTTPConnection(admin.address, timeout=WAIT_SECONDS)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (500, b"internal error\n")
        connection.close()
    finally:
        admin.close()


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("/etc/meshca/ca/chain.pem: no chain", "chain.pem: no chain"),
        ("the file (/var/lib/j/w0) of /srv/x", "the file (w0) of x"),
        ("see /readyz, or a/b.pem", "see /readyz, or a/b.pem"),
        ("spiffe://corp.example/ns/a/sa/b", "spiffe://corp.example/ns/a/sa/b"),
        ("https://issuer.example/keys/x", "https://issuer.example/keys/x"),
    ],
)
def test_reasons_have_no_paths_of_files(
    served: Served, reason: str, shown: str
) -> None:
    served.problems["ledger"] = reason
    assert json.loads(ask(served, "/readyz")[2])["parts"]["ledger"] == shown
