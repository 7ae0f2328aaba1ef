"""The files of one writer: its folder, its lock and its segments."""

import fcntl
import os
import re
from hashlib import sha256
from pathlib import Path

from bridge.errors import LedgerError
from bridge.ledger.chain import Head
from bridge.resilience.latch_file import STATE_FOLDER
from bridge.system.files import replace, sync_folder

_WRITER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SEGMENT = re.compile(r"(\d{8})\.jsonl")
_AHEAD = "ahead"
"""A file of earlier versions: the newest rows of a journal that was not closed."""


class JournalFile:
    """A segment that is being written. Every method raises `OSError`."""

    def __init__(self, path: Path) -> None:
        # O_EXCL: a segment has one writer.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        try:
            sync_folder(path.parent)
        except OSError:
            os.close(self._fd)
            raise

    def write(self, data: bytes) -> int:
        """Append `data`, or its first bytes; return how many."""
        return os.write(self._fd, data)

    def sync(self) -> None:
        """Return when all written bytes are on disk."""
        os.fdatasync(self._fd)

    def cut(self, size: int) -> None:
        """Drop all bytes after the first `size`; return when that is on disk."""
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def make_folder(folder: Path, writer: str) -> Path:
    """Return the folder of `writer` under `folder`, made when absent.

    Raises:
        LedgerError: The name is no name of a folder, or the folder cannot be made.
    """
    if not _WRITER.fullmatch(writer) or writer == STATE_FOLDER:
        raise LedgerError(f"{writer!r} cannot name a writer of the ledger")
    path = folder / writer
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise unusable(path, error) from error
    return path


def writer_folders(folder: Path) -> list[Path]:
    """Return the folders of all writers under `folder`, in the order of their names.

    Raises:
        OSError: There is no such folder, or it cannot be read.
    """
    found = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path for path in found if path.name != STATE_FOLDER)


def lock(folder: Path) -> int:
    """Lock the folder of a writer; return the descriptor that holds the lock.

    Raises:
        LedgerError: Another process holds the lock; the message names its pid.
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
            f"{folder}: another process writes this journal: pid {pid}; stop it, "
            "or give this bridge another ledger.journal",
            rule="ledger.locked",
        ) from error
    except OSError as error:
        os.close(fd)
        raise unusable(path, error) from error
    return fd


def is_locked(folder: Path) -> bool:
    """Return whether a process writes the journal in `folder`."""
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
    """Return the path of a segment; the first has the number 1."""
    return folder / f"{number:08d}.jsonl"


def segments(folder: Path) -> list[tuple[int, Path]]:
    """Return number and path of each segment, in order."""
    found = ((_SEGMENT.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def require_ends_in(path: Path, size: int, head: Head) -> None:
    """Raise unless the first `size` bytes of a segment end in the row of `head`.

    Raises:
        LedgerError: The file was changed while its writer had it open.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        written = file.read(size)
    last = written[:-1].rpartition(b"\n")[2]
    if len(written) < size or sha256(last).hexdigest() != head.digest:
        raise LedgerError(
            f"{path}: the journal does not end in the row that was written last",
            rule="ledger.chain",
            detail=f"{path}: the journal was changed while its disk was full",
        )


def unusable(path: Path, error: OSError) -> LedgerError:
    """Build the error of a file that cannot be read or written."""
    return LedgerError(
        f"{path}: the journal cannot be used: {error.strerror or error}",
        rule="ledger.write",
    )


def set_aside(path: Path, size: int) -> None:
    """Cut a segment to its first `size` bytes; move the rest into a file `.torn`."""
    with path.open("rb") as file:
        file.seek(size)
        torn = file.read()
    # Appends: if this process dies here, the next start writes the bytes a second time
    # and overwrites none.
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


def rewrite(path: Path) -> None:
    """Write a segment into a new file on disk, and give that file its name.

    For a segment whose writer was killed, or whose sync failed. The rows may be in the
    page cache alone, and a later sync of the same file need not write them: the kernel
    reports a failed write once.

    Raises:
        OSError: The disk fails. The segment is as it was.
    """
    replace(path, path.read_bytes())


def ahead_of(folder: Path) -> Path | None:
    """Return the file `ahead` that an earlier version left with a journal, or None."""
    path = folder / _AHEAD
    return path if os.path.lexists(path) else None


def require_no_ahead(folder: Path) -> None:
    """Raise if an earlier version left rows of a journal in a file `ahead`.

    Raises:
        LedgerError: There is such a file.
    """
    if (path := ahead_of(folder)) is not None:
        raise LedgerError(
            f"{path}: an earlier version of meshca-bridge wrote this file and was "
            "killed: it may hold the newest rows of the journal. Start that version, "
            f"and stop it with SIGTERM; {way_out(folder.name)}",
            rule="ledger.cut",
        )


def cut_error(folder: Path, last_seq: int, published: Head) -> LedgerError:
    """Build the error of a journal that does not hold its published head."""
    return LedgerError(
        f"{folder}: the journal ends at row {last_seq} and its published head is row "
        f"{published.seq} of another or a longer one: it was cut or restored from an "
        f"older copy. Put the newer one back; {way_out(folder.name)}",
        rule="ledger.cut",
    )


def way_out(writer: str) -> str:
    """Return what an operator can do when a journal, or its heads, are lost."""
    return (
        "if it is lost, look at what is left, stop the server, and run `meshca ledger "
        f"accept -c FILE --writer {writer} --reason TEXT`"
    )
