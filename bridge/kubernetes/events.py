"""Events about issued certificates, as Linkerd's own CA writes them.

They are for people and may be lost: nobody waits for one, and a request does no more
than note it. What happens to one object within a few minutes becomes one event with a
count. While the API server does not take events, they are kept for a bounded number of
objects, and one request at a time tries again.

Source:
    linkerd2, pkg/identity/service.go and controller/cmd/identity/main.go; Kubernetes
    API, v1 Event.
"""

import http.client
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bridge.errors import ReviewError
from bridge.kubernetes.api import APIServer
from bridge.resilience.budget import Budget
from bridge.system.background import BackgroundLoop

REASON = "IssuedLeafCertificate"
_COMPONENT = "linkerd-identity"
"""Not the bridge's name: whoever looks for the events of Linkerd's CA finds these."""
_MOST_OBJECTS = 4096
_AT_ONCE = 20
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_APART_SECONDS = 300.0
_SEND_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
_PASSING = (http.client.UNAUTHORIZED, http.client.TOO_MANY_REQUESTS)
"""Statuses of a request that may be good later, beside those of a server's fault."""
_log = logging.getLogger(__name__)

Result = Literal["sent", "failed", "dropped"]
Count = Callable[[Result, int], None]


@dataclass(slots=True)
class _Noted:
    # What is to be told of one service account.
    message: str
    first: datetime
    last: datetime
    count: int = 1


class AccountEvents:
    """Writes events about the service accounts of one cluster. For all threads.

    Args:
        server: The API server of the cluster; not used by others.
        count: Is told of events that were sent, of requests that failed, and of
            certificates without an event.
        apart_seconds: Between two events of one account, at least.
        monotonic: The clock of that time.
    """

    def __init__(
        self,
        server: APIServer,
        count: Count,
        *,
        apart_seconds: float = _APART_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._count = count
        self._apart = apart_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str], _Noted] = {}
        # What follows is for the thread that sends.
        self._quiet: dict[tuple[str, str], float] = {}
        self._pause = _PAUSE_SECONDS
        self._trouble = ""
        self._loop = BackgroundLoop("events", self.send, lambda: self._pause)

    def note(self, namespace: str, account: str, message: str, now: datetime) -> None:
        """Have an event written about a service account. Never waits, never fails.

        Args:
            namespace: Of the account.
            account: Its name.
            message: The text. Of several in one event, the last one counts.
            now: When it happened.
        """
        key = namespace, account
        with self._lock:
            noted = self._noted.get(key)
            if noted is not None:
                noted.message, noted.last = message, now
                noted.count += 1
                return
            if len(self._noted) < _MOST_OBJECTS:
                self._noted[key] = _Noted(message, now, now)
                return
        self._count("dropped", 1)

    def start(self) -> None:
        """Start the thread that sends.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        self._loop.start()

    def close(self) -> None:
        """Stop it. What was not sent is lost."""
        self._loop.stop()
        self._server.close()
        self._loop.close(_CLOSE_SECONDS)

    def send(self) -> None:
        """Send what is due, a few at a time."""
        now = self._monotonic()
        self._quiet = {key: until for key, until in self._quiet.items() if until > now}
        with self._lock:
            due = [key for key in self._noted if key not in self._quiet][:_AT_ONCE]
        for key in due:
            with self._lock:
                noted = self._noted.pop(key)
            path = f"/api/v1/namespaces/{key[0]}/events"
            budget = Budget.of_seconds(_SEND_SECONDS)
            try:
                self._server.post(path, _event(key, noted), budget)
            except ReviewError as error:
                self._failed(key, noted, error)
                return
            self._quiet[key] = now + self._apart
            self._count("sent", 1)
        if due and self._trouble:
            _log.info("events are written again, after: %s", self._trouble)
            self._trouble = ""
        self._pause = _PAUSE_SECONDS

    def _failed(self, key: tuple[str, str], noted: _Noted, error: ReviewError) -> None:
        self._count("failed", 1)
        is_refused = 400 <= error.status < 500 and error.status not in _PASSING  # noqa: PLR2004
        if is_refused:
            # Another try would say the same, and others wait behind it.
            self._count("dropped", noted.count)
        else:
            self._keep(key, noted)
        self._pause = min(
            max(self._pause * 2, error.retry_after), _LONGEST_PAUSE_SECONDS
        )
        trouble = f"{error}: {error.detail}"
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("events cannot be written: %s", trouble)

    def _keep(self, key: tuple[str, str], noted: _Noted) -> None:
        with self._lock:
            later = self._noted.get(key)
            if later is None:
                self._noted[key] = noted
            else:
                later.first = noted.first
                later.count += noted.count


def _event(key: tuple[str, str], noted: _Noted) -> Mapping[str, object]:
    namespace, account = key
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "generateName": f"{account}."},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "namespace": namespace,
            "name": account,
        },
        "type": "Normal",
        "reason": REASON,
        "message": noted.message,
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "firstTimestamp": _time(noted.first),
        "lastTimestamp": _time(noted.last),
        "count": noted.count,
    }


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
