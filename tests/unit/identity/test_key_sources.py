"""Reading keys from files and servers, the misbehaving ones included."""

import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from bridge.errors import ConfigError, ReviewError
from bridge.identity import key_sources
from bridge.identity.key_sources import KeyFile, URLSource
from tests.support.parts.keyserver import DISCOVERY_PATH, JWKS_PATH, KeyServer
from tests.support.parts.pki import new_root
from tests.support.parts.token_reviews import ReviewServer, saying

SET = b'{"keys": []}'
OLD_ISSUER = "https://old.example"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KeyServer]:
    with KeyServer(tmp_path) as running:
        yield running


def by_url(server: KeyServer, seconds: float = 5.0) -> URLSource:
    return URLSource(server.jwks_url, (), ca_file=server.ca_file, seconds=seconds)


def by_discovery(server: KeyServer) -> URLSource:
    return URLSource("", (server.url, OLD_ISSUER), ca_file=server.ca_file)


def test_a_url_is_read(server: KeyServer) -> None:
    server.answers[JWKS_PATH] = (200, {}, SET)
    assert by_url(server).read() == SET


@pytest.mark.parametrize("names", ["the current issuer", "the other one"])
def test_discovery_says_where(server: KeyServer, names: str) -> None:
    issuer = server.url if names == "the current issuer" else OLD_ISSUER
    server.show({"issuer": issuer, "jwks_uri": server.jwks_url}, DISCOVERY_PATH)
    server.answers[JWKS_PATH] = (200, {}, SET)
    assert by_discovery(server).read() == SET
    assert server.requests == [DISCOVERY_PATH, JWKS_PATH]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"issuer": "https://evil.example"}, "expected the issuer"),
        ({"issuer": None}, "expected the issuer"),
        ({"jwks_uri": "http://127.0.0.1/"}, "https://"),
        ({"jwks_uri": "file:///etc/passwd"}, "https://"),
        ({"jwks_uri": None}, "https://"),
    ],
)
def test_discovery_of_something_else_is_refused(
    server: KeyServer, changes: dict[str, object], match: str
) -> None:
    document = {"issuer": server.url, "jwks_uri": server.jwks_url} | changes
    server.show(document, DISCOVERY_PATH)
    source = by_discovery(server)
    with pytest.raises(ConfigError, match=match):
        source.read()
    assert server.requests == [DISCOVERY_PATH]


def test_discovery_that_is_no_json_is_refused(server: KeyServer) -> None:
    server.answers[DISCOVERY_PATH] = (200, {}, b"<html>")
    source = by_discovery(server)
    with pytest.raises(ConfigError, match="expected JSON"):
        source.read()


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ((404, {}, b""), "404"),
        ((500, {}, SET), "500"),
        ((200, {}, b" " * (1024 * 1024 + 1)), "1048576"),
        ((200, {"Content-Length": "100"}, SET), "IncompleteRead"),
        ((302, {"Location": "https://localhost:1/jwks"}, b""), "302"),
        ((302, {"Location": "http://127.0.0.1:1/jwks"}, b""), "302"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "302"),
        ((302, {"Location": JWKS_PATH}, b""), "302"),
    ],
)
def test_an_answer_that_is_none(
    server: KeyServer, answer: tuple[int, dict[str, str], bytes], detail: str
) -> None:
    server.answers[JWKS_PATH] = answer
    source = by_url(server)
    with pytest.raises(ReviewError, match="cannot be fetched") as caught:
        source.read()
    assert detail in caught.value.detail


def test_what_a_key_server_says_is_one_line_of_the_log(tmp_path: Path) -> None:
    with ReviewServer(tmp_path) as server, server.ending_after(60):
        server.fault = saying(b"no\r2026-11-29 INFO forged\x1b[2J\r\n")
        source = URLSource(server.url + JWKS_PATH, (), ca_file=server.ca_file)
        with pytest.raises(ReviewError, match="cannot be fetched") as caught:
            source.read()
    assert "forged" in caught.value.detail
    assert caught.value.detail.isprintable()


def test_a_redirect_on_the_same_host_is_followed(server: KeyServer) -> None:
    server.answers[JWKS_PATH] = (302, {"Location": "/moved"}, b"")
    server.answers["/moved"] = (200, {}, SET)
    assert by_url(server).read() == SET


def test_a_server_that_never_answers_costs_only_the_limit(server: KeyServer) -> None:
    server.gate.clear()
    source = by_url(server, 0.05)
    with pytest.raises(ReviewError, match="cannot be fetched"):
        source.read()


def test_an_answer_in_drips_meets_the_limit_too() -> None:
    class Drip:
        def read1(self, _: int) -> bytes:
            return b"{"

    dripping = cast("http.client.HTTPResponse", Drip())
    with pytest.raises(TimeoutError, match="too long"):
        key_sources._body(dripping, time.monotonic() - 1)


def test_a_key_server_under_another_trust_anchor_is_refused(server: KeyServer) -> None:
    server.answers[JWKS_PATH] = (200, {}, SET)
    source = URLSource(server.jwks_url, ())
    with pytest.raises(ReviewError, match="cannot be fetched") as caught:
        source.read()
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.detail
    assert server.requests == []


def test_a_key_server_under_another_name_is_refused(server: KeyServer) -> None:
    url = server.jwks_url.replace("127.0.0.1", "localhost")
    source = URLSource(url, (), ca_file=server.ca_file)
    with pytest.raises(ReviewError, match="cannot be fetched"):
        source.read()


def test_a_url_without_a_server_is_unavailable() -> None:
    source = URLSource("https://127.0.0.1:1/jwks", ())
    with pytest.raises(ReviewError, match="cannot be fetched"):
        source.read()


def test_trust_anchors_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"ca\.pem: cannot be read: No such file"):
        URLSource("https://127.0.0.1:1/jwks", (), ca_file=path)
    path.write_text("junk")
    with pytest.raises(ConfigError, match="not PEM certificates"):
        URLSource("https://127.0.0.1:1/jwks", (), ca_file=path)


def with_token(server: KeyServer, path: Path, url: str = "") -> URLSource:
    issuers, ca_file = (server.url,), server.ca_file
    return URLSource(url, issuers, ca_file=ca_file, token_file=path)


def test_a_token_is_shown_and_read_for_each_request(
    server: KeyServer, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("e30.e30.a-_=\n")
    server.bearer = "e30.e30.a-_="
    server.show({"issuer": server.url, "jwks_uri": server.url + "/x"}, DISCOVERY_PATH)
    server.answers["/x"] = (302, {"Location": JWKS_PATH}, b"")
    server.answers[JWKS_PATH] = (200, {}, SET)
    source = with_token(server, path)
    assert source.read() == SET
    server.bearer = "e30.e30.new"
    path.write_text("e30.e30.new")
    assert source.read() == SET
    assert server.requests == [DISCOVERY_PATH, "/x", JWKS_PATH] * 2


# The token that is shown, and what the message says of a server that wants another.
REFUSED_TOKENS = [
    ("", 403, "HTTP status 403: it asks for a token: see tokens.token_file"),
    ("e30.e30.a", 401, "HTTP status 401: it refuses the token of token_file: is its"),
]


@pytest.mark.parametrize(("shown", "status", "says"), REFUSED_TOKENS)
def test_a_server_that_refuses_says_what_to_do_about_the_token(
    server: KeyServer, tmp_path: Path, shown: str, status: int, says: str
) -> None:
    path = tmp_path / "token"
    path.write_text(shown)
    server.bearer = "e30.e30.other"
    server.answers[JWKS_PATH] = (200, {}, SET)
    source = by_url(server)
    if shown:
        source = with_token(server, path, server.jwks_url)
    with pytest.raises(ReviewError, match="cannot be fetched") as caught:
        source.read()
    assert caught.value.detail.startswith(f"{server.jwks_url}: {says}")
    assert f"status {status}" in caught.value.detail


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "token: cannot be read: No such file"),
        (b"", "token: expected one token and nothing else"),
        (b"SECRET a\n", "token: expected one token and nothing else"),
        (b"SECRET\n\nSECRET\n", "token: expected one token and nothing else"),
        (b"SECRET\xe9", "token: expected one token and nothing else"),
        (b"SECRET\x00", "token: expected one token and nothing else"),
    ],
)
def test_a_token_file_without_a_token_is_refused_and_not_shown(
    server: KeyServer, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    source = with_token(server, path, server.jwks_url)
    with pytest.raises(ConfigError, match=says) as caught:
        source.read()
    assert "SECRET" not in str(caught.value)
    assert server.requests == []


def test_changed_trust_anchors_are_read_again(
    server: KeyServer, tmp_path: Path
) -> None:
    server.answers[JWKS_PATH] = (200, {}, SET)
    path = tmp_path / "ca.pem"
    path.write_bytes(new_root().pem)
    source = URLSource(server.jwks_url, (), ca_file=path)
    with pytest.raises(ReviewError, match="cannot be fetched"):
        source.read()
    path.write_bytes(server.ca_file.read_bytes())
    assert source.read() == SET
    path.write_text("junk")
    for _ in range(2):
        with pytest.raises(ConfigError, match="not PEM certificates"):
            source.read()


def test_a_file_tells_that_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(SET)
    source = KeyFile(path)
    assert source.changed()
    assert source.read() == SET
    assert not source.changed()
    stat = path.stat()
    new = tmp_path / "new"
    new.write_bytes(SET[::-1])
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.rename(path)  # same size and time: only the inode tells
    assert source.changed()
    assert source.read() == SET[::-1]
    path.unlink()
    assert source.changed()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = KeyFile(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot be read"):
        missing.read()
    folder = KeyFile(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        folder.read()
    large = tmp_path / "large"
    large.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="at most"):
        KeyFile(large).read()
