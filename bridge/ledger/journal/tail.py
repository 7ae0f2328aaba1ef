"""What a crash, or a power cut, left after the last row of a journal."""

import os
from pathlib import Path

from bridge.errors import LedgerError
from bridge.ledger.chain import Head, Row, parse
from bridge.ledger.journal.segments import after_last_newline, segments, sync_folder


def move_torn_aside(folder: Path, published: Head | None) -> None:
    """Move what follows the last row of the last segment into a file `.torn` beside it.

    A row is on disk, whole, before anybody is told so. What a crash leaves behind the
    last of them may be anything: a part of a row, NUL bytes, newlines among them. It is
    moved if nothing after it is a row, and if no head was published of a row in there.
    Whether the rows before it are in order is for the caller to see.

    Raises:
        LedgerError: A row in there was published.
        OSError: The disk fails.
    """
    files = [path for _, path in segments(folder)]
    if not files:
        return
    path = files[-1]
    size, last = readable(path)
    if size == path.stat().st_size:
        return
    if published is not None:
        newest = last.seq if last else _last_seq(files[:-1])
        if newest < published.seq:
            raise cut_error(folder, newest, published)
    set_aside(path, size)


def set_aside(path: Path, size: int) -> None:
    """Keep the first `size` bytes of a segment, and the rest in a file beside it."""
    with path.open("rb") as file:
        file.seek(size)
        torn = file.read()
    # Appending: after a crash in here, the next start writes them a second time rather
    # than overwriting anything.
    aside = path.with_name(f"{path.name}.torn")
    fd = os.open(aside, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(torn)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def readable(path: Path) -> tuple[int, Row | None]:
    """Return where the last row of a segment ends, in bytes, and this row."""
    size = path.stat().st_size
    if not size:
        return 0, None
    torn = after_last_newline(path)
    last = None if torn else _row(after_last_newline(path, 1))
    if last is not None:
        return size, last
    data = path.read_bytes()
    lines = data.split(b"\n")
    # The last one has no newline: whatever it is, it is no whole row.
    end = size - len(lines.pop())
    while lines:
        line = lines.pop()
        if (row := _row(line)) is not None:
            return end, row
        end -= len(line) + 1
    return 0, None


def cut_error(folder: Path, last_seq: int, published: Head) -> LedgerError:
    """Build the error of a journal that does not hold its published head."""
    return LedgerError(
        f"{folder}: the journal ends at row {last_seq} and its published head is row "
        f"{published.seq} of another or a longer one: it was cut or restored from an "
        f"older copy. Put the newer one back; {way_out(folder.name)}",
        rule="ledger.cut",
    )


def way_out(writer: str) -> str:
    """Return what an operator may do who has lost something."""
    return (
        "if it is lost, look at what is left, stop the server, and run `meshca ledger "
        f"attest -c FILE --writer {writer} --reason TEXT`"
    )


def _last_seq(files: list[Path]) -> int:
    for path in reversed(files):
        _, last = readable(path)
        if last is not None:
            return last.seq
    return -1


def _row(line: bytes) -> Row | None:
    try:
        return parse(line)
    except ValueError:
        return None
