"""Reading keys from files and servers, the misbehaving ones included."""

import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from bridge.errors import BackendUnavailableError, ConfigError
from bridge.identity import key_sources
from bridge.identity.key_sources import KeyFile, URLSource
from tests.support.parts.keyserver import DISCOVERY_PATH, JWKS_PATH, KeyServer

SET = b'{"keys": []}'


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KeyServer]:
    with KeyServer(tmp_path) as running:
        yield running


def by_url(server: KeyServer, seconds: float = 5.0) -> URLSource:
    return URLSource(server.jwks_url, "", server.ca_file, seconds)


def by_discovery(server: KeyServer) -> URLSource:
    return URLSource("", server.url, server.ca_file)


def test_a_url_is_read(server: KeyServer) -> None:
    server.answers[JWKS_PATH] = (200, {}, SET)
    assert by_url(server).read() == SET


def test_discovery_says_where(server: KeyServer) -> None:
    server.show({"issuer": server.url, "jwks_uri": server.jwks_url}, DISCOVERY_PATH)
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
    with pytest.raises(BackendUnavailableError, match="cannot be fetched") as caught:
        source.read()
    assert detail in caught.value.detail


def test_a_redirect_on_the_same_host_is_followed(server: KeyServer) -> None:
    server.answers[JWKS_PATH] = (302, {"Location": "/moved"}, b"")
    server.answers["/moved"] = (200, {}, SET)
    assert by_url(server).read() == SET


def test_a_server_that_never_answers_costs_only_the_limit(server: KeyServer) -> None:
    server.gate.clear()
    source = by_url(server, 0.05)
    with pytest.raises(BackendUnavailableError, match="cannot be fetched"):
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
    source = URLSource(server.jwks_url, "")
    with pytest.raises(BackendUnavailableError, match="cannot be fetched") as caught:
        source.read()
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.detail
    assert server.requests == []


def test_a_key_server_under_another_name_is_refused(server: KeyServer) -> None:
    url = server.jwks_url.replace("127.0.0.1", "localhost")
    source = URLSource(url, "", server.ca_file)
    with pytest.raises(BackendUnavailableError, match="cannot be fetched"):
        source.read()


def test_a_url_without_a_server_is_unavailable() -> None:
    source = URLSource("https://127.0.0.1:1/jwks", "")
    with pytest.raises(BackendUnavailableError, match="cannot be fetched"):
        source.read()


def test_trust_anchors_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"ca\.pem: cannot be read: No such file"):
        URLSource("https://127.0.0.1:1/jwks", "", path)
    path.write_text("junk")
    with pytest.raises(ConfigError, match="not PEM certificates"):
        URLSource("https://127.0.0.1:1/jwks", "", path)


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
