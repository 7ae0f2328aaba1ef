"""TLS handshakes in memory, between the ends of any two libraries like `ssl`."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

_TURNS = 20
"""More than a handshake has."""


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """One end of a connection in memory."""

    tls: Any
    incoming: Any
    outgoing: Any

    @classmethod
    def of(cls, library: ModuleType, context: Any, **options: Any) -> Self:
        """Wrap two buffers.

        Args:
            library: `ssl` or `rtls`, which `context` is of.
            context: What the end holds and wants.
            options: Of `wrap_bio`.
        """
        incoming, outgoing = library.MemoryBIO(), library.MemoryBIO()
        return cls(context.wrap_bio(incoming, outgoing, **options), incoming, outgoing)


class RefusedError(Exception):
    """An end has refused the other; the cause is what its library raised."""

    def __init__(self, end: End, reason: Exception) -> None:
        super().__init__(str(reason))
        self.end = end
        self.reason = reason


def turns(client: End, server: End) -> Iterator[tuple[End, End]]:
    """Yield each end and the other, the client first."""
    yield client, server
    yield server, client


def shake_hands(client: End, server: End) -> None:
    """Have the two shake hands.

    Raises:
        RefusedError: One does not want to.
        AssertionError: They come to no end.
    """
    ended: set[End] = set()
    for _ in range(_TURNS):
        for end, other in turns(client, server):
            try:
                end.tls.do_handshake()
                ended.add(end)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:  # or a class of `rtls` below it
                raise RefusedError(end, error) from error
            other.incoming.write(end.outgoing.read())
        if len(ended) == len((client, server)):
            return
    raise AssertionError("the handshake does not end")
