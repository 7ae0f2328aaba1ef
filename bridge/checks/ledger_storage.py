"""Tries the places where the ledger would write; makes nothing, and leaves nothing."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bridge.config import BridgeConfig
from bridge.errors import BridgeError, ConfigError
from bridge.system.files import failure_text

_SQLITE = b"SQLite format 3\0"


def ledger_places(config: BridgeConfig) -> Iterator[tuple[str, str, str]]:
    """Try every place of `ledger`.

    Yields:
        Key, what is good about it, and its problem; empty if it has none.
    """
    ledger = config.ledger
    journal, sink, key = ledger.journal, ledger.heads.sink, ledger.heads.key
    places: tuple[tuple[str, str, Callable[[], None]], ...] = (
        ("journal", f"can be written: {journal}", lambda: _try_journal(journal)),
        ("archive", "can be opened", lambda: _try_archive(config)),
        ("heads.sink", f"can be written: {sink}", lambda: _try_file(sink)),
        ("heads.key", "can sign", lambda: _try_key(key, journal)),
    )
    for name, fine, attempt in places:
        try:
            attempt()
        except BridgeError as error:
            yield f"ledger.{name}", "", str(error)
        else:
            yield f"ledger.{name}", fine, ""


def _try_journal(folder: Path) -> None:
    # It is made with all folders above it.
    while not os.path.lexists(folder):
        folder = folder.parent
    _try_folder(folder)


def _try_archive(config: BridgeConfig) -> None:
    from bridge.ledger.archive.database import sqlite_file  # noqa: PLC0415 - slow

    path = sqlite_file(config.ledger.archive)
    if path is None:
        return
    _try_file(path)
    if path.exists():
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
        if start not in (b"", _SQLITE):
            raise ConfigError(
                f"{path}: expected a database of SQLite, or no file (found another "
                "kind of file): name another one, or move this one away"
            )


def _try_file(path: Path) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: expected a file")
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        pass  # it will be made there
    except OSError as error:
        reason = failure_text(path, error)
        raise ConfigError(f"{path}: cannot be written: {reason}") from error
    _try_folder(path.parent)


def _try_folder(folder: Path) -> None:
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist: make the folder first")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    try:
        # A mount or /proc may not allow what the mode of a folder allows.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".meshca-check-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        reason = failure_text(folder, error)
        raise ConfigError(f"cannot write in {folder}: {reason}") from error


def _try_key(path: Path | None, journal: Path) -> None:
    from bridge.ledger.heads import HeadKey  # noqa: PLC0415 - slow

    own = journal / "heads.key"
    if path is not None:
        HeadKey.load(path)
    elif own.exists():
        HeadKey.load(own)
