"""The files of one writer: its folder, its lock and its segments."""

import fcntl
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from bridge.errors import LedgerError
from bridge.ledger.chain import Head

_WRITER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SEGMENT = re.compile(r"(\d{8})\.jsonl")
_BLOCK_BYTES = 1 << 16


class JournalFile(Protocol):
    """A segment that is being written. Raises `OSError` as the disk does."""

    def write(self, data: bytes) -> int:
        """Append `data`, or the first bytes of it; return how many."""

    def sync(self) -> None:
        """Return when everything written is on disk."""

    def settle(self) -> None:
        """Return when the segment needs no other file to be whole after a power cut."""

    def cut(self, size: int) -> None:
        """Drop what follows the first `size` bytes; return when the disk has."""

    def close(self) -> None:
        """Release the file."""


class DiskFile:
    """A segment on a real disk. See `JournalFile`."""

    def __init__(self, path: Path) -> None:
        # O_EXCL: a segment is never written by two.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        try:
            sync_folder(path.parent)
        except OSError:
            os.close(self._fd)
            raise

    def write(self, data: bytes) -> int:
        """See `JournalFile.write`."""
        return os.write(self._fd, data)

    def sync(self) -> None:
        """See `JournalFile.sync`."""
        os.fdatasync(self._fd)

    def settle(self) -> None:
        """See `JournalFile.settle`. A sync has done that."""

    def cut(self, size: int) -> None:
        """See `JournalFile.cut`."""
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)

    def close(self) -> None:
        """See `JournalFile.close`."""
        os.close(self._fd)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path, writer: str) -> Path:
    """Return the folder of `writer` under `folder`, made when absent.

    Raises:
        LedgerError: The name cannot be a folder's, or the folder cannot be made.
    """
    if not _WRITER.fullmatch(writer):
        raise LedgerError(f"{writer!r} cannot name a writer of the ledger")
    path = folder / writer
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise unusable(path, error) from error
    return path


def lock(folder: Path) -> int:
    """Take the folder of a writer; return the descriptor that holds it.

    Raises:
        LedgerError: Another process holds it; the message names its pid.
    """
    path = folder / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unusable(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise LedgerError(
            f"{folder}: another process writes this journal: pid {pid}",
            rule="ledger.locked",
        ) from error
    except OSError as error:
        os.close(fd)
        raise unusable(path, error) from error
    return fd


def is_locked(folder: Path) -> bool:
    """Return whether a writer is at work in `folder`."""
    try:
        fd = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment; the first has the number 1."""
    return folder / f"{number:08d}.jsonl"


def segments(folder: Path) -> list[tuple[int, Path]]:
    """Return number and file of each segment, in order."""
    found = ((_SEGMENT.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def after_last_newline(path: Path, skip: int = 0) -> bytes:
    """Return the bytes after the last newline; `skip` leaves that many at the end out.

    Reads from the end: a last line is short, and a segment is not.
    """
    with path.open("rb") as file:
        start, found = file.seek(0, os.SEEK_END) - skip, b""
        while start > 0 and b"\n" not in found:
            step = min(_BLOCK_BYTES, start)
            start -= step
            file.seek(start)
            found = file.read(step) + found
    return found.rpartition(b"\n")[2]


def require_ends_in(path: Path, size: int, head: Head) -> None:
    """Raise unless the first `size` bytes of a segment end in the row of `head`.

    Raises:
        LedgerError: Somebody changed the file under its writer.
        OSError: It cannot be read.
    """
    beyond = path.stat().st_size - size
    last = after_last_newline(path, beyond + 1) if beyond >= 0 else b""
    if sha256(last).hexdigest() != head.digest:
        raise LedgerError(
            f"{path}: this is not what was written: somebody changed the journal",
            rule="ledger.chain",
            detail=f"{path}: somebody changed the journal while its disk was full",
        )


def unusable(path: Path, error: OSError) -> LedgerError:
    """Build the error of a file that the disk does not give us."""
    return LedgerError(
        f"{path}: the journal cannot be used: {error.strerror or error}",
        rule="ledger.write",
    )
