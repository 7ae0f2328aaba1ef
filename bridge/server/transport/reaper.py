"""Gives up calls whose message does not arrive.

grpc waits for a message without a time limit, and a peer needs no credential to begin a
call. The reaper sets the limit. It is a long one: a server with a thousand new
connections reads late. What bounds the number of calls is `MessageReader`.
"""

import time
from typing import Protocol

from bridge.system.background import BackgroundLoop

_LOOK_SECONDS = 0.05
_MOST_LATE_SECONDS = 0.1
"""The most that counts of the time between two looks. In the rest, the process did not
run."""


class Waiting(Protocol):
    """A call whose message is waited for."""

    def give_up(self) -> None:
        """End the wait for the message."""


class Reaper:
    """Gives up calls that wait for too long.

    Args:
        seconds: The longest wait for a message.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # Seconds in which this process ran. A peer does not pay for the others.
        self._now = 0.0
        self._watched: dict[int, tuple[float, Waiting]] = {}
        self._looked = 0.0
        self._loop = BackgroundLoop("stalled-calls", self._step, _LOOK_SECONDS)

    def start(self) -> None:
        """Begin to look."""
        self._looked = time.monotonic()
        self._loop.start()

    def close(self) -> None:
        """Stop looking. May be called twice, or before `start`."""
        self._loop.close()

    def watch(self, call: Waiting) -> None:
        """Watch `call` until it is forgotten or given up."""
        self._watched[id(call)] = (self._now, call)

    def forget(self, call: Waiting) -> None:
        """Stop watching `call`. May be repeated."""
        self._watched.pop(id(call), None)

    def look(self, seconds: float) -> None:
        """Give up the calls that have waited for too long.

        Args:
            seconds: The time since the last look.
        """
        self._now += min(seconds, _MOST_LATE_SECONDS)
        for since, call in self._watched.copy().values():  # a copy is atomic
            if self._now - since <= self.seconds:
                return  # they are in the order in which they began to wait
            # Forgotten first, so that no later look gives it up again.
            self.forget(call)
            call.give_up()

    def _step(self) -> None:
        before, self._looked = self._looked, time.monotonic()
        self.look(self._looked - before)
