"""A client for one API server: small requests on pooled connections, each with an end.

It asks for reviews, one a call of the bridge, so it does little: it keeps connections,
bounds the calls in flight, and holds each to its deadline whatever the server does.
"""

import http.client
import io
import json
import select
import socket
import ssl
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bridge.errors import ConfigError, ReviewError
from bridge.kubernetes.credentials import Credentials
from bridge.resilience.budget import Budget
from bridge.resilience.bulkhead import STALL_SECONDS, Bulkhead

_LARGEST = 1 << 20
_IDLE_SECONDS = 30.0
"""A connection that is idle for longer is not used again: the server, or what stands
between, may be closing it."""
_MADE = (http.client.OK, http.client.CREATED)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: str
    body: bytes
    keeps: bool


class APIServer:
    """The API server of one cluster. Safe between threads; asks nothing by itself.

    Args:
        url: `https://HOST`, or with a port.
        credentials: What is shown to it, and what is trusted.
        seconds: The longest that one request may take.
        calls: How many requests may be in flight.
    """

    def __init__(
        self, url: str, credentials: Credentials, *, seconds: float, calls: int
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        is_v6 = ":" in self._host
        self._place = f"[{self._host}]" if is_v6 else self._host
        self._place += f":{self._port}"
        self._credentials = credentials
        self._seconds = seconds
        self._idle: deque[_Connection] = deque()
        self._calls = _CallsInFlight()
        self._bulkhead = Bulkhead(calls, self._calls.are_stalled)
        self._closed = False

    def post(
        self, path: str, body: Mapping[str, object], budget: Budget
    ) -> Mapping[str, Any]:
        """Make an object, and return it as the server answers it.

        Args:
            path: Of the resource.
            body: Of the object.
            budget: What is left of the call's time.

        Raises:
            ReviewError: There is no answer, or it is none that helps. The rule says
                which; the detail is for operators.
        """
        until = time.monotonic() + min(self._seconds, budget.part())
        if not self._bulkhead.enter(until):
            raise ReviewError(
                "too many reviews wait for the API server of this cluster",
                rule="review.busy",
                detail=self._shown("its answers are overdue"),
            )
        try:
            with self._calls:
                return self._posted(path, json.dumps(body).encode(), until)
        finally:
            self._bulkhead.leave()

    def close(self) -> None:
        """Close the idle connections; those in use close when their call ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _posted(self, path: str, body: bytes, until: float) -> Mapping[str, Any]:
        try:
            token = self._credentials.token()
            answer = self._exchange(path, body, token, until)
            if answer.status == http.client.UNAUTHORIZED and token:
                # The file may have another one by now. What was refused was not done.
                fresh = self._credentials.token(refused=token)
                if fresh != token:
                    answer = self._exchange(path, body, fresh, until)
        except ConfigError as error:
            raise ReviewError(
                "the credentials for the API server of this cluster cannot be used",
                rule="review.credential",
                detail=self._shown(str(error)),
            ) from error
        except TimeoutError as error:
            raise ReviewError(
                "the API server of this cluster does not answer in time",
                rule="review.timeout",
                detail=self._shown(str(error) or "no answer"),
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ReviewError(
                "the API server of this cluster cannot be asked",
                rule="review.unavailable",
                detail=self._shown(str(error) or type(error).__name__),
            ) from error
        return self._read(answer)

    def _exchange(self, path: str, body: bytes, token: str, until: float) -> _Answer:
        request = self._request(path, body, token)
        connection = self._pooled()
        if connection is not None:
            try:
                connection.send(request, until)
            except OSError:
                # The server had closed it, and the request did not go out.
                connection.close()
                connection = None
        if connection is None:
            connection = _Connection.open(
                self._host, self._port, self._credentials.context(), until
            )
            try:
                connection.send(request, until)
            except BaseException:
                connection.close()
                raise
        try:
            answer = connection.receive(until)
        except BaseException:
            connection.close()
            raise
        if answer.keeps and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _pooled(self) -> "_Connection | None":
        # The last one in first: those that a quiet time leaves over grow old.
        context = self._credentials.context()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_usable(context):
                return connection
            connection.close()

    def _request(self, path: str, body: bytes, token: str) -> bytes:
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._place}\r\n"
            f"{authorization}Accept: application/json\r\n"
            "Content-Type: application/json\r\nUser-Agent: meshca-bridge\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body

    def _read(self, answer: _Answer) -> Mapping[str, Any]:
        if answer.status not in _MADE:
            raise self._failed(answer)
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ReviewError(
                "the answer of the API server of this cluster cannot be read",
                rule="review.answer",
                detail=self._shown("expected a JSON object"),
            )
        return found

    def _failed(self, answer: _Answer) -> ReviewError:
        rule, text = _STATUSES.get(answer.status, _OTHER)
        said = f"HTTP status {answer.status}"
        if answer.retry_after:
            said += f", Retry-After {answer.retry_after}"
        if message := _message(answer.body):
            said += f": {message}"
        return ReviewError(text, rule=rule, detail=self._shown(said))

    def _shown(self, reason: str) -> str:
        return f"https://{self._place}: {reason[:300]}"


_REFUSED = "the API server of this cluster lets the bridge review no tokens"
_STATUSES = {
    http.client.UNAUTHORIZED: ("review.credential", _REFUSED),
    http.client.FORBIDDEN: ("review.rights", _REFUSED),
    http.client.TOO_MANY_REQUESTS: (
        "review.throttled",
        "the API server of this cluster asks for fewer reviews",
    ),
}
_OTHER = ("review.failed", "the API server of this cluster could not review the token")


class _CallsInFlight:
    # Whether the server answers: a context manager around each call.
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._moved_at = 0.0

    def __enter__(self) -> Self:
        with self._lock:
            if not self._count:
                self._moved_at = time.monotonic()
            self._count += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            self._moved_at = time.monotonic()

    def are_stalled(self) -> bool:
        with self._lock:
            waited = time.monotonic() - self._moved_at
            return self._count > 0 and waited > STALL_SECONDS


class _Connection:
    # One connection, for one call at a time.
    def __init__(self, sock: ssl.SSLSocket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._context = context
        self._used_at = time.monotonic()

    @classmethod
    def open(
        cls, host: str, port: int, context: ssl.SSLContext, until: float
    ) -> "_Connection":
        plain = socket.create_connection((host, port), _left(until))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(_left(until))
            return cls(context.wrap_socket(plain, server_hostname=host), context)
        except BaseException:
            plain.close()
            raise

    def is_usable(self, context: ssl.SSLContext) -> bool:
        # Whatever there is to read is no answer of ours: the server is closing.
        if context is not self._context:
            return False
        if time.monotonic() - self._used_at > _IDLE_SECONDS:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def send(self, request: bytes, until: float) -> None:
        self._sock.settimeout(_left(until))
        self._sock.sendall(request)

    def receive(self, until: float) -> _Answer:
        # Its constructor needs `makefile` and nothing else of a socket.
        timed: Any = _Timed(self._sock, until)
        answer = http.client.HTTPResponse(timed, method="POST")
        with answer:
            answer.begin()
            body = answer.read(_LARGEST + 1)
            if len(body) > _LARGEST:
                raise ValueError(f"the answer has more than {_LARGEST} bytes")
            if answer.length:
                raise http.client.IncompleteRead(body)
            self._used_at = time.monotonic()
            return _Answer(
                answer.status,
                (answer.headers.get("Retry-After") or "")[:40],
                body,
                not answer.will_close,
            )

    def close(self) -> None:
        self._sock.close()


class _Timed(io.RawIOBase):
    # A socket to read from, up to one moment: a timeout of its own would hold for each
    # read, and a server that sends a byte at a time would never meet it.
    def __init__(self, sock: ssl.SSLSocket, until: float) -> None:
        self._sock = sock
        self._until = until

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._until))
        return self._sock.recv_into(buffer)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


def _message(body: bytes) -> str:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    said = found.get("message") if isinstance(found, dict) else None
    return said if isinstance(said, str) else ""
