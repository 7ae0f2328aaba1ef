"""The options of the plugin `pkcs11`, and what of their files can be checked at load.

The HSM is asked nothing, the module is not loaded, and the PIN is not read.
"""

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from bridge.sdk import (
    FileOption,
    PluginOptions,
    mode_advice,
    option_error,
    parse_options,
)
from bridge.spi import ConfigError, PluginContext

_Text = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[^=\x00]+$")]
_Value = Annotated[str, Field(pattern=r"^[^\x00]*$")]


def _at_rest(seconds: float) -> float:
    if 0 < seconds < 1:
        raise ValueError("expected 0, for never, or at least 1 second")
    return seconds


_ELF = b"\x7fELF"
_ELF_BYTES = 20
_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}


class PKCS11Options(PluginOptions):
    """`issuing_cas.<name>.options`. Beside them, `chain` is required."""

    module: FileOption
    """The PKCS#11 module of the HSM's vendor, a shared object."""
    token_label: _Text
    """The label of the token. Slots are never chosen by number: numbers change."""
    token_serial: _Text | None = None
    """The token's serial number, where several tokens have the label."""
    key_label: _Text | None = None
    """CKA_LABEL of the private key. One of `key_label` and `key_id` is required, and
    exactly one private key of the certificate's type may match."""
    key_id: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2})+$")] | None = None
    """CKA_ID of the private key, in hex."""
    pin_file: FileOption | None = None
    """The user PIN of the token, in a file that only its owner can read. One newline at
    its end is not part of it. It is read at each login, so a new PIN needs no reload. A
    token that wants no login needs none."""
    allow_group_read: bool = False
    """Accept a PIN file that its group may read, such as a Secret that is mounted with
    an fsGroup."""
    sessions: Annotated[int, Field(ge=1, le=64)] = 8
    """How many signatures a worker has the token make at a time. Each worker has its
    own sessions, and one more for the login; during a reload there are twice as
    many."""
    keep_alive_seconds: Annotated[
        float, Field(ge=0, le=3600, strict=False), AfterValidator(_at_rest)
    ] = 0.0
    """Look for the key in each session that was idle for half of this time; 0: never.
    YubiHSM closes a session after 30 s."""
    start_timeout_seconds: Annotated[float, Field(ge=0.5, le=60, strict=False)] = 3.0
    """How long the module may take to load, to log in and to find the key. After this
    time the signer process is ended, and another one is started."""
    environment: dict[_Name, _Value] = {}  # noqa: RUF012 - pydantic copies it
    """Environment variables for the module, such as `SOFTHSM2_CONF`. No secrets: any
    process of the same user can read them."""


def options_of(options: Mapping[str, object], context: PluginContext) -> PKCS11Options:
    """Check the options and their files.

    Raises:
        ConfigError: An option is missing, unknown or of the wrong type, or a file
            cannot be used. The message lists every problem, one a line.
    """
    parsed = parse_options(PKCS11Options, options, context)
    problems = []
    if parsed.key_label is None and parsed.key_id is None:
        text = "expected key_label, key_id, or better both (found none)"
        problems.append(option_error(context, "options", text))
    if text := _unloadable(parsed.module):
        problems.append(option_error(context, "options.module", text))
    if text := _unsafe(parsed):
        problems.append(option_error(context, "options.pin_file", text))
    if problems:
        told = "\n".join(str(problem) for problem in problems)
        raise ConfigError(told, rule=problems[0].rule)
    return parsed


def _unloadable(path: Path) -> str:
    # Only the header is read: a module's constructors may do anything.
    try:
        # The open of a FIFO would wait for a writer.
        header = b""
        if stat.S_ISREG(path.stat().st_mode) or path.is_dir():
            with path.open("rb") as file:
                header = file.read(_ELF_BYTES)
    except OSError as error:
        return (
            f"{path}: expected the PKCS#11 module of the HSM's vendor, a shared object "
            f"(cannot be read: {error.strerror})"
        )
    if not header.startswith(_ELF) or len(header) < _ELF_BYTES:
        return (
            f"{path}: expected the PKCS#11 module of the HSM's vendor, a shared object "
            "(found another kind of file)"
        )
    with Path(sys.executable).open("rb") as file:
        own = file.read(_ELF_BYTES)
    if _machine(header) == _machine(own):
        return ""
    return (
        f"{path}: expected a module for this machine ({_machine(own)}), found one for "
        f"{_machine(header)}; install the vendor's package for {_machine(own)}"
    )


def _machine(header: bytes) -> str:
    # Source: elf(5): EI_CLASS, EI_DATA and e_machine.
    number = int.from_bytes(header[18:20], "big" if header[5] == 2 else "little")  # noqa: PLR2004 - ELFDATA2MSB
    bits = {1: 32, 2: 64}.get(header[4], 0)
    return f"{_MACHINES.get(number, f'machine {number}')}, {bits} bits"


def _unsafe(options: PKCS11Options) -> str:
    # Not read here: the PIN is for the signer process alone, which judges it again.
    path = options.pin_file
    if path is None:
        return ""
    try:
        found = path.stat()
    except OSError as error:
        return (
            f"{path}: expected a file with the user PIN of the token (cannot be read: "
            f"{error.strerror})"
        )
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        kind = "an empty file" if stat.S_ISREG(found.st_mode) else "no regular file"
        return f"{path}: expected the user PIN of the token on one line (found {kind})"
    tolerated = stat.S_IRGRP if options.allow_group_read else 0
    mode = stat.S_IMODE(found.st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~tolerated:
        return (
            f"{path}: expected a file that only its owner can read, such as mode 0600 "
            f"(found {mode:04o}); {mode_advice(path)}, or set allow_group_read: true "
            "if it is a Secret's fsGroup"
        )
    if not os.access(path, os.R_OK):
        return f"{path}: cannot be read: Permission denied"
    return ""
