"""A worker process as its parent holds it."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from typing import Any, Protocol

from bridge.process.role import Order

_COMMAND = (sys.executable, "-P", "-m", "bridge.process.worker")


class Child(Protocol):
    """One worker process."""

    @property
    def pid(self) -> int:
        """Of the process."""

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""

    def terminate(self) -> None:
        """Ask it to finish what is under way and end."""

    def kill(self) -> None:
        """End it at once."""

    def reason(self) -> str:
        """Return what it wrote about why it could not start; empty for nothing."""

    def get(self, page: str, timeout: float) -> tuple[int, str]:
        """Return status and body of a page of its admin address.

        Raises:
            OSError: There is no answer, or not in time.
        """


class WorkerProcess:
    """A real one. See `Child`.

    A new interpreter, not a fork: a library that has threads does not survive one. The
    pipe to its standard input is held open for as long as this process lives, however
    it ends.
    """

    def __init__(self, order: Order) -> None:
        """Start it.

        Raises:
            OSError: The system gives no more processes.
        """
        self._order = order
        order.reason.unlink(missing_ok=True)
        order.socket.unlink(missing_ok=True)
        # A group of its own: Ctrl-C in a terminal is for the parent alone.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            _COMMAND, stdin=subprocess.PIPE, process_group=0
        )
        # It may be gone already, and `poll` will say so.
        with contextlib.suppress(BrokenPipeError):
            self._tell(order.line())

    @property
    def pid(self) -> int:
        """See `Child.pid`."""
        return self._process.pid

    def poll(self) -> int | None:
        """See `Child.poll`."""
        status = self._process.poll()
        if status is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def terminate(self) -> None:
        """See `Child.terminate`."""
        self._process.terminate()

    def kill(self) -> None:
        """See `Child.kill`."""
        self._process.kill()

    def reason(self) -> str:
        """See `Child.reason`."""
        try:
            return self._order.reason.read_text("utf-8")
        except OSError:
            return ""

    def get(self, page: str, timeout: float) -> tuple[int, str]:
        """See `Child.get`."""
        connection = _UnixConnection(str(self._order.socket), timeout)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8")
        except http.client.HTTPException as error:
            raise OSError(f"no answer that could be read: {error!r}") from error
        finally:
            connection.close()

    def _tell(self, line: bytes) -> None:
        # Not through the buffered file: that would try again when it is closed.
        pipe = self._process.stdin
        if pipe is None:
            raise RuntimeError("the worker was started without a pipe")
        left = memoryview(line)
        while left:
            left = left[os.write(pipe.fileno(), left) :]


def readiness(child: Child, timeout: float) -> dict[str, Any] | None:
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
