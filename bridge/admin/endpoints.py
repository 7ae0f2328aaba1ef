"""Health and metrics over HTTP, on `admin.listen`.

The pages show names, counts and reasons. They take no input and need no authentication:
by default the address is on the loopback interface.

One event loop holds all connections, so that one that sends slowly costs no thread. A
few threads make the pages of requests that are complete.
"""

import asyncio
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from bridge.errors import ConfigError
from bridge.system.background import SteadyPool
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

_REQUEST_SECONDS = 2.0
"""The longest from the begin of a connection to the end of its request's headers."""
_REPLY_SECONDS = 10.0
"""The longest that making and sending a page may take."""
_LONGEST_REQUEST = 8 * 1024
_MOST_CONNECTIONS = 256
"""A further connection ends the oldest one, which had its time or sends slowly, or does
not read its page."""
_PAGE_THREADS = 4
_BACKLOG = 1024
_CUT_SECONDS = 0.5
"""How long the end waits for pages that are being made."""
_PATH = re.compile(r"(?<![\w:/.])/(?:[^\s/:;,'\"()]+/)+([^\s/:;,'\"()]+)")
"""An absolute path of a file; no URL and no SPIFFE ID."""
_METHODS = frozenset({"GET", "HEAD"})
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


_Page = tuple[HTTPStatus, str, bytes]
"""Status, content type and body."""


@dataclass(frozen=True, slots=True)
class _Request:
    # The first line of a request; an empty method stands for what is none.
    method: str
    path: str
    is_long: bool = False


class Admin:
    """Serves /healthz, /readyz, /metrics, and Linkerd's /ping and /ready.

    Args:
        listen: `host:port`, where port 0 takes a free one, or `unix:PATH`.
        views: The functions behind the pages.

    Raises:
        ConfigError: The address cannot be listened on.
    """

    def __init__(self, listen: str, views: Views) -> None:
        self._path = (
            Path(listen.removeprefix(UNIX)) if listen.startswith(UNIX) else None
        )
        try:
            self._socket = _listening(listen, self._path)
        except OSError as error:
            told = f"admin.listen: cannot listen on {listen}: {error.strerror or error}"
            if self._path is None:
                told = refusal("admin.listen", listen, error)
            raise ConfigError(told) from error
        try:
            self._loop = asyncio.new_event_loop()
        except OSError as error:
            self._socket.close()
            reason = error.strerror or str(error)
            raise ConfigError(f"admin.listen: cannot be served: {reason}") from error
        self.address = _address_of(self._socket, self._path)
        """`host:port` as bound, or `unix:PATH`."""
        self._views = views
        self._pages = SteadyPool(_PAGE_THREADS, "page")
        self._ending = asyncio.Event()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        # A daemon: a view that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="admin", daemon=True)

    def start(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        self._pages.start()
        self._thread.start()

    def close(self) -> None:
        """Stop serving, and release the address. Repeatable, also before `start`."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()
        elif not self._loop.is_closed():
            self._loop.close()
        self._pages.close(_CUT_SECONDS)
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        # A lack of descriptors ends nothing here: asyncio accepts again after a second.
        server = await asyncio.start_server(
            self._accepted, sock=self._socket, limit=_LONGEST_REQUEST, backlog=_BACKLOG
        )
        await self._ending.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # No coroutine: a connection's task that was cancelled would be an error in the
        # log of asyncio (Python 3.11).
        self._make_room()
        task = self._loop.create_task(self._connected(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        writer = self._open.pop(task, None)
        if writer is None:  # it made room
            return
        # Not `close`: that would wait for a peer that reads nothing.
        if writer.transport.get_write_buffer_size():
            writer.transport.abort()
        else:
            writer.close()

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            request = await asyncio.wait_for(_request(reader), _REQUEST_SECONDS)
            reply = self._reply(writer, request)
            await asyncio.wait_for(reply, _REPLY_SECONDS)
        except (TimeoutError, OSError, EOFError):
            _log.debug("a connection of the admin address ended without its page")

    def _make_room(self) -> None:
        # The oldest first, in the order of the dictionary.
        while len(self._open) >= _MOST_CONNECTIONS:
            task, writer = next(iter(self._open.items()))
            del self._open[task]
            writer.transport.abort()
            task.cancel()

    async def _reply(self, writer: asyncio.StreamWriter, request: _Request) -> None:
        try:
            page = await self._loop.run_in_executor(
                self._pages, _page, self._views, request
            )
        except Exception:  # noqa: BLE001 - a view that fails has its answer as well
            _log.exception("a page of the admin address failed")
            page = HTTPStatus.INTERNAL_SERVER_ERROR, _PLAIN, b"internal error\n"
        # Then `drain` waits until the system has taken all of it.
        writer.transport.set_write_buffer_limits(0)
        writer.write(_encoded(*page, with_body=request.method != "HEAD"))
        await writer.drain()


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


def _listening(listen: str, path: Path | None) -> socket.socket:
    if path is None:
        host, port = split_address(listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # For the parent of a worker. No other user may open the folder of the socket.
    opened = socket.socket(socket.AF_UNIX)
    try:
        opened.bind(str(path))
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _address_of(opened: socket.socket, path: Path | None) -> str:
    if path is not None:
        return f"{UNIX}{path}"
    host, port = opened.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _request(reader: asyncio.StreamReader) -> _Request:
    try:
        text = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return _Request("", "", is_long=True)
    words = text.partition(b"\r\n")[0].decode("latin-1").split(" ")
    match words:
        case [method, path, version] if version.startswith("HTTP/1."):
            return _Request(method, path.partition("?")[0])
    return _Request("", "")


def _page(views: Views, request: _Request) -> _Page:
    if request.is_long:
        text = b"a request has at most 8 KiB\n"
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _PLAIN, text
    if not request.method:
        return HTTPStatus.BAD_REQUEST, _PLAIN, b"this is no request of HTTP/1.1\n"
    if request.method not in _METHODS:
        return HTTPStatus.METHOD_NOT_ALLOWED, _PLAIN, b"GET and HEAD only\n"
    make = _PAGES.get(request.path)
    if make is None:
        pages = b"there are /healthz, /readyz, /ping, /ready and /metrics\n"
        return HTTPStatus.NOT_FOUND, _PLAIN, pages
    return make(views)


def _readyz(views: Views) -> _Page:
    state = views.readiness()
    status = HTTPStatus.OK if state["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
    text = json.dumps(_without_folders(state), indent=2)
    return status, _JSON, text.encode() + b"\n"


def _without_folders(value: object) -> object:
    # Whoever reaches the page learns which file is meant, and not where it is. The log
    # has the whole path.
    if isinstance(value, Mapping):
        return {key: _without_folders(one) for key, one in value.items()}
    return _PATH.sub(r"\1", value) if isinstance(value, str) else value


def _ready(views: Views) -> _Page:
    if views.readiness()["ready"]:
        return HTTPStatus.OK, _PLAIN, b"ok\n"
    return HTTPStatus.INTERNAL_SERVER_ERROR, _PLAIN, b"not ready\n"


def _metrics(views: Views) -> _Page:
    body, kind = views.metrics()
    return HTTPStatus.OK, kind, body


_PAGES: Mapping[str, Callable[[Views], _Page]] = {
    "/healthz": lambda _: (HTTPStatus.OK, _PLAIN, b"alive\n"),
    "/readyz": _readyz,
    "/metrics": _metrics,
    # These two answer exactly as Linkerd's, for Linkerd's tools.
    "/ping": lambda _: (HTTPStatus.OK, _PLAIN, b"pong\n"),
    "/ready": _ready,
}


def _encoded(status: HTTPStatus, kind: str, body: bytes, *, with_body: bool) -> bytes:
    headers = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Server: meshca",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append("Allow: GET, HEAD")
    head = "\r\n".join([*headers, "", ""]).encode("latin-1")
    return head + body if with_body else head
