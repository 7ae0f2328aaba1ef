"""Where signed heads go: a file that the journal's owner should not be able to edit."""

import os
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import LedgerError
from bridge.ledger.chain import Head, canonical, microseconds
from bridge.ledger.heads import HeadKey, SignedHead, parse_head
from bridge.system.clock import Clock

_BLOCK_BYTES = 1 << 16


class HeadSink:
    """A file of signed heads, one JSON line each; several writers may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, head: SignedHead) -> None:
        """Write one head and return when the disk has it.

        Raises:
            LedgerError: It may not be on disk.
        """
        line = canonical(head.values()) + b"\n"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o600)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    # A crash tore the line before: it stays, and ours gets its own.
                    line = b"\n" + line
                if os.write(fd, line) != len(line):
                    raise OSError("the disk took only a part")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise LedgerError(
                "the head of the ledger cannot be published",
                rule="ledger.heads",
                detail=f"{self.path}: {error.strerror or error}",
            ) from error

    def read(self) -> Iterator[tuple[int, SignedHead]]:
        """Yield line number and head of each whole line.

        Raises:
            LedgerError: A line is not a head. The message names file and line.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if (head := parse_head(line)) is not None:
                    yield number, head
                elif line.endswith(b"}\n"):
                    raise LedgerError(f"{self.path}:{number}: this is not a head")

    def newest(self, writer: str) -> SignedHead | None:
        """Return the newest head of `writer`, read from the end of the file.

        Raises:
            LedgerError: The file cannot be read.
        """
        try:
            for line in _lines_backwards(self.path):
                head = parse_head(line)
                if head is not None and head.writer == writer:
                    return head
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(
                f"{self.path}: the published heads cannot be read: {error.strerror}",
                rule="ledger.heads",
            ) from error
        return None


class HeadPublisher:
    """Signs a writer's head and hands it to the sink, whenever it has moved."""

    def __init__(self, writer: str, key: HeadKey, sink: HeadSink, clock: Clock) -> None:
        self._writer = writer
        self._key = key
        self._sink = sink
        self._clock = clock
        self._published: Head | None = None

    def publish(self, head: Head) -> None:
        """Publish `head`, unless it was the last one published.

        Raises:
            LedgerError: See `HeadSink.append`.
        """
        if head != self._published:
            at = microseconds(self._clock)
            self._sink.append(self._key.sign(self._writer, head, at))
            self._published = head


def _lines_backwards(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        start, rest = file.seek(0, os.SEEK_END), b""
        while start > 0:
            step = min(_BLOCK_BYTES, start)
            start -= step
            file.seek(start)
            rest, *lines = (file.read(step) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest
