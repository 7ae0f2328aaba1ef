"""hvac's adapter: each call has a deadline, and its errors say what they leave open.

hvac's own adapters send by requests. They have no timeout for a call, take several
times the CPU, follow redirects, and return HTML with status 200 as success.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from hvac.adapters import JSONAdapter

from bridge_vault.connection import Connections, ExchangeError, HTTPAnswer

ATTEMPT_HEADER = "X-Meshca-Attempt"
"""Has the ID of an attempt in the ledger. Vault's audit log has it where `meshca vault
setup` or an operator made it an audited header."""
_OTHER_NODE = frozenset({412, 472, 473, 474, 501, 503, 530})
"""This node cannot serve it now, nothing was done, and another one may."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_CONTENT = 204


class VaultError(Exception):
    """A call did not succeed.

    Attributes:
        status: Of the answer; 0 where there is none.
        errors: What the server says, perhaps nothing.
        retry_after: Seconds; 0 where the server does not say.
        request_id: By which the server's log has the request; "" where it is unknown.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int,
        errors: Sequence[str] = (),
        retry_after: float = 0.0,
        request_id: str = "",
    ) -> None:
        super().__init__(text)
        self.status = status
        self.errors = tuple(errors)
        self.retry_after = retry_after
        self.request_id = request_id


class NoAnswerError(VaultError):
    """No answer came.

    Attributes:
        is_sent: The request may have been served all the same.
        is_late: The time was spent.
    """

    def __init__(self, error: ExchangeError) -> None:
        super().__init__(str(error), status=0)
        self.is_sent = error.is_sent
        self.is_late = error.is_late


class Servers:
    """The addresses of a cluster: a call goes on to the next where one cannot serve it.

    Args:
        connections: 1 or more, in order of preference.
    """

    def __init__(self, connections: Sequence[Connections]) -> None:
        self._all = tuple(connections)
        self._first = 0
        self._lock = threading.Lock()
        self.skew_seconds: float | None = None
        """How far the server's clock is ahead of ours, by its last answer, to a second
        or two. None before the first."""

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> HTTPAnswer:
        """Have the first address that can serve a request serve it.

        Raises:
            ExchangeError: None did; the last one's error.
        """
        first, count = self._first, len(self._all)
        for number in range(count):
            index = (first + number) % count
            is_last = number == count - 1
            sent_at = time.time()
            try:
                answer = self._all[index].exchange(
                    method,
                    path,
                    headers,
                    body,
                    deadline,
                    deadline if is_last else _share(deadline, count - number),
                )
            except ExchangeError as error:
                self._leave(index)
                if is_last or error.is_sent or time.monotonic() >= deadline:
                    raise
                continue
            if is_last or answer.status not in _OTHER_NODE | _REDIRECTS:
                self._note_clock(answer, sent_at)
                return answer
            self._leave(index)
        raise AssertionError("there is at least one address")

    def close(self) -> None:
        """Close all connections."""
        for one in self._all:
            one.close()

    def _leave(self, index: int) -> None:
        # The next calls begin at the next address.
        with self._lock:
            if self._first == index:
                self._first = (index + 1) % len(self._all)

    def _note_clock(self, answer: HTTPAnswer, sent_at: float) -> None:
        date = answer.headers.get("Date")
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except (TypeError, ValueError):
            return
        # The header has whole seconds, cut off.
        self.skew_seconds = told + 0.5 - (sent_at + time.time()) / 2


def _share(deadline: float, parts: int) -> float:
    now = time.monotonic()
    return now + (deadline - now) / parts


class VaultAdapter(JSONAdapter):  # type: ignore[misc]  # hvac has no types
    """The adapter of one call, or of a few under the same deadline.

    Args:
        servers: Where the calls go.
        deadline: A value of `time.monotonic()`.
        token: Of the caller; "" for none.
        namespace: In which paths are looked up; "" for the root's.
        attempt: See `ATTEMPT_HEADER`; "" sends none.
    """

    def __init__(  # `requests` is not used, so its session is not made
        self,
        servers: Servers,
        deadline: float,
        *,
        token: str = "",
        namespace: str = "",
        attempt: str = "",
    ) -> None:
        self._servers = servers
        self._deadline = deadline
        self._headers = {"X-Vault-Request": "true"}
        if namespace:
            self._headers["X-Vault-Namespace"] = namespace
        if token:
            self._headers["X-Vault-Token"] = token
        if attempt:
            self._headers[ATTEMPT_HEADER] = attempt

    def close(self) -> None:
        """Do nothing: the connections are the servers'."""

    def login(self, url: str, use_token: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002 - hvac's signature
        """Send a login. Its token is not taken over."""
        return self.post(url, **kwargs)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        raise_exception: bool = True,  # noqa: FBT001, FBT002 - hvac's signature
        **kwargs: Any,
    ) -> Any:
        """Send a request.

        Args:
            method: In any case.
            url: A path that begins with `/v1/`.
            headers: More headers.
            raise_exception: Ignored: each failure raises.
            kwargs: `json` is the body.

        Returns:
            The answer, parsed; an empty dictionary for 204.

        Raises:
            VaultError: The call did not succeed.
        """
        sent = {**self._headers, **(headers or {})}
        body = None
        if (content := kwargs.get("json")) is not None:
            body = json.dumps(content).encode()
            sent["Content-Type"] = "application/json"
        try:
            answer = self._servers.exchange(
                method.upper(), url, sent, body, self._deadline
            )
        except ExchangeError as error:
            raise NoAnswerError(error) from error
        namespace = self._headers.get("X-Vault-Namespace")
        path = url.removeprefix("/v1/")
        where = f"namespace {namespace}, {path}" if namespace else path
        return _content_of(where, answer)


def _content_of(where: str, answer: HTTPAnswer) -> Any:
    status = answer.status
    if status == _NO_CONTENT:
        return {}
    content = _json(answer)
    if status == 200 and isinstance(content, dict):  # noqa: PLR2004 - OK
        return content
    if status in _REDIRECTS:
        where = answer.headers.get("Location", "")
        raise VaultError(
            f"the server redirects to {where[:200]!r}, which is not followed: its own "
            "address is expected",
            status=status,
        )
    if not isinstance(content, dict):
        kind = answer.headers.get("Content-Type", "")
        raise VaultError(
            f"status {status} with {kind[:80]!r}: expected JSON of Vault's API",
            status=status,
            retry_after=_retry_after(answer),
        )
    errors = content.get("errors")
    texts = [str(one) for one in errors] if isinstance(errors, list) else []
    raise VaultError(
        f"{where}: status {status}: {'; '.join(texts)[:500] or 'without a reason'}",
        status=status,
        errors=texts,
        retry_after=_retry_after(answer),
        request_id=str(content.get("request_id") or ""),
    )


def _json(answer: HTTPAnswer) -> Any:
    if answer.headers.get_content_type() != "application/json":
        return None
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _retry_after(answer: HTTPAnswer) -> float:
    # Source: RFC 9110, 10.2.3: seconds, or a date.
    value = answer.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    if moment.tzinfo is None:
        return 0.0
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
