"""Files: read secrets, notice changes, replace, lock, and write without overwriting."""

import errno
import fcntl
import hashlib
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bridge.errors import ConfigError

_LARGEST_BYTES = 1 << 20
_POLL_SECONDS = 0.01
_STEP_BYTES = 1 << 16
PASSING_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Errors of a system that gives no descriptor or memory now. The disk is in order."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

Stamp = tuple[tuple[str, int, int, int, int, int], ...]
"""Shows, without a read of their content, that a set of files has changed."""


def read_public(path: Path) -> bytes:
    """Read a file that holds no secret, such as certificates.

    Raises:
        ConfigError: It is absent, unreadable, not a file, or larger than 1 MiB.
    """
    with _opened(path) as file:
        return _content(file, path)


def read_secret(
    path: Path, *, allow_group_read: bool = False, group_hint: str = ""
) -> bytes:
    """Read a file that holds a secret, such as a key or a passphrase.

    The mode that counts is that of the opened file. A Secret's files are symbolic
    links, and a swap of the file after a look at its name gains nothing.

    Args:
        path: The file, or a symbolic link to it.
        allow_group_read: Whether the file's group may read (and only read) it.
        group_hint: Ends the message where only the group's right to read is refused.

    Raises:
        ConfigError: As `read_public`, or others than the owner have a right to it.
    """
    with _opened(path) as file:
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        tolerated, who, modes = 0, "only its owner", "0600"
        if allow_group_read:
            who, modes = "only its owner, and at most its group,", "0600 or 0440"
            tolerated = stat.S_IRGRP
        if mode & _OTHERS & ~tolerated:
            hint = group_hint if mode & _OTHERS == stat.S_IRGRP else ""
            raise ConfigError(
                f"{path}: expected a file that {who} can read, such as mode {modes} "
                f"(found {mode:04o}); {mode_advice(path)}{hint}",
                rule="file.mode",
            )
        return _content(file, path)


def mode_advice(path: Path) -> str:
    """Return how the mode of a secret's file can be changed where the file is.

    Args:
        path: A file that others than the owner can read.
    """
    real = os.path.realpath(path)
    if _is_projected(path) or os.statvfs(real).f_flag & os.ST_RDONLY:
        return (
            "it is in a volume, where chmod has no effect: set defaultMode: 0400 in "
            "the Secret's volume, or mode of the item"
        )
    return f"run chmod 600 {shlex.quote(str(path))}"


def stamp_of(paths: Iterable[Path]) -> Stamp:
    """Return where each path leads, and inode, time, size and mode of the file there.

    An absent file has a stamp as well.
    """
    return tuple(_stamp(path) for path in paths)


def digest_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the content of all files; unreadable ones are absent."""
    contents: dict[Path, bytes] = {}
    for path in paths:
        with suppress(ConfigError):
            contents[path] = read_public(path)
    return digest_of_contents(contents)


def digest_of_contents(contents: Mapping[Path, bytes]) -> str:
    """Return the SHA-256 over a set of files that were read."""
    parts = [
        f"{path}:{hashlib.sha256(content).hexdigest()}"
        for path, content in sorted(contents.items())
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_new(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into `folder`, readable by the owner only; overwrite none.

    Args:
        folder: It, and folders in it, are made with mode 0700 where they are not there.
        files: Contents by their paths below `folder`.

    Raises:
        ConfigError: One of them exists, or the folder cannot be written. Nothing is
            left behind.
    """
    try:
        create_all(folder, files, lambda _: 0o600)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: expected a new file ({error.strerror})"
        ) from error


def create_all(
    folder: Path, files: Mapping[str, bytes], mode_of: Callable[[bytes], int]
) -> None:
    """Write `files` as `write_new` does.

    Args:
        folder: See `write_new`.
        files: See `write_new`.
        mode_of: Returns the mode of a file by its content.

    Raises:
        OSError: See `write_new`.
    """
    made: list[Path] = []
    try:
        for name, content in files.items():
            path = folder / name
            _make_folders(path.parent, made)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(path, flags, mode_of(content)), "wb") as file:
                made.append(path)
                file.write(content)
    except OSError:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _make_folders(folder: Path, made: list[Path]) -> None:
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(new):
        # One that somebody else has made meanwhile has another mode, or another owner.
        one.mkdir(mode=0o700, exist_ok=one != folder)
        made.append(one)


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `content` to a new file on disk, and give that file the name `path`.

    After a crash, `path` is the old file or the new one, whole.

    Raises:
        OSError: The disk fails. The file at `path` is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        # What a crash left may belong to another user, who alone may write to it.
        new.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(new, flags, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    with _folder(folder) as fd:
        os.fsync(fd)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, which every process that calls this waits for.

    Raises:
        OSError: The folder cannot be opened or locked.
    """
    with _folder(folder) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def flock(fd: int, seconds: float) -> None:
    """Lock an open file. The lock ends when the file is closed.

    Args:
        fd: The file. Other openings of it, also in this process, wait for the lock.
        seconds: How long to wait.

    Raises:
        TimeoutError: Another process holds the lock for longer.
        OSError: The file cannot be locked.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError("another process holds the lock") from None
            time.sleep(_POLL_SECONDS)
        else:
            return


def lines_backwards(path: Path, sought: bytes = b"") -> Iterator[tuple[int, bytes]]:
    """Yield byte offset and content of each line that ends in a newline, last first.

    Args:
        path: The file.
        sought: Lines without these bytes are left out.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start, rest, is_last = file.seek(0, os.SEEK_END), b"", True
        while start > 0:
            step = min(_STEP_BYTES, start)
            start -= step
            file.seek(start)
            data = file.read(step) + rest
            if sought not in data and not is_last:
                # Fast, since a file may have years of lines.
                rest = data.partition(b"\n")[0]
                continue
            rest, *lines = data.split(b"\n")
            offset = start + len(rest) + sum(map(len, lines)) + len(lines)
            for line in reversed(lines):
                offset -= len(line)
                if not is_last and sought in line:
                    yield offset, line
                is_last = False
                offset -= 1
        if not is_last and sought in rest:
            yield 0, rest


@contextmanager
def _folder(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _stamp(path: Path) -> tuple[str, int, int, int, int, int]:
    try:
        real = os.path.realpath(path, strict=True)
        found = os.stat(real)  # noqa: PTH116 - beside realpath, whose strict mode pathlib renames
    except OSError as error:
        return "", error.errno or 0, 0, 0, 0, 0
    return (
        *(real, found.st_dev, found.st_ino),
        *(found.st_mtime_ns, found.st_size, found.st_mode),
    )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    # Without O_NONBLOCK the open of a FIFO would wait for a writer.
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, failure_text(path, error)) from error
    try:
        yield file
    finally:
        os.close(file)


def _content(file: int, path: Path) -> bytes:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise _unreadable(path, "not a regular file")
    parts = []
    left = _LARGEST_BYTES + 1
    try:
        while left and (part := os.read(file, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
    if not left:
        raise _unreadable(path, f"larger than {_LARGEST_BYTES} bytes")
    return b"".join(parts)


def failure_text(path: Path, error: OSError) -> str:
    """Return why a file cannot be read or written, and what may be done about it.

    Args:
        path: The file, or its folder.
        error: What the system said.
    """
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        way_out = "let this user have the file, and enter its folders"
        if _is_projected(path):
            way_out = "set fsGroup in the securityContext of the pod"
        return f"{reason} for the user with uid {os.geteuid()}: {way_out}"
    if isinstance(error, FileNotFoundError):
        absent = [folder for folder in path.parents if not folder.exists()]
        if absent:
            return f"{reason}: there is no folder {absent[-1]}"
    return reason


def _is_projected(path: Path) -> bool:
    # Kubernetes keeps the files of a volume in a folder `..TIME` behind links.
    try:
        real = Path(os.path.realpath(path))
    except OSError:
        return False
    return any(part.startswith("..") for part in real.parts)


def _unreadable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"{path}: cannot be read: {reason}", rule="file.read")
