"""A signer process as the serving process holds it: its channels and calls."""

import json
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NoReturn

from bridge.sdk import ChildProcess
from bridge.spi import (
    BackendError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
)
from bridge_pkcs11.protocol import (
    LARGEST_MESSAGE,
    NOT_OPENED,
    Answer,
    Operation,
    SignerOrder,
    read_answer,
    request,
)

_MODULE = "bridge_pkcs11.worker"
_HANG_SECONDS = 0.9
"""A request without an answer for so long hangs. A caller may have less time."""
_START_SECONDS = 15.0
"""For the start of the interpreter, on a machine that is busy, and for the logins of
other processes, which come first."""
_CLOSE_SECONDS = 1.0
_CLOSE_AT_START_SECONDS = 3.0
_KILL_SECONDS = 0.2
"""A process that got SIGKILL is gone in this time, unless it is in a driver."""
_log = logging.getLogger(__name__)


class ProcessEndedError(Exception):
    """The process is over.

    Args:
        error: What to tell the caller.
        may_repeat: Nothing was signed, and another process may do better.
    """

    def __init__(self, error: BackendError, *, may_repeat: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.may_repeat = may_repeat


class _Channel:
    # One call at a time.
    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)  # noqa: FBT003 - the standard library's
        self._socket = ours
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        self.is_ready = False
        self.sent_at = 0.0

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    def receive(self, deadline: float) -> bytes | None:
        """Return a message, b"" at the end of the process, None if time is up."""
        left = deadline - time.monotonic()
        if not self._poll.poll(max(0, math.ceil(left * 1000))):
            return None
        try:
            return self._socket.recv(LARGEST_MESSAGE)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._socket.close()


class SignerProcess:
    """One signer process. It is started here, and is never started again.

    Args:
        order: Makes the order, of the file descriptors of the channels.
        channels: How many calls the process serves at a time.
        start_seconds: How long it may take to open the token, by its own watch.
        warn: Is told what the operator should know, once.

    Raises:
        OSError: The system gives no more processes or sockets.
    """

    def __init__(
        self,
        order: Callable[[tuple[int, ...]], SignerOrder],
        channels: int,
        start_seconds: float,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._free: SimpleQueue[_Channel | None] = SimpleQueue()
        self._overdue: list[_Channel] = []
        self._lock = threading.Lock()
        self._is_open = False
        self._answers = 0
        self._ending: BackendError | None = None
        kind = socket.SOCK_SEQPACKET
        pairs = [socket.socketpair(socket.AF_UNIX, kind) for _ in range(channels)]
        theirs = tuple(their.fileno() for _, their in pairs)
        self.began = time.monotonic()
        """When it was started."""
        self._may_open_until = self.began + 2 * start_seconds + _START_SECONDS
        try:
            self._child = ChildProcess(_MODULE, order(theirs).line(), pass_fds=theirs)
        except OSError:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, their in pairs:
                their.close()
        for ours, _ in pairs:
            self._free.put(_Channel(ours))

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._child.pid

    @property
    def is_usable(self) -> bool:
        """Whether it may answer: it is not over, and not late in opening the token."""
        return self._ending is None and (
            self._is_open or time.monotonic() < self._may_open_until
        )

    def ask(self, operation: Operation, data: bytes, deadline: float) -> bytes:
        """Send a request and return its answer.

        Raises:
            BackendError: The answer is an error, or there is none in time.
            ProcessEndedError: The process can answer no more.
        """
        channel = self._taken(deadline)
        if not channel.is_ready:
            self._await_ready(channel, deadline)
        now = time.monotonic()
        if now >= deadline:
            self._give_back(channel)
            raise _no_time()
        channel.sent_at = now
        try:
            channel.send(request(operation, deadline, data))
        except OSError:
            self._over(channel, "before the call")
        message = channel.receive(deadline)
        if message is None:
            self._late(channel, operation)
        if not message:
            may_exist = operation is Operation.SIGN
            self._over(channel, "during the call", may_exist=may_exist)
        return self._answered(channel, message)

    def end(self, error: BackendError) -> None:
        """End the process at once; who waits for it gets `error`."""
        with self._lock:
            if self._ending is not None:
                return
            self._ending = error
        self._child.kill()
        self._close_channels()
        self._child.wait(_KILL_SECONDS)
        _log.warning("signer process %d is over: %s %s", self.pid, error, error.detail)

    def close(self) -> None:
        """Have the process close its sessions and end, in some seconds at most."""
        error = BackendUnavailableError("the issuing CA is closed")
        with self._lock:
            if self._ending is not None:
                return
            self._ending = error
        self._close_channels()
        # A first login that is cut off counts as refused, so it gets more time.
        seconds = _CLOSE_SECONDS if self._is_open else _CLOSE_AT_START_SECONDS
        if self._child.wait(seconds) is None:
            self._child.kill()
            self._child.wait(_KILL_SECONDS)

    def _taken(self, deadline: float) -> _Channel:
        answers = self._answers
        while True:
            if self._overdue:
                self._look_at_overdue()
            left = deadline - time.monotonic()
            # Not longer at a time: a call that hangs may become overdue meanwhile.
            with suppress(Empty):
                channel = self._free.get(timeout=max(0.0, min(left, _HANG_SECONDS)))
                break
            if left > _HANG_SECONDS:
                continue
            if self._answers == answers:
                raise BackendUnavailableError(
                    "no call of the token returns", rule="pkcs11.timeout"
                )
            raise BackendThrottledError(
                "every session of the token is in use", rule="pkcs11.sessions"
            )
        if channel is None:
            self._free.put(None)
            raise self._ended()
        return channel

    def _await_ready(self, channel: _Channel, deadline: float) -> None:
        message = channel.receive(min(deadline, self._may_open_until))
        if message is None:
            self._give_back(channel)
            raise BackendUnavailableError(
                "the token is being opened", rule="pkcs11.start"
            )
        if not message:
            self._over(channel, "before the token was open")
        answer = self._read(channel, message)
        if answer.error is not None:
            self._failed(channel, answer.error)
        channel.is_ready = True
        with self._lock:
            is_first, self._is_open = not self._is_open, True
        if is_first and answer.data:
            self._warn(answer.data.decode())

    def _answered(self, channel: _Channel, message: bytes) -> bytes:
        self._answers += 1
        answer = self._read(channel, message)
        if answer.is_last and answer.error is not None:
            self._failed(channel, answer.error)
        self._give_back(channel)
        if answer.error is not None:
            raise answer.error
        return answer.data

    def _read(self, channel: _Channel, message: bytes) -> Answer:
        try:
            return read_answer(message)
        except (ValueError, LookupError, json.JSONDecodeError):
            self._over(channel, "with an answer that cannot be read", may_exist=True)

    def _late(self, channel: _Channel, operation: Operation) -> NoReturn:
        error = BackendTimeoutError(
            "the token did not answer in time",
            rule="pkcs11.timeout",
            certificate_may_exist=operation is Operation.SIGN,
        )
        if time.monotonic() - channel.sent_at >= _HANG_SECONDS:
            channel.close()
            self.end(_hangs())
        else:
            self._put_aside(channel)
        raise error

    def _look_at_overdue(self) -> None:
        # Their callers had little time and have gone; the answers may have come.
        with self._lock:
            overdue, self._overdue = self._overdue, []
        now = time.monotonic()
        for channel in overdue:
            message = channel.receive(now)
            if message:
                self._give_back(channel)
            elif message is None and now - channel.sent_at < _HANG_SECONDS:
                self._put_aside(channel)
            else:
                channel.close()
                self.end(_hangs())

    def _failed(self, channel: _Channel, error: BackendError) -> NoReturn:
        channel.close()
        # Where the token could not be opened, it cannot be a moment later.
        may_repeat = self._is_open
        self.end(error)
        raise ProcessEndedError(error, may_repeat=may_repeat)

    def _over(
        self, channel: _Channel, how: str, *, may_exist: bool = False
    ) -> NoReturn:
        channel.close()
        status = self._child.wait(_KILL_SECONDS) if self._ending is None else None
        ended = self._ending or BackendUnavailableError(
            "the signer process ended",
            rule="pkcs11.process",
            detail=f"{how}: {_how(status)}",
        )
        self.end(ended)
        error = type(ended)(
            str(ended),
            rule=ended.rule,
            detail=ended.detail,
            certificate_may_exist=may_exist,
        )
        raise ProcessEndedError(error, may_repeat=not may_exist)

    def _ended(self) -> ProcessEndedError:
        error = self._ending or BackendUnavailableError("the signer process ended")
        return ProcessEndedError(error, may_repeat=True)

    def _put_aside(self, channel: _Channel) -> None:
        with self._lock:
            self._overdue.append(channel)
        if self._ending is not None:
            self._close_channels()  # another call ended the process meanwhile

    def _give_back(self, channel: _Channel) -> None:
        self._free.put(channel)
        if self._ending is not None:
            self._close_channels()

    def _close_channels(self) -> None:
        # A call that is under way closes its own. Who waits for one is woken.
        with suppress(Empty):
            while True:
                channel = self._free.get_nowait()
                if channel is not None:
                    channel.close()
        with self._lock:
            overdue, self._overdue = self._overdue, []
        for channel in overdue:
            channel.close()
        self._free.put(None)


def _hangs() -> BackendUnavailableError:
    return BackendUnavailableError(
        "the signer process was ended",
        rule="pkcs11.process",
        detail="a call into the PKCS#11 module did not return in time",
    )


def _no_time() -> BackendUnavailableError:
    return BackendUnavailableError("no time is left to sign", rule="pkcs11.timeout")


def _how(status: int | None) -> str:
    if status is None:
        return "it is still running"
    if status == NOT_OPENED:
        return "a call took longer than start_timeout_seconds"
    return f"signal {-status}" if status < 0 else f"status {status}"
