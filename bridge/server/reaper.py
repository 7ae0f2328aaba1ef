"""Gives up calls whose message does not come.

A thread that waits for a message waits without an end: grpc has no time limit there,
and a peer needs no credential to begin a call. So somebody else looks at the clock.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

_LOOK_SECONDS = 0.25


class Cancellable(Protocol):
    """The part of a call's context that is needed."""

    def cancel(self) -> object:
        """End the call; whoever waits for its message is woken with an error."""


class Reaper:
    """Cancels calls that are watched for longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._watched: dict[int, tuple[float, Cancellable]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stalled-calls")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking. May be called twice, or before `start`."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    @contextlib.contextmanager
    def watching(self, call: Cancellable) -> Iterator[None]:
        """Watch `call` until the block ends."""
        self._watched[id(call)] = (time.monotonic() + self.seconds, call)
        try:
            yield
        finally:
            del self._watched[id(call)]

    def _run(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            now = time.monotonic()
            for until, call in tuple(self._watched.values()):
                if until < now:
                    call.cancel()
