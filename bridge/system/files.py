"""Writing results: all files or none, and never over another one."""

import os
from collections.abc import Mapping
from pathlib import Path

from bridge.errors import ConfigError


def write_new(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into `folder`, readable by the owner only.

    Raises:
        ConfigError: One of them exists, or the folder cannot be written; nothing is
            left behind.
    """
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            path = folder / name
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                written.append(path)
                file.write(content)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise ConfigError(
            f"{error.filename or folder}: expected a new file ({error.strerror})"
        ) from error
