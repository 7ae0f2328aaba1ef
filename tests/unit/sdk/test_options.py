"""The options of a plugin, each mistake by its sentence."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.sdk import (
    FileOption,
    PluginOptions,
    option_error,
    parse_options,
    placed,
    secret_line,
)
from bridge.spi import PluginContext


class TokenOptions(PluginOptions):
    token: str
    pin_file: FileOption
    sessions: int = 8


GOOD = {"token": "mesh", "pin_file": "pin"}


def context(base: Path) -> PluginContext:
    return PluginContext(name="hsm-1", base=base)


def test_options_are_read_and_a_file_is_found_beside_the_configuration() -> None:
    found = parse_options(TokenOptions, GOOD, context(Path("/etc/meshca")))
    assert found == TokenOptions(token="mesh", pin_file=Path("/etc/meshca/pin"))  # noqa: S106 - a label


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        # a misspelt name; its value may be a secret
        (
            {"pin": "hunter2"},
            (
                r"^issuing_cas\.hsm-1\.options\.pin: unknown option; expected one of "
                r"token, pin_file, sessions$"
            ),
        ),
        # a wrong type is not converted
        (
            {"sessions": "8"},
            r"^issuing_cas\.hsm-1\.options\.sessions: .*'8'\)$",
        ),
        # a long value is cut
        ({"sessions": "x" * 100}, r"\(found 'x{79}\.\.\.\)$"),
        # an option that has to be there
        (
            {"token": ...},
            r"^issuing_cas\.hsm-1\.options\.token: expected a value \(found nothing\)$",
        ),
    ],
)
def test_a_bad_option_is_named(change: Mapping[str, object], complaint: str) -> None:
    options = {k: v for k, v in {**GOOD, **change}.items() if v is not ...}
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_options(TokenOptions, options, context(Path()))
    assert "hunter2" not in str(caught.value)


def test_every_problem_has_its_line() -> None:
    with pytest.raises(ConfigError, match="token") as caught:
        parse_options(TokenOptions, {"sessions": "8", "pin": "1"}, context(Path()))
    assert len(str(caught.value).splitlines()) == 4


def test_the_error_of_an_option_names_it() -> None:
    told = str(option_error(context(Path()), "options.key", "expected one (found 2)"))
    assert told == "issuing_cas.hsm-1.options.key: expected one (found 2)"


def test_a_line_that_begins_with_a_file_gets_the_key_of_the_file() -> None:
    error = ConfigError("/a: is gone\n/d/x: is odd\n/other: is fine", rule="file.read")
    told = placed(error, {Path("/a"): "options.pin_file", Path("/d"): "options.folder"})
    assert str(told).splitlines() == [
        "options.pin_file: /a: is gone",
        "options.folder: /d/x: is odd",
        "/other: is fine",
    ]
    assert told.rule == "file.read"


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"1234", b"1234"),
        (b"1234\n", b"1234"),
        (b"1234\r\n", b"1234"),
        (b"1234\n\n", b"1234\n"),  # only one newline is the editor's
        (b" 1234 ", b" 1234 "),  # blanks may be part of a secret
    ],
)
def test_one_newline_is_no_part_of_a_secret(content: bytes, secret: bytes) -> None:
    assert secret_line(content, Path("pin"), "a PIN") == secret


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_a_file_without_a_secret_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^pin: expected a PIN \(found an empty"):
        secret_line(content, Path("pin"), "a PIN")
