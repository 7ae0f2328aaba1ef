"""An answer of an API server that is read while the server writes it."""

import time
from collections.abc import Iterator
from http.client import IncompleteRead

from bridge.system.http_client import HTTPAnswer, HTTPConnection

_LONGEST_LINE = 4 << 20
"""One object, of which etcd takes 1.5 MiB. Read as JSON, it may take 30 times as much
memory."""


class Stream:
    """An answer of any length. For one thread.

    Args:
        connection: The request was sent on it; for this answer alone.
        until: When its head has to be there.
        silence: The most seconds from line to line.

    Raises:
        Exception: See `HTTPConnection.receive`.
    """

    def __init__(
        self, connection: HTTPConnection, until: float, silence: float
    ) -> None:
        self._connection = connection
        self._silence = silence
        connection.keep_alive()
        self._answer = connection.begin(until)
        self._pieces = self._answer.pieces()
        self.status = self._answer.status
        """The HTTP status."""

    def lines(self) -> Iterator[bytes]:
        """Yield each line as it comes; end where the server ends the answer in order.

        Raises:
            TimeoutError: No line comes for too long.
            OSError: The connection is lost.
            HTTPException: It ends amid the answer.
            ValueError: A line is too long.
        """
        # Joined as it comes: a list of pieces of two bytes takes 30 times the memory.
        pending = bytearray()
        until = time.monotonic() + self._silence
        while piece := self._piece(until):
            *lines, rest = piece.split(b"\n")
            for line in lines:
                yield bytes(pending + line)
                pending.clear()
            if lines:
                until = time.monotonic() + self._silence
            pending += rest
            if len(pending) > _LONGEST_LINE:
                raise ValueError(f"a line has more than {_LONGEST_LINE} bytes")
        if pending:
            raise IncompleteRead(bytes(pending))

    def body(self, most: int) -> bytes:
        """Return the whole answer, of at most `most` bytes. Raises as `lines` does."""
        read = bytearray()
        until = time.monotonic() + self._silence
        while piece := self._piece(until):
            read += piece
            if len(read) > most:
                raise ValueError(f"the answer has more than {most} bytes")
        return bytes(read)

    def refusal(self, until: float) -> HTTPAnswer:
        """Return the whole answer, which is an error and short."""
        self._answer.until = until
        body = self._answer.whole()
        return HTTPAnswer(self.status, self._answer.head, body, keeps=False)

    def close(self) -> None:
        """Close the connection; may be called by another thread."""
        self._connection.close()

    def _piece(self, until: float) -> bytes:
        self._answer.until = until
        return next(self._pieces, b"")
