"""Health and metrics over HTTP, on `admin.listen`.

The pages show names, counts and reasons. They take no input and need no authentication:
by default the address is on the loopback interface.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from bridge.errors import ConfigError
from bridge.system.ports import refusal

PARTS = (
    "configuration",
    "ledger",
    "listeners",
    "issuing CAs",
    "token keys",
    "serving certificate",
)
"""The parts of readiness. A key of `problems` begins with one of these, such as
`issuing CAs: seoul-1`."""

UNIX = "unix:"
"""The prefix of the address of a Unix socket."""

_TIMEOUT_SECONDS = 5.0
_JSON = "application/json"
_PLAIN = "text/plain"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Views:
    """The functions behind the pages, called for each request."""

    readiness: Callable[[], Mapping[str, object]]
    """Returns the content of /readyz; `ready` in it says whether the bridge is."""
    metrics: Callable[[], tuple[bytes, str]]
    """Returns the text of a scrape and its content type."""


class Admin:
    """Serves /healthz, /readyz, /metrics, and Linkerd's /ping and /ready.

    Args:
        listen: `host:port`, where port 0 takes a free one, or `unix:PATH`.
        views: The functions behind the pages.

    Raises:
        ConfigError: The address cannot be listened on.
    """

    def __init__(self, listen: str, views: Views) -> None:
        try:
            if listen.startswith(UNIX):
                self._server: _Server = _UnixServer(listen.removeprefix(UNIX), views)
            else:
                self._server = _Server(split_address(listen), views)
        except OSError as error:
            told = f"admin.listen: cannot listen on {listen}: {error.strerror or error}"
            if not listen.startswith(UNIX):
                told = refusal("admin.listen", listen, error)
            raise ConfigError(told) from error
        # 0.1 s between two looks whether to end.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="admin"
        )

    @property
    def address(self) -> str:
        """`host:port` as bound, or `unix:PATH`."""
        if isinstance(self._server, _UnixServer):
            return f"{UNIX}{self._server.path}"
        host, port = self._server.server_address[:2]
        text = host.decode() if isinstance(host, bytes | bytearray) else str(host)
        return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving, and release the address. Repeatable, also before `start`."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`; an IPv6 host stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def readiness(
    problems: Mapping[str, str],
    warnings: Mapping[str, str],
    parts: tuple[str, ...] = PARTS,
) -> dict[str, object]:
    """Return the content of /readyz: for each part `ok`, or why it is not."""
    fine = {
        part: "ok"
        for part in parts
        if not any(key.startswith(part) for key in problems)
    }
    return {
        "ready": not problems,
        "parts": fine | dict(problems),
        "warnings": dict(warnings),
    }


class _Server(ThreadingHTTPServer):
    # A peer that sends nothing must not keep the process from ending.
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], views: Views) -> None:
        self.views = views
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a request for the admin address failed", exc_info=True)


class _UnixServer(_Server):
    # For the parent of a worker. No other user may open the socket.
    address_family = socket.AF_UNIX

    def __init__(self, path: str, views: Views) -> None:
        self.views = views
        self.path = path
        ThreadingHTTPServer.__init__(self, path, _Handler)  # type: ignore[arg-type]  # a socket's path is its address

    def server_bind(self) -> None:
        # Not of HTTPServer, which would look up the name of a host.
        TCPServer.server_bind(self)

    def server_close(self) -> None:
        super().server_close()
        Path(self.path).unlink(missing_ok=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_SECONDS
    server_version = "meshca"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(*self._page())

    def do_HEAD(self) -> None:
        self._answer(*self._page())

    def _refuse(self) -> None:
        text = b"GET and HEAD only\n"
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, _PLAIN, text)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

    def _page(self) -> tuple[HTTPStatus, str, bytes]:
        views = self.server.views
        match self.path.partition("?")[0]:
            case "/healthz" | "/ping" as page:
                # /ping and /ready answer exactly as Linkerd's, for Linkerd's tools.
                alive = b"pong\n" if page == "/ping" else b"alive\n"
                return HTTPStatus.OK, _PLAIN, alive
            case "/readyz":
                state = views.readiness()
                status = (
                    HTTPStatus.OK if state["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
                )
                return status, _JSON, json.dumps(state, indent=2).encode() + b"\n"
            case "/ready":
                return _ready(is_ready=bool(views.readiness()["ready"]))
            case "/metrics":
                body, kind = views.metrics()
                return HTTPStatus.OK, kind, body
        pages = b"there are /healthz, /readyz, /ping, /ready and /metrics\n"
        return HTTPStatus.NOT_FOUND, _PLAIN, pages

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as above
        _log.debug(format, *args)


def _ready(*, is_ready: bool) -> tuple[HTTPStatus, str, bytes]:
    if is_ready:
        return HTTPStatus.OK, _PLAIN, b"ok\n"
    return HTTPStatus.INTERNAL_SERVER_ERROR, _PLAIN, b"not ready\n"
