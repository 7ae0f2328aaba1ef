"""hvac's adapter: each call has a deadline, and its errors say what they leave open.

hvac's own adapters send by requests. They have no timeout for a call, take several
times the CPU, follow redirects, and return HTML with status 200 as success. The bridge
and `meshca vault setup` send all calls through this one.
"""

import json
import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from hvac.adapters import JSONAdapter

from bridge.sdk import HTTPAnswer
from bridge_vault.connection import Connections, NoAnswerError, VaultError

ATTEMPT_HEADER = "X-Meshca-Attempt"
"""Has the ID of an attempt in the ledger. Vault's audit log has it where it is an
audited header, which `meshca vault setup` makes it."""
_OTHER_NODE = frozenset({412, 472, 473, 474, 501, 503, 530})
"""This node cannot serve it now, nothing was done, and another one may."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK, _NO_CONTENT, _SERVER_ERROR = 200, 204, 500
_SECRETS = ("secret_id", "jwt", "token")
"""Fields of a request that its errors may not tell."""
_LONGEST_TEXT = 500
_MOST_DIGITS = 18
_LONGEST_PAUSE = 3600.0
_MOST_SKEW = 1e8
"""In seconds, three years: more is no clock, and no date is computed with it."""


class Servers:
    """The addresses of a cluster: a call goes on to the next where one cannot serve it.

    Args:
        connections: 1 or more, in order of preference.
    """

    def __init__(self, connections: Sequence[Connections]) -> None:
        self._all = tuple(connections)
        self._first = 0
        self._lock = threading.Lock()
        self._date = ""
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
            NoAnswerError: None did; the last one's error.
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
            except NoAnswerError as error:
                self._leave(index)
                if is_last or error.is_sent or time.monotonic() >= deadline:
                    raise
                continue
            if answer.status == _OK:
                self._note_clock(answer, sent_at)
                return answer
            if answer.status >= _SERVER_ERROR or _is_for_another(answer):
                self._leave(index)
            if is_last or not _is_for_another(answer):
                return answer
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
        date = answer.header("date")
        if date == self._date:
            return  # parsing costs as much as a small part of a call
        self._date = date
        if (moment := _moment(date)) is not None:
            # The header has whole seconds, cut off.
            skew = moment.timestamp() + 0.5 - (sent_at + time.time()) / 2
            self.skew_seconds = min(max(skew, -_MOST_SKEW), _MOST_SKEW)


def _is_for_another(answer: HTTPAnswer) -> bool:
    # A proxy that says 503 may have sent the request on, and the node may have served
    # it: only Vault's own word is taken for it.
    if answer.status in _REDIRECTS:
        return True
    return answer.status in _OTHER_NODE and b'"errors"' in answer.body


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
            sent.setdefault("Content-Type", "application/json")
        answer = self._servers.exchange(method.upper(), url, sent, body, self._deadline)
        if answer.status == _NO_CONTENT:
            return {}
        content = _json(answer)
        if answer.status == _OK and isinstance(content, dict):
            return content
        namespace = self._headers.get("X-Vault-Namespace")
        path = url.removeprefix("/v1/")
        where = f"namespace {namespace}, {path}" if namespace else path
        raise _error_of(where, answer, content, self._hidden(kwargs.get("json")))

    def _hidden(self, sent: object) -> list[str]:
        # Texts that no error may tell, whatever the server does.
        hidden = [self._headers.get("X-Vault-Token", "")]
        if isinstance(sent, dict):
            hidden += [str(sent.get(name) or "") for name in _SECRETS]
        return [one for one in hidden if one]


def _error_of(
    where: str, answer: HTTPAnswer, content: object, hidden: Collection[str]
) -> VaultError:
    status = answer.status
    retry_after = _retry_after(answer.header("retry-after"))
    errors = content.get("errors") if isinstance(content, dict) else None
    if isinstance(errors, list):
        assert isinstance(content, dict)  # noqa: S101 - it has errors
        texts = [_tellable(str(one), hidden) for one in errors]
        told = "; ".join(texts)[:_LONGEST_TEXT] or "without a reason"
        return VaultError(
            f"{where}: status {status}: {told}",
            status=status,
            errors=texts,
            retry_after=retry_after,
            request_id=_tellable(str(content.get("request_id") or ""), hidden),
        )
    if status in _REDIRECTS:
        place = _tellable(answer.header("location"), hidden)
        text = (
            f"the server redirects to {place!r}, which is not followed: its own "
            "address is expected"
        )
    else:
        kind = _tellable(answer.header("content-type"), hidden)
        text = f"status {status} with {kind!r}: expected JSON of Vault's API"
    return VaultError(text, status=0, http_status=status, retry_after=retry_after)


def _tellable(text: str, hidden: Collection[str]) -> str:
    for secret in hidden:
        text = text.replace(secret, "(a secret)")
    text = text[:_LONGEST_TEXT]
    return "".join(one if one.isprintable() else " " for one in text)


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError("an integer that nothing in Vault has")
    return int(text)


def _real(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_real, parse_constant=_real)
"""Takes only numbers that can be computed with."""


def _json(answer: HTTPAnswer) -> Any:
    kind = answer.header("content-type").partition(";")[0]
    if kind.strip().lower() != "application/json":
        return None
    try:
        return _DECODER.decode(answer.body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _retry_after(value: str) -> float:
    # Source: RFC 9110, 10.2.3: seconds, or a date.
    value = value.strip()
    if value.isdecimal():
        seconds = float(value)
    elif (moment := _moment(value)) is not None:
        seconds = (moment - datetime.now(UTC)).total_seconds()
    else:
        return 0.0
    return min(max(0.0, seconds), _LONGEST_PAUSE)


def _moment(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo is not None else None
