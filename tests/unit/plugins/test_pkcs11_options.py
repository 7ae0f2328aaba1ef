"""The options of the plugin `pkcs11`: each mistake by its sentence, with no HSM."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.spi import PluginContext
from bridge_pkcs11.options import options_of
from tests.support.parts.pki import write_private

GOOD = {"module": "module.so", "token_label": "t", "key_label": "k", "pin_file": "pin"}


@pytest.fixture
def context(tmp_path: Path) -> PluginContext:
    (tmp_path / "module.so").write_bytes(Path(sys.executable).read_bytes()[:64])
    write_private(tmp_path / "pin", b"1234\n")
    return PluginContext(name="seoul-1", base=tmp_path)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"module": None}, r"options\.module: .*\(found None\)"),
        ({"token_label": ""}, r"options\.token_label: .*at least 1 character"),
        (
            {"key_label": None},
            r"^issuing_cas\.seoul-1\.options: expected key_label, key_id, or",
        ),
        ({"key_id": "1"}, r"options\.key_id: .*pattern.*\(found '1'\)"),
        ({"slot": 3}, r"options\.slot: unknown option; expected one of module, "),
        ({"pin": "hunter2"}, r"options\.pin: unknown option; .*pin_file"),
        ({"sessions": 0}, r"options\.sessions: .*greater than or equal to 1"),
        ({"sessions": "8"}, r"options\.sessions: .*integer \(found '8'\)"),
        ({"start_timeout_seconds": 0.1}, r"start_timeout_seconds: .*0\.5"),
        ({"environment": {"A": 1}}, r"options\.environment\.A: .*string \(found 1\)"),
        ({"environment": {"A=B": "x"}}, r"options\.environment\.A=B.*'A=B'"),
        ({"environment": {"": "x"}}, r"options\.environment\..*\(found ''\)"),
        ({"environment": {"A": "x\0"}}, r"options\.environment\.A: .*pattern"),
        ({"keep_alive_seconds": 0.01}, r"keep_alive_seconds: expected 0, .* 1 second"),
        ({"module": "a\0b"}, r"options\.module: expected the name of a file"),
    ],
)
def test_a_bad_option_is_named(
    context: PluginContext, changed: Mapping[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        options_of({**GOOD, **changed}, context)
    assert "hunter2" not in str(caught.value)


def test_relative_paths_start_from_the_configuration(context: PluginContext) -> None:
    options = options_of(GOOD, context)
    assert options.module == context.base / "module.so"
    assert options.pin_file == context.base / "pin"


def test_a_token_may_want_no_pin(context: PluginContext) -> None:
    assert options_of(GOOD | {"pin_file": None}, context).pin_file is None


def foreign(header: bytes) -> bytes:
    """Make the header of a program for a big-endian machine of another kind."""
    return header[:5] + b"\x02" + header[6:18] + b"\x00\x15" + header[20:]


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (None, r"expected the PKCS#11 module of the HSM's vendor.*No such file"),
        (lambda _: b"", r"shared object \(found another kind of file\)"),
        (lambda _: b"#!/bin/sh\n" * 9, r"\(found another kind of file\)"),
        (foreign, r"expected a module for this machine .*found one for machine 21"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_named(
    context: PluginContext, made: Callable[[bytes], bytes] | None, complaint: str
) -> None:
    file = context.base / "module.so"
    if made is None:
        file.unlink()
    else:
        file.write_bytes(made(file.read_bytes()))
    with pytest.raises(ConfigError, match=complaint) as caught:
        options_of(GOOD, context)
    assert str(caught.value).startswith(f"issuing_cas.seoul-1.options.module: {file}")


def test_a_module_that_nobody_writes_to_is_not_waited_for(
    context: PluginContext,
) -> None:
    (context.base / "module.so").unlink()
    os.mkfifo(context.base / "module.so")
    with pytest.raises(ConfigError, match=r"\(found another kind of file\)"):
        options_of(GOOD, context)


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (None, 0, r"expected a file with the user PIN of the token .*No such file"),
        (b"", 0o600, r"expected the user PIN .* on one line \(found an empty file\)"),
        (b"1234", 0o644, r"only its owner can read.*\(found 0644\); run chmod 600 "),
        (b"1234", 0o440, r"or set allow_group_read: true if it is a Secret's fsGroup"),
    ],
)
def test_a_pin_file_that_cannot_be_used_is_named(
    context: PluginContext, content: bytes | None, mode: int, complaint: str
) -> None:
    file = context.base / "pin"
    file.unlink()
    if content is not None:
        write_private(file, content, mode)
    with pytest.raises(ConfigError, match=complaint) as caught:
        options_of(GOOD, context)
    assert str(caught.value).startswith(f"issuing_cas.seoul-1.options.pin_file: {file}")


def test_a_pin_file_for_a_group_is_accepted_where_that_is_allowed(
    context: PluginContext,
) -> None:
    (context.base / "pin").chmod(0o440)
    assert options_of(GOOD | {"allow_group_read": True}, context).pin_file


def test_all_files_are_told_at_once(context: PluginContext) -> None:
    for name in ("module.so", "pin"):
        (context.base / name).unlink()
    with pytest.raises(ConfigError, match=r"module: .*\n.*pin_file: "):
        options_of(GOOD, context)
