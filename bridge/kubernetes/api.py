"""A client for one API server: small requests on pooled connections, each with an end.

It asks for reviews, one a call of the bridge, so it does little: it keeps connections,
bounds the calls in flight, and holds each to its deadline whatever the server does. A
stream, as a watch is one, has a connection of its own and is no call in flight.
"""

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self, TypeVar

from bridge.errors import ConfigError, ReviewError
from bridge.kubernetes.credentials import Credentials, Shown
from bridge.kubernetes.stream import Stream
from bridge.resilience.budget import Budget
from bridge.resilience.bulkhead import STALL_SECONDS, Bulkhead
from bridge.system.http_client import HTTPAnswer, HTTPClient
from bridge.system.logs import on_one_line

_WAIT_SECONDS = 0.2
"""How long a call waits for others to end. It holds a thread, which calls of other
clusters may need, and its client asks again."""
_LOOK_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 60.0
"""The longest wait that an API server may ask for."""
_LATE = "review.timeout"
_DONE = (http.client.OK, http.client.CREATED)
_JSON = "application/json"
METADATA = (
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
)
METADATA_LIST = METADATA.replace("Metadata;", "MetadataList;")
"""What `Accept` says where the metadata of an object, or of a list, is enough."""

Query = Mapping[str, str | int]
T = TypeVar("T")


class APIServer:
    """The API server of one cluster. Safe between threads; asks nothing by itself.

    Args:
        credentials: Where it is, what is shown to it, and what is trusted.
        seconds: The longest that one request may take.
        calls: How many requests may be in flight.
        spare: Places for further ones, which API servers that answer share.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        seconds: float,
        calls: int,
        spare: threading.Semaphore | None = None,
    ) -> None:
        self._place = ""
        self._credentials = credentials
        self._seconds = seconds
        self._client = HTTPClient()
        self._calls = _CallsInFlight()
        self._bulkhead = Bulkhead(calls, self._calls.are_stalled, spare=spare)

    @property
    def url(self) -> str:
        """Where it was asked last; empty before the first time."""
        return f"https://{self._place}" if self._place else ""

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
        data = json.dumps(body).encode()
        return self._read(self._called(self._request("POST", path, data), budget))

    def get(
        self, path: str, query: Query, budget: Budget, *, accept: str = _JSON
    ) -> Mapping[str, Any] | None:
        """Return an object, or a list, as the server has it; None if it has none.

        Args:
            path: Of the object or the list.
            query: The parameters.
            budget: What is left of the call's time.
            accept: The form of the answer, for example `METADATA`.

        Raises:
            ReviewError: See `post`. A list has at most 1 MiB: set `limit`.
        """
        request = self._request("GET", _with_query(path, query), accept=accept)
        answer = self._called(request, budget)
        if answer.status == http.client.NOT_FOUND:
            return None
        return self._read(answer)

    @contextmanager
    def stream(
        self, path: str, query: Query, *, accept: str = _JSON, silence: float
    ) -> Iterator[Stream]:
        """Open an answer of any length, on a connection of its own.

        Args:
            path: Of a list.
            query: The parameters.
            accept: The form of the answer.
            silence: An answer that has no line for so many seconds is broken off.

        Raises:
            ReviewError: See `post`; also inside, by the methods of the stream.
        """
        until = time.monotonic() + self._seconds
        request = self._request("GET", _with_query(path, query), accept=accept)
        with ExitStack() as parts, self._told():
            opened = self._authorized(
                lambda shown: parts.enter_context(
                    closing(self._opened(shown, request(shown), until, silence))
                ),
                lambda stream: stream.status,
                until,
            )
            if opened.status != http.client.OK:
                raise self._failed(opened.refusal(until))
            yield opened

    def awaits(self, answer: threading.Event, budget: Budget) -> None:
        """Wait for the answer to another call as long as a call waits for a place.

        Args:
            answer: Is set when the other call has ended.
            budget: What is left of the call's time.

        Raises:
            ReviewError: The other call has not ended by then.
        """
        until = time.monotonic() + min(_WAIT_SECONDS, budget.part())
        while not answer.wait(_LOOK_SECONDS):
            if self._calls.are_stalled() or time.monotonic() >= until:
                raise self._busy("another call asks for the same object")

    def close(self) -> None:
        """Close the idle connections; those in use close when their call ends."""
        self._client.close()

    def _called(self, request: "_Request", budget: Budget) -> HTTPAnswer:
        now = time.monotonic()
        until = now + min(self._seconds, budget.part())
        if not self._bulkhead.enter(min(until, now + _WAIT_SECONDS)):
            raise self._busy("its answers are overdue")
        try:
            with self._calls, self._told():
                return self._authorized(
                    lambda shown: self._exchange(shown, request(shown), until),
                    lambda answer: answer.status,
                    until,
                )
        finally:
            self._bulkhead.leave()

    def _authorized(
        self, ask: Callable[[Shown], T], status_of: Callable[[T], int], until: float
    ) -> T:
        shown = self._credentials.shown(until)
        self._place = shown.place
        answer = ask(shown)
        if status_of(answer) == http.client.UNAUTHORIZED:
            # There may be another token by now. What was refused was not done.
            fresh = self._credentials.shown(until, refused=shown)
            if fresh is not shown:
                return ask(fresh)
        return answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            raise ReviewError(
                "the credentials for the API server of this cluster cannot be used",
                rule="review.credential",
                detail=self._shown(str(error)),
            ) from error
        except TimeoutError as error:
            raise ReviewError(
                "the API server of this cluster does not answer in time",
                rule=_LATE,
                detail=self._shown(str(error) or "no answer"),
            ) from error
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            RecursionError,
        ) as error:
            raise ReviewError(
                "the API server of this cluster cannot be asked",
                rule="review.unavailable",
                detail=self._shown(str(error) or type(error).__name__),
            ) from error

    def _opened(
        self, shown: Shown, request: bytes, until: float, silence: float
    ) -> Stream:
        connection = self._client.opened(shown.peer, until)
        connection.send(request, until)
        return Stream(connection, until, silence)

    def _exchange(self, shown: Shown, request: bytes, until: float) -> HTTPAnswer:
        connection = self._client.sent(request, shown.peer, until, until)
        return self._client.answer(connection, until)

    def _request(
        self, method: str, path: str, body: bytes = b"", accept: str = _JSON
    ) -> "_Request":
        content = f"Content-Type: {_JSON}\r\nContent-Length: {len(body)}\r\n"

        def request(shown: Shown) -> bytes:
            token = shown.token
            authorization = f"Authorization: Bearer {token}\r\n" if token else ""
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {shown.place}\r\n"
                f"{authorization}Accept: {accept}\r\n"
                f"{content if body else ''}User-Agent: meshca-bridge\r\n\r\n"
            )
            return head.encode("ascii") + body

        return request

    def _read(self, answer: HTTPAnswer) -> Mapping[str, Any]:
        if answer.status not in _DONE:
            raise self._failed(answer)
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise unreadable(self._shown("expected a JSON object"))
        return found

    def _failed(self, answer: HTTPAnswer) -> ReviewError:
        rule, text = _STATUSES.get(answer.status, _OTHER)
        said = f"HTTP status {answer.status}"
        if retry_after := answer.header("retry-after")[:40]:
            said += f", Retry-After {retry_after}"
        if message := _message(answer.body):
            said += f": {message}"
        error = ReviewError(text, rule=rule, detail=self._shown(said))
        error.status = answer.status
        error.retry_after = _seconds(retry_after)
        return error

    def _busy(self, reason: str) -> ReviewError:
        return ReviewError(
            "too many calls wait for the API server of this cluster",
            rule="review.busy",
            detail=self._shown(reason),
        )

    def _shown(self, reason: str) -> str:
        place = f"https://{self._place}: " if self._place else ""
        # Whoever answers must not forge lines of the log.
        return f"{place}{on_one_line(reason[:300])}"


_Request = Callable[[Shown], bytes]
"""From what is shown to the API server to the bytes of a request."""
_REFUSED = "the API server of this cluster refuses what the bridge asks for"
_STATUSES = {
    http.client.UNAUTHORIZED: ("review.credential", _REFUSED),
    http.client.FORBIDDEN: ("review.rights", _REFUSED),
    http.client.GONE: (
        "review.gone",
        "the API server of this cluster has forgotten what the bridge goes on from",
    ),
    http.client.TOO_MANY_REQUESTS: (
        "review.throttled",
        "the API server of this cluster asks for fewer calls",
    ),
}
_OTHER = (
    "review.failed",
    "the API server of this cluster could not do what it was asked for",
)


class _CallsInFlight:
    # Whether the server answers: a context manager around each call. One that hangs
    # does so until a call has an answer: a call whose time is up is none.
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._moved_at = 0.0
        self._is_late = False

    def __enter__(self) -> Self:
        with self._lock:
            if not self._count and not self._is_late:
                self._moved_at = time.monotonic()
            self._count += 1
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        with self._lock:
            self._count -= 1
            self._is_late = isinstance(error, ReviewError) and error.rule == _LATE
            if not self._is_late:
                self._moved_at = time.monotonic()

    def are_stalled(self) -> bool:
        with self._lock:
            waited = time.monotonic() - self._moved_at
            return self._count > 0 and waited > STALL_SECONDS


def unreadable(detail: str) -> ReviewError:
    """Return the error for an answer that is not what was asked for."""
    return ReviewError(
        "the answer of the API server of this cluster cannot be read",
        rule="review.answer",
        detail=detail,
    )


def endless(detail: str) -> ReviewError:
    """Return the error for a list that is too long."""
    return ReviewError(
        "the API server of this cluster lists more than the bridge follows",
        rule="review.endless",
        detail=detail,
    )


def gone(detail: str) -> ReviewError:
    """Return the error for a resource version that the API server has forgotten."""
    _, text = _STATUSES[http.client.GONE]
    error = ReviewError(text, rule="review.gone", detail=detail)
    error.status = http.client.GONE
    return error


def _seconds(text: str) -> float:
    # A date, which an API server does not send, is no wait.
    if not (text.isascii() and text.isdecimal()):
        return 0.0
    return min(float(text), LONGEST_RETRY_SECONDS)


def _with_query(path: str, query: Query) -> str:
    return f"{path}?{urllib.parse.urlencode(query)}" if query else path


def _message(body: bytes) -> str:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    said = found.get("message") if isinstance(found, dict) else None
    return said if isinstance(said, str) else ""
