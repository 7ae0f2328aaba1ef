"""A CA's key in a file, used by an operator in a ceremony. For trying, and for tests.

Anybody who can read the file is this CA: an offline root's key belongs in a token.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bridge.sdk import (
    CAPrivateKey,
    KeyAlgorithm,
    PluginOptions,
    key_pem,
    new_key,
    parse_options,
    read_secret,
)
from bridge.spi import ConfigError, PluginContext, Signer
from bridge_file import FileSigner
from bridge_file.private_key import parse_key

_ENCRYPTED = (b"-----BEGIN ENCRYPTED", b"4,ENCRYPTED")


class FileKeyOptions(PluginOptions):
    """Which file."""

    path: Annotated[Path, Field(strict=False)]
    make: KeyAlgorithm | None = None


def open_key(options: Mapping[str, object], secret: Callable[[str], str], /) -> Signer:
    """Open a key of a file. See `bridge.registry.SignerFactory`."""
    context = PluginContext(name="key", base=Path())
    parsed = parse_options(FileKeyOptions, options, context)
    path = parsed.path
    if parsed.make is not None and not os.path.lexists(path):
        _write(path, new_key(parsed.make))
    data = read_secret(path)
    passphrase = None
    if any(mark in data for mark in _ENCRYPTED):
        passphrase = secret(f"the passphrase of {path}").encode()
    return FileSigner(parse_key(data, path, passphrase, None))


def _write(path: Path, key: CAPrivateKey) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(beside, flags, 0o600), "wb") as file:
            file.write(key_pem(key))
            file.flush()
            os.fsync(file.fileno())
        # A link fails where the name exists: a key is never overwritten.
        os.link(beside, path)
    except OSError as error:
        raise ConfigError(
            f"{path}: the key cannot be written: {error.strerror}", rule="file.key"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
