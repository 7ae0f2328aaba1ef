"""A worker as its parent holds it: the process, its answers, and its restarts."""

import http.client
import json
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from bridge.process.role import BROKEN, HELD, REFUSED, WorkerOrder
from bridge.system.child_process import (
    Child,
    ChildProcess,
    SupervisedChild,
    how_it_ended,
)

_MODULE = "bridge.process.worker"
_ASK_SECONDS = 0.25


class RunningWorker(Child, Protocol):
    """A worker process that was started."""

    def refusal(self) -> str:
        """Return what it wrote about why it could not start; empty for nothing."""

    def release(self) -> None:
        """Have it listen, where its order holds it."""

    def get(self, page: str, timeout: float) -> tuple[int, str]:
        """Return status and body of a page of its admin address.

        Raises:
            OSError: There is no answer, or not in time.
        """


Spawn = Callable[[WorkerOrder], RunningWorker]
"""Starts a worker; raises `OSError` when the system gives no more processes."""


class WorkerProcess(ChildProcess):
    """A real worker process. See `RunningWorker`."""

    def __init__(self, order: WorkerOrder) -> None:
        """Start it. See `ChildProcess`."""
        self._order = order
        order.reason.unlink(missing_ok=True)
        order.socket.unlink(missing_ok=True)
        super().__init__(_MODULE, order.line())

    def refusal(self) -> str:
        """See `RunningWorker.refusal`."""
        try:
            # A full disk may have cut the text in the middle of a character.
            return self._order.reason.read_text("utf-8", "replace")
        except OSError:
            return ""

    def release(self) -> None:
        """See `RunningWorker.release`."""
        self.send(signal.SIGUSR1)

    def get(self, page: str, timeout: float) -> tuple[int, str]:
        """See `RunningWorker.get`."""
        connection = _UnixConnection(str(self._order.socket), timeout)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8")
        except http.client.HTTPException as error:
            raise OSError(f"no answer that could be read: {error!r}") from error
        finally:
            connection.close()


class Worker(SupervisedChild[RunningWorker]):
    """Keeps one worker process running.

    Args:
        order: What the worker is told.
        spawn: Starts one.
    """

    def __init__(self, order: WorkerOrder, spawn: Spawn) -> None:
        super().__init__(
            f"worker {order.writer}", self._spawned, self._reason_of_end, (BROKEN,)
        )
        self.order = order
        """What the worker is told."""
        self.is_refused = False
        """Whether the last process could not use the configuration or its journal."""
        self.has_answered = False
        """Whether a process has said that it is ready, or why not."""
        self._spawn = spawn
        self._ready: RunningWorker | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the process has said since its start that it is ready."""
        child = self.child
        if child is not None and child is not self._ready:
            answer = readiness(child, _ASK_SECONDS)
            if answer is not None:
                self.has_answered = True
                if answer.get("ready") is True:
                    self._ready = child
        return child is not None and child is self._ready

    @property
    def is_prepared(self) -> bool:
        """Whether the process is ready but for the listeners that its order holds."""
        parts = self._readiness().get("parts", {})
        return {part: text for part, text in parts.items() if text != "ok"} == HELD

    def release(self) -> None:
        """Have the process listen, where its order holds it, and any that follows."""
        self.order = replace(self.order, is_held=False)
        if self.child is not None:
            self.child.release()

    def named(self, warning: str) -> frozenset[str] | None:
        """Return the names in a warning of the process, such as `WITHOUT_KEYS`.

        None if the process does not answer: it may have the warning.
        """
        answer = self._readiness()
        if not answer:
            return None
        text = answer.get("warnings", {}).get(warning, "")
        return frozenset(filter(None, text.split(", ")))

    def why_unready(self) -> str:
        """Return why there is no process that is ready."""
        parts = self._readiness().get("parts", {}).items()
        problems = (f"{part}: {text}" for part, text in parts if text != "ok")
        return self.reason or ", ".join(problems) or "runs and is not ready"

    def _readiness(self) -> Mapping[str, Any]:
        answer = readiness(self.child, _ASK_SECONDS) if self.child is not None else None
        return answer or {}

    def _spawned(self) -> RunningWorker:
        child = self._spawn(self.order)
        self.is_refused = False
        return child

    def _reason_of_end(self, child: RunningWorker, status: int) -> str:
        self.is_refused = status in {REFUSED, BROKEN}
        return child.refusal() or how_it_ended(child, status)


def readiness(child: RunningWorker, timeout: float) -> dict[str, Any] | None:
    """Return what a worker says of its readiness, or None without an answer."""
    try:
        _, body = child.get("/readyz", timeout)
        found = json.loads(body)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("worker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
