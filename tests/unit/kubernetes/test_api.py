"""The client of an API server: pooled connections, each call with an end."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import ReviewError
from bridge.kubernetes.api import METADATA, APIServer
from bridge.kubernetes.credentials import APIAccess, Credentials
from bridge.resilience.budget import Budget
from tests.support.parts.scripted_http import json_answer, server_tls
from tests.support.parts.token_reviews import (
    ACCESS,
    Fault,
    ReviewServer,
    dripping,
    holding,
    saying,
)

HEAD = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with ReviewServer(tmp_path) as running, running.ending_after(60):
        yield running


def client(server: ReviewServer, seconds: float = 5.0, calls: int = 4) -> APIServer:
    access = APIAccess(server=server.url, ca=server.ca_file, token=server.token_file)
    return APIServer(Credentials(access), seconds=seconds, calls=calls)


def ask(api: APIServer, seconds: float = 30.0) -> Any:
    return api.post(ACCESS, {"kind": "x"}, Budget.of_seconds(seconds))


def refused(api: APIServer, seconds: float = 30.0) -> ReviewError:
    with pytest.raises(ReviewError, match="API server of this cluster") as caught:
        ask(api, seconds)
    return caught.value


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7.0), ("9" * 40, 60.0), ("Mon", 0.0)]
)
def test_an_api_server_puts_nobody_off_for_long(
    server: ReviewServer, said: str, seconds: float
) -> None:
    server.fault = saying(json_answer(b"{}", 429, [f"Retry-After: {said}"]))
    with closing(client(server)) as api:
        assert refused(api).retry_after == seconds


@pytest.mark.parametrize(
    "answer",
    [
        json_answer(b'{"message": "no\\n2026-11-29 INFO forged\\u001b[2J"}', 403),
        b"no\r2026-11-29 INFO forged\x1b[2J\r\n",
    ],
)
def test_what_an_api_server_says_is_one_line_of_the_log(
    server: ReviewServer, answer: bytes
) -> None:
    server.fault = saying(answer)
    with closing(client(server)) as api:
        told = refused(api).detail
    assert "forged" in told
    assert told.isprintable()


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "no answer": (holding(), "review.timeout", "time"),
    "closes": (saying(b""), "review.unavailable", "closed"),
    "closes in the body": (
        saying(HEAD + b"Content-Length: 99\r\n\r\n{"),
        "review.unavailable",
        "IncompleteRead",
    ),
    "too much": (
        saying(HEAD + b"Content-Length: 2000000\r\n\r\n" + b" " * 1_100_000),
        "review.unavailable",
        "more than 1048576 bytes",
    ),
    "no HTTP": (saying(b"SSH-2.0-x\r\n\r\n"), "review.unavailable", "SSH"),
    "no JSON": (saying(json_answer(b"{", 201)), "review.answer", "JSON object"),
    "a list": (saying(json_answer(b"[]", 201)), "review.answer", "JSON object"),
    "403": (
        saying(json_answer(b'{"message": "tokenreviews is forbidden"}', 403)),
        "review.rights",
        "HTTP status 403: tokenreviews is forbidden",
    ),
    "429": (saying(json_answer(b"{}", 429)), "review.throttled", "HTTP status 429"),
    "429 with Retry-After": (
        saying(json_answer(b"{}", 429, ["Retry-After: 7"])),
        "review.throttled",
        "HTTP status 429, Retry-After 7",
    ),
    "500": (saying(json_answer(b"oh", 500)), "review.failed", "HTTP status 500"),
    "a redirect": (
        saying(json_answer(b"", 302, ["Location: https://127.0.0.1:1/"])),
        "review.failed",
        "HTTP status 302",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_review_that_could_not_be_made(
    server: ReviewServer, name: str
) -> None:
    server.fault, rule, told = FAULTS[name]
    with closing(client(server, seconds=30)) as api:
        error = refused(api, 0.4 if rule == "review.timeout" else 30)
        assert (error.rule, told in error.detail) == (rule, True), error.detail
        assert error.detail.startswith(f"{server.url}: ")
        # And nothing of it is kept.
        server.fault = None
        assert ask(api)["status"] == {"allowed": True}


def test_the_budget_of_the_call_ends_a_request(server: ReviewServer) -> None:
    server.fault = holding()
    with closing(client(server, seconds=60)) as api:
        assert refused(api, seconds=0.3).rule == "review.timeout"


def test_a_refused_token_is_read_again_once(server: ReviewServer) -> None:
    with closing(client(server)) as api:
        ask(api)
        server.accepted = "another-token"
        error = refused(api)
        assert (error.rule, error.detail) == (
            "review.credential",
            f"{server.url}: HTTP status 401: Unauthorized",
        )
        assert len(server.requests) == 2  # the file has the same one
        server.token_file.write_text("another-token\n")
        assert ask(api)["status"] == {"allowed": True}
        assert len(server.requests) == 4


def test_another_certificate_is_not_trusted(
    server: ReviewServer, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    _, other = server_tls(tmp_path / "other")
    access = APIAccess(server=server.url, ca=other, token=server.token_file)
    api = APIServer(Credentials(access), seconds=5, calls=1)
    error = refused(api)
    assert error.rule == "review.unavailable"
    assert "certificate verify failed" in error.detail
    assert server.requests == []  # the bridge's own token was not shown


def test_credentials_that_cannot_be_read_are_told(server: ReviewServer) -> None:
    server.token_file.unlink()
    error = refused(client(server))
    assert (error.rule, str(server.token_file) in error.detail) == (
        "review.credential",
        True,
    )


def test_nobody_listens(server: ReviewServer) -> None:
    access = APIAccess(server="https://127.0.0.1:1", ca=server.ca_file)
    api = APIServer(Credentials(access), seconds=5, calls=1)
    assert refused(api).rule == "review.unavailable"


def test_a_server_that_hangs_holds_no_more_threads_than_it_may(
    server: ReviewServer,
) -> None:
    server.fault = holding()
    api = client(server, seconds=30, calls=2)
    with closing(api), ThreadPoolExecutor(2) as two:
        held = [two.submit(refused, api) for _ in range(2)]
        deadline = threading.Event()
        while len(server.requests) < 2:
            deadline.wait(0.01)
        # The third is refused while both are held, long before their time is up.
        assert refused(api).rule == "review.busy"
        assert not any(one.done() for one in held)
        server.over.set()
        assert {one.result().rule for one in held} == {"review.unavailable"}


def test_a_server_that_let_a_call_wait_in_vain_has_nobody_wait_for_a_place(
    server: ReviewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.kubernetes.api._WAIT_SECONDS", 10.0)
    server.fault = holding()
    with closing(client(server, seconds=30, calls=1)) as api:
        assert refused(api, 1.0).rule == "review.timeout"
        assert server.hanging.wait(30)
        server.hanging.clear()
        with ThreadPoolExecutor(1) as one:
            held = one.submit(refused, api, 6.0)
            assert server.hanging.wait(30)
            began = time.monotonic()
            assert refused(api).rule == "review.busy"
            assert time.monotonic() - began < 3
            assert held.result().rule == "review.timeout"
        # Until it answers.
        server.fault = None
        assert ask(api)["status"] == {"allowed": True}
        assert not api._calls.are_stalled()


def test_who_waits_for_the_answer_to_another_call_does_not_for_long(
    server: ReviewServer,
) -> None:
    with closing(client(server)) as api:
        over, budget = threading.Event(), Budget.of_seconds(30)
        began = time.monotonic()
        with pytest.raises(ReviewError, match="too many calls wait") as caught:
            api.awaits(over, budget)
        assert time.monotonic() - began < 5
        assert caught.value.rule == "review.busy"
        over.set()
        api.awaits(over, budget)


def test_a_server_may_have_a_certificate_for_another_name(
    server: ReviewServer,
) -> None:
    named = APIAccess(
        server=f"https://localhost:{server.port}",
        server_name="127.0.0.1",
        ca=server.ca_file,
        token=server.token_file,
    )
    with closing(APIServer(Credentials(named), seconds=30, calls=2)) as api:
        assert ask(api)["status"] == {"allowed": True}


POD = "/api/v1/namespaces/shop/pods/web-0"


def get(api: APIServer, path: str = POD, **query: str | int) -> Any:
    return api.get(path, query, Budget.of_seconds(30), accept=METADATA)


def test_an_object_is_asked_for_on_the_pooled_connections(server: ReviewServer) -> None:
    with closing(client(server)) as api:
        ask(api)
        server.objects[POD] = {"kind": "Pod"}
        assert get(api, limit=1, fieldSelector="spec.nodeName=a") == {"kind": "Pod"}
    assert server.connections == 1
    head = server.requests[-1].decode()
    assert head.startswith(f"GET {POD}?limit=1&fieldSelector=spec.nodeName%3Da HTTP")
    assert f"Accept: {METADATA}\r\n" in head
    assert "Content-" not in head


def test_an_object_that_is_not_there_is_none(server: ReviewServer) -> None:
    with closing(client(server)) as api:
        assert get(api) is None
        assert get(api) is None
    assert (server.connections, len(server.requests)) == (1, 2)


def test_a_get_is_refused_as_a_review_is(server: ReviewServer) -> None:
    server.fault = saying(json_answer(b'{"message": "no"}', 403))
    with closing(client(server)) as api:
        with pytest.raises(ReviewError, match="refuses what") as caught:
            get(api)
        assert caught.value.rule == "review.rights"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces)


def lines(api: APIServer, silence: float = 30.0) -> list[bytes]:
    with api.stream("/api/v1/pods", {"watch": 1}, silence=silence) as stream:
        return list(stream.lines())


STREAMS: dict[str, tuple[bytes, list[bytes]]] = {
    "lines": (CHUNKED + chunks(b"a\nb\n", b""), [b"a", b"b"]),
    "a line in pieces": (
        CHUNKED + chunks(b"a", b"b", b"\nc\n", b""),
        [b"ab", b"c"],
    ),
    "nothing": (CHUNKED + chunks(b""), []),
    "with its length": (json_answer(b"a\nb\n"), [b"a", b"b"]),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_lines_of_a_stream(server: ReviewServer, name: str) -> None:
    answer, expected = STREAMS[name]
    server.fault = saying(answer)
    with closing(client(server)) as api:
        assert lines(api) == expected


BROKEN: dict[str, tuple[Fault, str]] = {
    "silent": (holding(CHUNKED + chunks(b"a\n")), "review.timeout"),
    "silent amid a line": (holding(CHUNKED + chunks(b"a")), "review.timeout"),
    "a line that drips": (dripping(CHUNKED, chunks(b"a")), "review.timeout"),
    "lost": (saying(CHUNKED + chunks(b"a\n")), "review.unavailable"),
    "lost amid a chunk": (saying(CHUNKED + b"9\r\na\n"), "review.unavailable"),
    "ends amid a line": (saying(CHUNKED + chunks(b"a", b"")), "review.unavailable"),
    "shorter than it said": (
        saying(json_answer(b"a\n").replace(b"Length: 2", b"Length: 9")),
        "review.unavailable",
    ),
    "410": (saying(json_answer(b"{}", 410)), "review.gone"),
    "429": (saying(json_answer(b"{}", 429)), "review.throttled"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_breaks_is_told(server: ReviewServer, name: str) -> None:
    server.fault, rule = BROKEN[name]
    with closing(client(server)) as api:
        with pytest.raises(ReviewError, match="API server of this cluster") as caught:
            lines(api, silence=0.3 if rule == "review.timeout" else 30.0)
        assert caught.value.rule == rule


def test_a_stream_takes_no_place_of_a_call_and_has_its_own_connection(
    server: ReviewServer,
) -> None:
    with closing(client(server, calls=1)) as api:
        ask(api)
        hold = holding(CHUNKED + chunks(b"a\n"))
        server.streams["/api/v1/pods"] = lambda server, sock, _: hold(server, sock)
        with api.stream("/api/v1/pods", {"watch": 1}, silence=30) as stream:
            assert next(stream.lines()) == b"a"
            assert ask(api)["status"] == {"allowed": True}
    assert server.connections == 2


def test_a_stream_reads_a_refused_token_again(server: ReviewServer) -> None:
    def say(_: ReviewServer, sock: socket.socket, __: str) -> None:
        sock.sendall(CHUNKED + chunks(b"a\n", b""))

    server.streams["/api/v1/pods"] = say
    with closing(client(server)) as api:
        ask(api)
        server.accepted = "another-token"
        server.token_file.write_text("another-token\n")
        assert lines(api) == [b"a"]
