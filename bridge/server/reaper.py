"""Gives up calls whose message does not come.

A thread that waits for a message waits without an end: grpc has no time limit there,
and a peer needs no credential to begin a call. So somebody else looks at the clock.
"""

import threading
import time
from typing import Protocol

_LOOK_SECONDS = 0.25
_HONEST_SECONDS = 0.25


class Cancellable(Protocol):
    """The part of a call's context that is needed."""

    def cancel(self) -> object:
        """End the call; whoever waits for its message is woken with an error."""


class Reaper:
    """Cancels calls that are watched for too long, or that are too many.

    Args:
        seconds: The longest that a message is waited for.
        most: How many are waited for at a time.
        honest_seconds: A call may wait this long, whatever else is waited for.
        is_eager: Where too many are waited for, give those up that have waited for
            longer, and not only when another call comes.
    """

    def __init__(
        self,
        seconds: float,
        most: int,
        honest_seconds: float = _HONEST_SECONDS,
        *,
        is_eager: bool = False,
    ) -> None:
        self._is_eager = is_eager
        self.seconds = seconds
        self._honest_seconds = honest_seconds
        self._most = most
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

    def watching(self, call: Cancellable) -> "_Watched":
        """Watch `call` until the block ends.

        An honest message comes with the call. Where many are waited for, somebody
        may hold threads on purpose, and a call that has waited for some time already
        is given up for this one.
        """
        if len(self._watched) >= self._most:
            self._give_up_oldest()
        key = id(call)
        self._watched[key] = (time.monotonic() + self.seconds, call)
        return _Watched(self._watched, key)

    def _give_up_oldest(self) -> None:
        # Adding to a dict and taking from it are atomic, looking at its first is not.
        try:
            oldest = next(iter(self._watched))
        except (RuntimeError, StopIteration):
            return
        until, call = self._watched.get(oldest, (0.0, None))
        has_waited = time.monotonic() - (until - self.seconds)
        if call is not None and has_waited > self._honest_seconds:
            self._watched.pop(oldest, None)
            call.cancel()

    def _run(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            now = time.monotonic()
            watched = tuple(self._watched.values())
            if self._is_eager and len(watched) >= self._most:
                now += max(0.0, self.seconds - self._honest_seconds)
            for until, call in watched:
                if until < now:
                    call.cancel()


class _Watched:
    def __init__(self, watched: dict[int, tuple[float, Cancellable]], key: int) -> None:
        self._watched = watched
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._watched.pop(self._key, None)
