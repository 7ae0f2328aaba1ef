"""An HTTP proxy on loopback that delays, trickles, cuts and alters on command.

It stands in front of one server and runs in the process of the test. A fault is a
function of an `Exchange`; those below are what a network, a load balancer or a server
in trouble does.
"""

import contextlib
import http.client
import json
import re
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

from tests.support.parts import netports

_CONNECT_SECONDS = 5.0
_END_SECONDS = 10.0
_HOP_BY_HOP = ("connection", "content-length", "transfer-encoding")
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends a reset."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the proxy has read to its end."""

    method: str
    path: str
    """With its query."""
    headers: Mapping[str, str]
    """Their names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body; None if there is none."""
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the server, or one in its place."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """Without `Content-Length`, which the proxy sets."""
    body: bytes = b""

    @classmethod
    def of(cls, status: int, *errors: str, **headers: str) -> "Answer":
        """Build a failure as Vault tells it; `Retry_After="1"` is a header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps({"errors": list(errors)}).encode()
        return cls(status, {"Content-Type": "application/json", **named}, body)

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Exchange:
    """One request and what becomes of it. A fault ends it by `send` or `cut`."""

    def __init__(
        self, link: "_Link", request: Request, lifted: threading.Event
    ) -> None:
        self.request = request
        self._link = link
        self._lifted = lifted

    def forward(self) -> Answer:
        """Have the server do it, and read its whole answer."""
        return self._link.forward(self.request)

    def send(self, answer: Answer, pause: float = 0.0) -> None:
        """Send an answer.

        Args:
            answer: What to send.
            pause: Seconds before each byte, until the fault is taken away.
        """
        data = _encode(answer)
        while pause and data and not self._lifted.wait(pause):
            self._link.client.sendall(data[:1])
            data = data[1:]
        self._link.client.sendall(data)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the fault is taken away, and no longer than so many seconds."""
        self._lifted.wait(seconds)

    def cut(self) -> None:
        """Close the connection."""
        self._link.stop()


Fault = Callable[[Exchange], None]


def delayed(seconds: float) -> Fault:
    """The server has done it; the answer comes later."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.wait(seconds)
        exchange.send(answer)

    return fault


def trickled(pause: float = 0.1) -> Fault:
    """The answer comes a byte at a time, with so many seconds before each."""
    return lambda exchange: exchange.send(exchange.forward(), pause)


def silent(*, forward: bool = False) -> Fault:
    """No answer comes, and the connection stays open until the fault is taken away.

    Args:
        forward: Whether the server does it.
    """

    def fault(exchange: Exchange) -> None:
        if forward:
            exchange.forward()
        exchange.wait()
        exchange.cut()

    return fault


def cut_before(exchange: Exchange) -> None:
    """Close the connection; the server knows nothing of the request."""
    exchange.cut()


def cut_after(exchange: Exchange) -> None:
    """Close the connection when the server has done it and answered."""
    exchange.forward()
    exchange.cut()


def altered(change: Callable[[Answer], Answer]) -> Fault:
    """The server has done it; another answer comes."""
    return lambda exchange: exchange.send(change(exchange.forward()))


def altered_data(**fields: object) -> Fault:
    """Set fields of `data` in the JSON of the answer."""

    def change(answer: Answer) -> Answer:
        content = answer.json
        content["data"] |= fields
        return replace(answer, body=json.dumps(content).encode())

    return altered(change)


def answered(answer: Answer) -> Fault:
    """Answer in place of the server, which knows nothing of the request."""
    return lambda exchange: exchange.send(answer)


def on(pattern: str) -> Callable[[Request], bool]:
    """Return whether a regular expression is found in `METHOD /path`."""
    expression = re.compile(pattern)
    return lambda request: bool(expression.search(f"{request.method} {request.path}"))


_ALL = on("")


class Rule:
    """A fault, and which requests meet it."""

    def __init__(
        self, fault: Fault, when: Callable[[Request], bool], times: int | None
    ) -> None:
        self.fault = fault
        self.when = when
        self.left = times
        self.lifted = threading.Event()
        self._met = threading.Semaphore(0)

    def meets(self, request: Request) -> bool:
        """Return whether this request meets the fault, and count it."""
        if self.left == 0 or not self.when(request):
            return False
        if self.left is not None:
            self.left -= 1
        self._met.release()
        return True

    def await_met(self, seconds: float = 10.0) -> None:
        """Wait until one more request has met it.

        Raises:
            TimeoutError: None did.
        """
        if not self._met.acquire(timeout=seconds):
            raise TimeoutError(f"no request met the fault in {seconds} s")


class FaultyProxy:
    """Hands on what it gets, but for what meets a fault. A context manager.

    Args:
        server: Its URL, without TLS.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        assert parts.scheme == "http"
        self.server = (str(parts.hostname), int(parts.port or 80))
        self.port = netports.reserve()
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[Request] = []
        """What was asked, oldest first."""
        self.connected = 0
        """How many connections were made to it."""
        self._rules: list[Rule] = []
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._close()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def put(
        self,
        fault: Fault,
        when: Callable[[Request], bool] = _ALL,
        times: int | None = None,
    ) -> Rule:
        """Let requests meet a fault; of several rules the oldest that fits holds.

        Args:
            fault: What happens.
            when: To which requests.
            times: To how many of them; None: until it is cleared.
        """
        rule = Rule(fault, when, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Take all faults away, also from requests that wait in one."""
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            rule.lifted.set()

    @contextlib.contextmanager
    def fault(
        self,
        fault: Fault,
        when: Callable[[Request], bool] = _ALL,
        times: int | None = None,
    ) -> Iterator[Rule]:
        """Let requests meet a fault inside the block; see `put`."""
        rule = self.put(fault, when, times)
        try:
            yield rule
        finally:
            with self._lock:
                self._rules.remove(rule)
            rule.lifted.set()

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """Refuse connections inside the block, and close those that there are."""
        self._close()
        try:
            yield
        finally:
            self._open()

    def drop(self, *, reset: bool = False) -> None:
        """Close the connections that there are.

        Args:
            reset: By a reset, as of a firewall that has forgotten them.
        """
        with self._lock:
            links = [*self._links]
        for link in links:
            link.stop(reset=reset)
        for link in links if reset else ():
            link.ended.wait(_END_SECONDS)

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests in whose `METHOD /path` the expression is found."""
        return list(filter(on(pattern), self.requests))

    def _open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._start(self._accept, self._listener)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing does not wake a thread that waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.drop()

    def _start(self, run: Callable[[Any], None], argument: object) -> None:
        thread = threading.Thread(target=run, args=(argument,), daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(client, self.server)
                with self._lock:
                    self.connected += 1
                    self._links.add(link)
                self._start(self._serve, link)

    def _serve(self, link: "_Link") -> None:
        try:
            while (request := link.read()) is not None:
                self._handle(link, request)
        except (OSError, http.client.HTTPException, ValueError):
            pass  # one of the ends has gone, which the other end is to see
        finally:
            link.close()
            with self._lock:
                self._links.discard(link)

    def _handle(self, link: "_Link", request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            rule = next((one for one in self._rules if one.meets(request)), None)
        if rule is None:
            link.client.sendall(_encode(link.forward(request)))
        else:
            rule.fault(Exchange(link, request, rule.lifted))


class _Link:
    """A connection of a client, and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: tuple[str, int]) -> None:
        self.client = client
        self._reader: BinaryIO = client.makefile("rb")
        self._server = http.client.HTTPConnection(*server)
        self._is_last = False
        self.ended = threading.Event()

    def read(self) -> Request | None:
        """Read the next request; None if an end has closed the connection."""
        if self._is_last or not self._await_request():
            return None
        start = self._reader.readline().decode("iso-8859-1").split()
        if len(start) != 3:
            return None
        parsed = http.client.parse_headers(self._reader)
        headers = {name.lower(): value for name, value in parsed.items()}
        body = self._reader.read(int(headers.get("content-length", "0")))
        return Request(start[0], start[1], headers, body)

    def forward(self, request: Request) -> Answer:
        """Have the server do it."""
        if self._server.sock is None:
            self._server.connect()
        self._server.putrequest(
            request.method, request.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            if name not in _HOP_BY_HOP:
                self._server.putheader(name, value)
        self._server.putheader("content-length", str(len(request.body)))
        self._server.endheaders(request.body)
        answer = self._server.getresponse()
        body = answer.read()
        self._is_last = self._is_last or answer.will_close
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in _HOP_BY_HOP
        }
        return Answer(answer.status, kept, body)

    def stop(self, *, reset: bool = False) -> None:
        """Have both ends see the end of the connection. Any thread may call it."""
        self._is_last = True
        server = self._server.sock
        with contextlib.suppress(OSError):
            if reset:
                # The thread that waits for the client wakes and closes it.
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                self.client.shutdown(socket.SHUT_RD)
            else:
                self.client.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            if server is not None:
                server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close both connections. Only for the thread that serves this one."""
        self._reader.close()
        self.client.close()
        self._server.close()
        self.ended.set()

    def _await_request(self) -> bool:
        """Wait for the client; a server that closes its end meanwhile ends this."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.client, selectors.EVENT_READ)
            if self._server.sock is not None:
                waiting.register(self._server.sock, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in waiting.select()]
        return self.client in ready


def _encode(answer: Answer) -> bytes:
    reason = http.client.responses.get(answer.status, "Other")
    lines = [f"HTTP/1.1 {answer.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += [f"Content-Length: {len(answer.body)}", "", ""]
    return "\r\n".join(lines).encode("iso-8859-1") + answer.body
