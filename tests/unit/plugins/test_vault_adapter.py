"""The adapter of hvac: what each answer becomes, and which address is asked."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.spi import BackendError
from bridge_vault.adapter import Servers, VaultAdapter
from bridge_vault.answers import error_of
from bridge_vault.connection import Connections, NoAnswerError, VaultError
from tests.support.parts import netports
from tests.support.parts.scripted_http import (
    OK,
    Script,
    ScriptedServer,
    answering,
    json_answer,
    saying,
    silent,
)

_TOKEN = "hvs.hidden-token"  # noqa: S105 - of no server
_SEALED = json_answer(b'{"errors":["Vault is sealed"]}', 503)


@contextmanager
def adapter(*urls: str, seconds: float = 10.0, **fields: str) -> Iterator[VaultAdapter]:
    servers = Servers([Connections(url, None) for url in urls])
    try:
        deadline = time.monotonic() + seconds
        yield VaultAdapter(servers, deadline, token=_TOKEN, **fields)
    finally:
        servers.close()


def failure(answer: bytes, **body: str) -> VaultError:
    with (
        ScriptedServer(answering(answer)) as server,
        adapter(server.url) as one,
        pytest.raises(VaultError, match=r".") as caught,
    ):
        one.post("/v1/auth/x/login", json=body or None)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            json_answer(b'{"data": {"a": [1, 0.5, null]}}'),
            {"data": {"a": [1, 0.5, None]}},
        ),
        (json_answer(b"{}", kind="application/json; charset=utf-8"), {}),
        (b"HTTP/1.1 204 \r\n\r\n", {}),
    ],
)
def test_success_is_json_or_nothing(answer: bytes, expected: object) -> None:
    with ScriptedServer(answering(answer)) as server, adapter(server.url) as one:
        assert one.get("/v1/x") == expected


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(json_answer(b"<html>", kind="text/html"), id="HTML"),
        pytest.param(json_answer(b"{}", kind="text/html"), id="another type"),
        pytest.param(json_answer(b"[]"), id="a list"),
        pytest.param(json_answer(b"{"), id="half"),
        pytest.param(json_answer(b"\x1f\x8b\x08\x00"), id="gzip"),
        pytest.param(json_answer(b'{"a":' * 100_000), id="deep"),
        pytest.param(json_answer(b'{"a":' + b"9" * 400 + b"}"), id="a huge integer"),
        pytest.param(json_answer(b'{"a":1e999}'), id="a number without end"),
        pytest.param(json_answer(b'{"a":NaN}'), id="no number"),
        pytest.param(json_answer(b"{}", 201), id="201"),
        pytest.param(json_answer(b"{}", 206), id="206"),
    ],
)
def test_what_is_not_of_vaults_api_is_no_success(answer: bytes) -> None:
    found = failure(answer)
    assert found.status == 0
    assert found.http_status // 100 == 2
    assert "expected JSON of Vault's API" in str(found)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 503])
def test_a_proxys_status_is_none_of_vaults(status: int) -> None:
    for body, kind in ((b"<html>", "text/html"), (b'{"message":"no"}', "")):
        found = failure(json_answer(body, status, kind=kind))
        assert (found.status, found.http_status) == (0, status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_not_followed(status: int) -> None:
    answer = json_answer(b"", status, ["Location: http://127.0.0.1:1/v1/x"])
    assert "redirects to 'http://127.0.0.1:1/v1/x'" in str(failure(answer))


def test_status_errors_pause_and_request_are_kept() -> None:
    content = {"errors": ["one", "two"], "request_id": "abc"}
    found = failure(json_answer(json.dumps(content).encode(), 429, ["Retry-After: 7"]))
    assert (found.status, found.errors) == (429, ("one", "two"))
    assert (found.retry_after, found.request_id) == (7.0, "abc")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("1000000000", 3600),
        ("9" * 5000, 3600),
        ("-7", 0),
        ("soon", 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 3600),
        ("Fri, 01 Jan 1999 00:00:00 GMT", 0),
        ("Fri, 01 Jan 99999999 00:00:00 GMT", 0),
        ("Fri, 01 Jan 2100 00:00:00 +999999999999", 0),
    ],
)
def test_a_pause_is_finite(value: str, seconds: float) -> None:
    answer = json_answer(b'{"errors":[]}', 429, [f"Retry-After: {value}"])
    assert failure(answer).retry_after == seconds


@pytest.mark.parametrize("status", [200, 400, 403, 500, 307])
def test_no_error_tells_a_secret_or_controls_a_terminal(status: int) -> None:
    echo = f"{_TOKEN} jwt-hidden \x1b[2J \n end"
    body = json.dumps({"errors": [echo], "request_id": echo}).encode()
    plain = echo.replace("\n", "")
    for answer in (
        json_answer(body, status),
        json_answer(b"", status, [f"Location: {plain}"], kind=plain),
    ):
        if status == 200 and answer.endswith(body):
            continue  # it is a success
        found = failure(answer, jwt="jwt-hidden")
        told = f"{found} {found.errors} {found.request_id}"
        told += error_of(found, signs=False).detail
        assert "hidden" not in told
        assert str(found).isprintable()


@pytest.mark.parametrize("attempt", ["", "0" * 32])
def test_the_headers_say_who_asks_and_for_which_attempt(attempt: str) -> None:
    with (
        ScriptedServer(answering(OK)) as server,
        adapter(server.url, namespace="one/two", attempt=attempt) as one,
    ):
        one.post("/v1/x", json={"a": "b"})
    (sent,) = server.requests
    head, _, body = sent.partition(b"\r\n\r\n")
    assert body == b'{"a": "b"}'
    lines = head.decode().split("\r\n")
    assert f"X-Vault-Token: {_TOKEN}" in lines
    assert "X-Vault-Namespace: one/two" in lines
    assert "Content-Type: application/json" in lines
    assert (f"X-Meshca-Attempt: {attempt}" in lines) is bool(attempt)


def first_and_second(script: Script) -> tuple[object, int]:
    # What a call ends with, and how often the second address was asked.
    with ExitStack() as stack:
        first = stack.enter_context(ScriptedServer(script))
        second = stack.enter_context(ScriptedServer(answering(OK)))
        one = stack.enter_context(adapter(first.url, second.url, seconds=0.5))
        try:
            found: object = one.post("/v1/x", json={})
        except VaultError as error:
            found = error
        return found, len(second.requests)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(_SEALED, id="sealed"),
        pytest.param(json_answer(b'{"errors":["x"]}', 473), id="473"),
        pytest.param(json_answer(b'{"errors":["x"]}', 501), id="not initialised"),
        pytest.param(json_answer(b"", 307, ["Location: /"]), id="a standby"),
    ],
)
def test_a_node_that_says_it_cannot_is_passed_over(answer: bytes) -> None:
    assert first_and_second(answering(answer)) == ({}, 1)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(silent, id="no answer"),
        pytest.param(saying(b""), id="cut"),
        pytest.param(answering(json_answer(b"no", 503, kind="text/html")), id="proxy"),
        pytest.param(answering(json_answer(b'{"message":"x"}', 503)), id="gateway"),
        pytest.param(answering(json_answer(b'{"errors":["x"]}', 500)), id="500"),
        pytest.param(answering(json_answer(b'{"errors":["x"]}', 403)), id="403"),
        pytest.param(answering(json_answer(b'{"errors":["x"]}', 429)), id="429"),
    ],
)
def test_what_may_have_been_served_is_not_asked_for_twice(script: Script) -> None:
    found, asked = first_and_second(script)
    assert isinstance(found, VaultError)
    assert asked == 0


@pytest.mark.parametrize("script", [saying(b""), answering(_SEALED)])
def test_the_next_call_begins_where_the_last_one_was_served(script: Script) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(ScriptedServer(script))
        second = stack.enter_context(ScriptedServer(answering(OK)))
        one = stack.enter_context(adapter(first.url, second.url))
        try:
            one.post("/v1/x")
        except NoAnswerError as error:
            assert error.is_sent  # noqa: PT017 - only one of the scripts raises
        assert one.post("/v1/x") == {}
        assert len(first.requests) == 1


def test_an_address_where_nobody_listens_is_passed_over() -> None:
    with (
        ScriptedServer(answering(OK)) as server,
        adapter(f"http://127.0.0.1:{netports.reserve()}", server.url) as one,
    ):
        assert one.get("/v1/x") == {}


@pytest.mark.parametrize(
    ("date", "low", "high"),
    [
        ("Mon, 01 Jan 0001 00:00:00 GMT", -1e8, -1e8),
        ("Fri, 31 Dec 9999 00:00:00 GMT", 1e8, 1e8),
    ],
)
def test_a_clock_that_is_none_gives_a_bounded_skew(
    date: str, low: float, high: float
) -> None:
    answer = json_answer(b"{}", headers=[f"Date: {date}"])
    with ScriptedServer(answering(answer)) as server:
        servers = Servers([Connections(server.url, None)])
        VaultAdapter(servers, time.monotonic() + 10).get("/v1/x")
        assert servers.skew_seconds is not None
        assert low <= servers.skew_seconds <= high
        servers.close()


_PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 503 \r\n",
        b"HTTP/1.1 103 \r\n",
        b"HTTP/1.0 500 x\r\n",
        b"Content-Type: application/json\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Retry-After: 99999999999999999999\r\n",
        b"Date: Mon, 01 Jan 0001 00:00:00 +9999\r\n",
        b"\r\n",
        b"5\r\n",
        b'{"errors":[null,{"a":1}]}',
        b'{"data":"\\ud800"}',
        b"0\r\n\r\n",
    ]
)


@given(st.lists(_PIECES | st.binary(max_size=20), max_size=12).map(b"".join))
def test_whatever_comes_is_an_answer_or_an_error_of_the_contract(said: bytes) -> None:
    with ScriptedServer(saying(said)) as server, adapter(server.url) as one:
        began = time.monotonic()
        found: object
        try:
            found = one.post("/v1/x", json={})
        except VaultError as error:
            found = error_of(error, signs=True)
        assert isinstance(found, dict | BackendError)
        assert time.monotonic() - began < 5
