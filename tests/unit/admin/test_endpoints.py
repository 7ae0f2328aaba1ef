import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.admin.endpoints import PARTS, Admin, Views, readiness, split_address
from bridge.errors import ConfigError
from tests.support.harness.in_process_server import WAIT_SECONDS, Served


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
