"""Gives up calls whose message does not arrive.

grpc waits for a message without a time limit, and a peer needs no credential to begin a
call. The reaper sets the limit.

An honest message arrives with its call, but not always soon: a server with a thousand
new connections reads late. So a few calls may wait for long. When many wait at a time,
and so hold up others, they are given up sooner.
"""

import time
from collections.abc import Callable
from typing import Protocol

from bridge.system.background import BackgroundLoop

_LOOK_SECONDS = 0.05
_MOST_LATE_SECONDS = 0.1
"""The most that counts of the time between two looks. In the rest, the process did not
run."""
_HONEST_SECONDS = 0.5
_HOSTILE_PART = 0.2
"""The part of the honest seconds that counts while there are hostile connections."""
_STRIKES = 3
"""A connection is hostile once this many of its calls were given up. One or two may be
bad luck: Istio's client tries again over the connection that it has."""
_MEMORY_SECONDS = 10.0
"""How long a call that was given up counts."""
_MOST_PEERS = 10_000
_NEVER = (0.0, 0)


class Waiting(Protocol):
    """A call whose message is waited for."""

    def give_up(self) -> None:
        """End the wait for the message."""

    def peer(self) -> str:
        """Return the connection that the call came on."""


class Reaper:
    """Gives up calls that wait for too long, or of which too many wait.

    Args:
        seconds: The longest wait for a message.
        most: When this many calls wait longer than `honest_seconds`, they are given up.
        honest_seconds: See `most`.
        knows_peers: A connection stands for one peer, and is hostile for a while after
            several of its calls were given up. False behind a proxy.
    """

    def __init__(
        self,
        seconds: float,
        most: int,
        *,
        honest_seconds: float = _HONEST_SECONDS,
        knows_peers: bool = True,
    ) -> None:
        self.seconds = seconds
        self._most = most
        self._honest_seconds = honest_seconds
        self._knows_peers = knows_peers
        # Seconds in which this process ran. A peer does not pay for the others.
        self._now = 0.0
        self._hostile_until = 0.0
        self._given_up: dict[str, tuple[float, int]] = {}
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

    def is_hostile(self, peer: Callable[[], str]) -> bool:
        """Tell whether several calls of this connection were given up lately."""
        if not self._given_up:
            return False
        until, strikes = self._given_up.get(peer(), _NEVER)
        return strikes >= _STRIKES and until > self._now

    def look(self, seconds: float) -> None:
        """Give up the calls that have waited for too long.

        Args:
            seconds: The time since the last look.
        """
        self._now += min(seconds, _MOST_LATE_SECONDS)
        now = self._now
        patience = self._honest_seconds
        if now < self._hostile_until:
            patience *= _HOSTILE_PART
        waiting = [(now - since, call) for since, call in self._snapshot()]
        slow = [call for waited, call in waiting if waited > patience]
        if len(slow) >= self._most:
            if not self._knows_peers:
                self._hostile_until = now + _MEMORY_SECONDS
            for call in slow:
                self._give_up(call)
            return
        for waited, call in waiting:
            if waited > self.seconds:
                self._give_up(call)

    def _snapshot(self) -> tuple[tuple[float, Waiting], ...]:
        return tuple(self._watched.copy().values())  # a copy is atomic

    def _give_up(self, call: Waiting) -> None:
        # Forgotten first, so that no later look gives it up again.
        self.forget(call)
        try:
            if self._knows_peers:
                self._remember(call)
        finally:
            call.give_up()

    def _remember(self, call: Waiting) -> None:
        given_up, now = self._given_up, self._now
        if len(given_up) >= _MOST_PEERS:
            given_up.pop(next(iter(given_up)))
        peer = call.peer()
        _, strikes = given_up.pop(peer, _NEVER)
        given_up[peer] = until, strikes = now + _MEMORY_SECONDS, strikes + 1
        if strikes >= _STRIKES:
            self._hostile_until = until

    def _step(self) -> None:
        before, self._looked = self._looked, time.monotonic()
        self.look(self._looked - before)
        self._forgive()

    def _forgive(self) -> None:
        # In the order in which their calls were given up.
        for peer, (until, _) in tuple(self._given_up.items()):
            if until > self._now:
                return
            self._given_up.pop(peer, None)
