"""Gives up calls whose message does not come.

A message is waited for without an end: grpc has no time limit there, and a peer needs
no credential to begin a call. So somebody else looks at the clock.

An honest message comes with its call, but not always soon: a server that a thousand
connections come in on reads late. So one that waits alone is let wait for long; only
when many wait at the same time, and so hold up others, they are given up sooner.
"""

import time
from collections.abc import Callable
from typing import Protocol

from bridge.system.background import BackgroundLoop

_LOOK_SECONDS = 0.05
_MOST_LATE_SECONDS = 0.1
"""Counted of the time between two looks: in the rest, this process did not run."""
_HONEST_SECONDS = 0.5
_HOSTILE_PART = 0.2
"""Of the honest seconds, while there are hostile connections."""
_STRIKES = 3
"""So many calls of one connection that were given up make it hostile: Istio's client
asks again over the connection that it has, so one or two may be bad luck."""
_MEMORY_SECONDS = 10.0
"""So long is a call that was given up remembered."""
_MOST_PEERS = 10_000
_NEVER = (0.0, 0)


class Waiting(Protocol):
    """A call whose message is waited for."""

    def give_up(self) -> None:
        """Wake whoever waits for the message: it is not waited for any longer."""

    def peer(self) -> str:
        """Return the connection that the call came on."""


class Reaper:
    """Gives up calls that are watched for too long, or that are too many.

    Args:
        seconds: The longest that a message is waited for.
        most: So many are too many to be waited for at a time, but for a moment.
        honest_seconds: That moment: calls that wait for longer are fewer than `most`.
        knows_peers: Who is given up is known by its connection for a while. Not where
            somebody in front of us brings the calls of all in one.
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
        # Seconds in which this process ran: what it was held up for, no peer pays for.
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
        """Watch it no longer. May be repeated."""
        self._watched.pop(id(call), None)

    def is_hostile(self, peer: Callable[[], str]) -> bool:
        """Say whether several calls of this connection were given up of late."""
        if not self._given_up:
            return False
        until, strikes = self._given_up.get(peer(), _NEVER)
        return strikes >= _STRIKES and until > self._now

    def look(self, seconds: float) -> None:
        """Give up what is to be given up.

        Args:
            seconds: Since the last look.
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
        # Once: whoever waits may need some looks to wake up.
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
        # In the order that they were given up.
        for peer, (until, _) in tuple(self._given_up.items()):
            if until > self._now:
                return
            self._given_up.pop(peer, None)
