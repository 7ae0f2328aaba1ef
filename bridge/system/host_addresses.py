"""The addresses of a host, and connections to them, each with a deadline."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_AGAIN_SECONDS = 30.0
"""A name that was resolved so long ago is resolved again, beside the calls."""
_AFTER_FAILURE_SECONDS = 1.0
_CONNECT_SECONDS = 1.0
"""For one address of a name that has several."""

Address = tuple[Any, Any, int, str, Any]
"""As `socket.getaddrinfo` returns it."""
T = TypeVar("T")


class HostAddresses:
    """The addresses of one host. Safe between threads.

    A name is looked up in a thread, since a lookup that hangs cannot be ended; there is
    one at a time. The last known addresses are used while a new lookup runs.

    Args:
        host: A name, or an address.
        port: The port of connections.

    Raises:
        OSError: It is an address that the system does not know.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._known: list[Address] = []
        self._due = float("-inf")
        self._lookup: threading.Event | None = None
        self._problem = ""
        self._is_literal = _is_literal(host)
        if self._is_literal:
            self._known = _look_up(host, port)

    def resolved(self, until: float) -> list[Address]:
        """Return the addresses, the one that took a connection last first.

        Args:
            until: Of `time.monotonic`: a lookup is awaited no longer.

        Raises:
            TimeoutError: The name is not resolved in time.
            OSError: It cannot be resolved.
        """
        known, now = self._known, time.monotonic()
        if self._is_literal or (known and now < self._due):
            return known
        lookup = self._begin()
        if known:
            return known
        if not lookup.wait(max(0.0, until - now)):
            raise TimeoutError(f"{self._host}: the name is not resolved in time")
        if not self._known:
            raise OSError(self._problem)
        return self._known

    def opened(
        self,
        found: list[Address],
        until: float,
        secured: Callable[[socket.socket, float], T],
    ) -> T:
        """Open a connection to the first of some addresses that takes one.

        Args:
            found: At least one, from `resolved`.
            until: Of `time.monotonic`.
            secured: Makes the handshake on a connection, until a moment; may raise what
                is listed below. The connection is closed then.

        Raises:
            TimeoutError: The last address does not answer in time.
            OSError: It takes no connection.
            ValueError: From `secured`.
        """
        for one in found:
            is_last = one is found[-1]
            ends = until if is_last else min(until, time.monotonic() + _CONNECT_SECONDS)
            try:
                made = _connected(one, ends, secured)
            except (OSError, ValueError):
                if is_last:
                    # With no address that is well, the name may have moved.
                    self._due = min(self._due, time.monotonic())
                    raise
            else:
                self._prefer(one)
                return made
        raise OSError(f"{self._host}: the name has no address")

    def _prefer(self, good: Address) -> None:
        known = self._known
        if known and good is not known[0]:
            self._known = [good, *(one for one in known if one is not good)]

    def _begin(self) -> threading.Event:
        with self._lock:
            if self._lookup is None:
                lookup = threading.Event()
                thread = threading.Thread(
                    target=self._run,
                    args=(lookup,),
                    name=f"resolve-{self._host}",
                    daemon=True,
                )
                try:
                    thread.start()
                except RuntimeError:  # passes: a later call tries again
                    self._problem = f"{self._host}: the system gives no more threads"
                    lookup.set()
                    return lookup
                self._lookup = lookup
            return self._lookup

    def _run(self, lookup: threading.Event) -> None:
        pause = _AFTER_FAILURE_SECONDS
        try:
            self._known = _look_up(self._host, self._port)
            pause = _AGAIN_SECONDS
        except (OSError, UnicodeError) as error:
            text = getattr(error, "strerror", None) or str(error)
            self._problem = f"{self._host}: the name is not resolved: {text}"
        finally:
            self._due = time.monotonic() + pause
            with self._lock:
                self._lookup = None
            lookup.set()


def _connected(
    found: Address, until: float, secured: Callable[[socket.socket, float], T]
) -> T:
    family, kind, protocol, _, address = found
    plain = socket.socket(family, kind, protocol)
    try:
        plain.settimeout(left(until))
        plain.connect(address)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return secured(plain, until)
    except BaseException:
        plain.close()
        raise


def left(until: float) -> float:
    """Return the seconds until a moment of `time.monotonic`.

    Raises:
        TimeoutError: It is over.
    """
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the time is up")
    return seconds


def _look_up(host: str, port: int) -> list[Address]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
