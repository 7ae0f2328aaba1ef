"""Credentials from a program: the exec plugins of a kubeconfig.

A program runs in a thread of its own, one at a time, and has a time limit. A credential
is used until it expires or is refused; shortly before it expires the program runs again
while the old credential stays in use.

Source:
    Kubernetes API, client.authentication.k8s.io/v1 and v1beta1 ExecCredential;
    k8s.io/client-go, plugin/pkg/client/auth/exec.
"""

import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import IO, Any

from bridge.errors import ConfigError
from bridge.system.clock import Clock, system_clock

API_VERSIONS = tuple(f"client.authentication.k8s.io/{one}" for one in ("v1", "v1beta1"))
"""The versions of ExecCredential that are understood."""
RUN_SECONDS = 15.0
"""The longest that a program may take."""
_EARLY = timedelta(seconds=60)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_LARGEST = 1 << 20
_SHOWN_BYTES = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program that makes credentials, as a kubeconfig names it."""

    api_version: str
    command: str
    """A path, or a name that is looked for on `PATH`."""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Is added to the environment of the bridge."""
    cluster: Mapping[str, object] | None = field(default=None, repr=False)
    """What `KUBERNETES_EXEC_INFO` says of the cluster; None for nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class ExecCredential:
    """What a program has made: a token, a client certificate, or both."""

    token: str = field(default="", repr=False)
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    expires_at: datetime | None = None


class ExecPlugin:
    """Runs one program when a credential is needed. Safe between threads.

    Args:
        command: The program.
        seconds: The longest that one run may take.
        clock: The time that `expirationTimestamp` is compared with.
    """

    def __init__(
        self,
        command: Command,
        *,
        seconds: float = RUN_SECONDS,
        clock: Clock = system_clock,
    ) -> None:
        self._command = command
        self._seconds = seconds
        self._clock = clock
        self._changed = threading.Condition()
        # What follows is read and written under `_changed`.
        self._current: ExecCredential | None = None
        self._trouble = ""
        self._is_running = False
        self._runs = 0
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE

    def credential(
        self, until: float, refused: ExecCredential | None = None
    ) -> ExecCredential:
        """Return a credential that has not expired; wait for one if there is none.

        Args:
            until: Of `time.monotonic`: waits no longer.
            refused: A credential that the API server refused.

        Raises:
            ConfigError: The program fails.
            TimeoutError: The program has not ended.
        """
        with self._changed:
            if (found := self._usable(refused)) is not None:
                if self._expires_within(found, _EARLY):
                    self._begin()
                return found
            if self._begin():
                runs = self._runs
                left = max(0.0, until - time.monotonic())
                if not self._changed.wait_for(lambda: self._runs != runs, left):
                    raise TimeoutError(f"{self._command.command} has not ended")
            if (found := self._usable(refused)) is None:
                raise ConfigError(
                    self._trouble
                    or f"{self._command.command}: its credential has expired, or is "
                    "refused"
                )
            return found

    def _usable(self, refused: ExecCredential | None) -> ExecCredential | None:
        found = self._current
        if found is None or found is refused:
            return None
        return None if self._expires_within(found, timedelta(0)) else found

    def _expires_within(self, found: ExecCredential, left: timedelta) -> bool:
        expires_at = found.expires_at
        return expires_at is not None and expires_at - left <= self._clock()

    def _begin(self) -> bool:
        # Returns whether a run is under way.
        if not self._is_running and time.monotonic() >= self._not_before:
            thread = threading.Thread(target=self._run, name="exec-plugin", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise ConfigError("the system gives no more threads") from error
            self._is_running = True
        return self._is_running

    def _run(self) -> None:
        made, trouble = None, ""
        try:
            made = _parsed(_output(self._command, self._seconds), self._command)
        except (ConfigError, OSError, ValueError) as error:
            trouble = f"{self._command.command}: {error}"
        with self._changed:
            self._is_running = False
            self._runs += 1
            self._trouble = trouble
            if made is not None:
                self._current, self._pause = made, _FIRST_PAUSE
            # An API server that refuses each credential does not make a storm of runs.
            self._not_before = time.monotonic() + self._pause
            if made is None:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._changed.notify_all()


def _output(command: Command, seconds: float) -> bytes:
    until = time.monotonic() + seconds
    spec = {"interactive": False}
    info: dict[str, Any] = {"apiVersion": command.api_version, "kind": "ExecCredential"}
    info["spec"] = spec | (
        {} if command.cluster is None else {"cluster": dict(command.cluster)}
    )
    environment = os.environ | dict(command.env)
    with subprocess.Popen(  # noqa: S603 - the configuration names the program
        [command.command, *command.args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"KUBERNETES_EXEC_INFO": json.dumps(info)},
        start_new_session=True,
    ) as process:
        try:
            written, complaint = _streams(process, until)
            status = process.wait(max(0.0, until - time.monotonic()))
        except (ConfigError, TimeoutError, subprocess.TimeoutExpired) as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"expected its end within {seconds:g} s") from error
    if status:
        told = complaint[-_SHOWN_BYTES:].decode("utf-8", "replace").strip()
        raise ConfigError(f"it ended with {status}: {told!r}")
    return written


def _streams(process: subprocess.Popen[bytes], until: float) -> tuple[bytes, bytes]:
    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101 - see above
    found: dict[IO[bytes], bytes] = {process.stdout: b"", process.stderr: b""}
    with selectors.DefaultSelector() as selector:
        for each in found:
            selector.register(each, selectors.EVENT_READ)
        while selector.get_map():
            left = until - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                stream: Any = key.fileobj
                if not (part := os.read(key.fd, 1 << 16)):
                    selector.unregister(stream)
                found[stream] += part
            if len(found[process.stdout]) > _LARGEST:
                raise ConfigError(f"expected at most {_LARGEST} bytes")
            found[process.stderr] = found[process.stderr][-_SHOWN_BYTES:]
    return found[process.stdout], found[process.stderr]


def _parsed(written: bytes, command: Command) -> ExecCredential:
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        found = None
    status = found.get("status") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(status, dict):
        raise ConfigError("expected an ExecCredential in JSON, with a status")
    for key, wanted in ("kind", "ExecCredential"), ("apiVersion", command.api_version):
        if found.get(key) != wanted:
            raise ConfigError(f"expected {key} {wanted} (found {found.get(key)!r:.80})")
    keys = ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp")
    token, certificate, key, expires = (status.get(key) or "" for key in keys)
    if not all(isinstance(one, str) for one in (token, certificate, key, expires)):
        raise ConfigError("expected texts in the status of the ExecCredential")
    if bool(certificate) != bool(key) or not (token or key):
        raise ConfigError(
            "expected token, or clientCertificateData with clientKeyData, in the status"
        )
    return ExecCredential(token, certificate.encode(), key.encode(), _time_of(expires))


def _time_of(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"expected expirationTimestamp as in RFC 3339 (found {text!r:.80})"
        ) from error
    if found.tzinfo is None:
        raise ConfigError(f"expected expirationTimestamp with a zone (found {text!r})")
    return found
