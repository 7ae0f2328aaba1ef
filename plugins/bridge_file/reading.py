"""Reads files that someone else replaces, and refuses secrets that others can read."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bridge.spi import ConfigError

_LARGEST_BYTES = 1 << 20
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

Stamp = tuple[tuple[str, int, int, int, int], ...]
"""What shows, without reading, that a set of files has changed."""


def read_public(path: Path) -> bytes:
    """Read a file of certificates.

    Raises:
        ConfigError: It is absent, unreadable, not a file, or larger than 1 MiB.
    """
    with _opened(path) as file:
        return _content(file, path)


def read_secret(path: Path, *, allow_group_read: bool) -> bytes:
    """Read a key or a passphrase.

    The mode that counts is that of the opened file: a Secret's files are symbolic
    links, and whoever could swap the file after a look at its name gains nothing.

    Args:
        path: The file, or a symbolic link to it.
        allow_group_read: Whether the file's group may read (and only read) it.

    Raises:
        ConfigError: As `read_public`, or somebody besides the owner has a right to it.
    """
    with _opened(path) as file:
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        tolerated = stat.S_IRGRP if allow_group_read else 0
        if mode & _OTHERS & ~tolerated:
            hint = f"; run chmod 600 {path}"
            if mode & _OTHERS == stat.S_IRGRP:
                hint += ", or set allow_group_read: true if it is a Secret's fsGroup"
            raise ConfigError(
                f"{path}: expected a file that only its owner can read, such as mode "
                f"0600 (found {mode:04o}){hint}",
                rule="file.mode",
            )
        return _content(file, path)


def stamp_of(paths: Iterable[Path]) -> Stamp:
    """Look at where each path leads and what is there; absent files are part of it."""
    return tuple(_stamp(path) for path in paths)


def digest_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over what all files hold; unreadable ones count as absent."""
    contents: dict[Path, bytes] = {}
    for path in paths:
        try:
            contents[path] = read_public(path)
        except ConfigError:
            continue
    return digest_of_contents(contents)


def digest_of_contents(contents: Mapping[Path, bytes]) -> str:
    """Return the SHA-256 over a set of files that were read."""
    parts = [
        f"{path}:{hashlib.sha256(content).hexdigest()}"
        for path, content in sorted(contents.items())
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(path: Path) -> tuple[str, int, int, int, int]:
    try:
        real = os.path.realpath(path, strict=True)
        found = os.stat(real)  # noqa: PTH116 - beside realpath, whose strict mode pathlib renames
    except OSError as error:
        return "", error.errno or 0, 0, 0, 0
    return real, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    # Without O_NONBLOCK the open of a FIFO would wait for a writer.
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
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


def _unreadable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"{path}: cannot be read: {reason}", rule="file.read")
