"""The command line as a whole: help, version, errors."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bridge.cli
from bridge import __version__
from bridge.cli import app, main
from bridge.errors import ConfigError, DeniedError

MESHCA = Path(sys.executable).parent / "meshca"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MESHCA, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"meshca {__version__}\n")


@pytest.mark.parametrize("command", ["", *bridge.cli._COMMANDS])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        "",
        *bridge.cli._COMMANDS,
        "hierarchy throwaway",
        "ledger search",
        "ledger verify",
    ],
)
def test_help_is_of_one_piece(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert "completion" not in result.stdout
    text = result.stdout.partition("\u256d")[0].splitlines()
    # A line that was broken where the source breaks is short, and another follows it.
    for line, below in pairwise(text):
        first = below.split()[:1]
        if line.strip() and first and "Usage:" not in line:
            assert len(line.rstrip()) + len(first[0]) > 76, line


@pytest.mark.parametrize(
    ("command", "form"),
    [("check", "json"), ("ledger search", "json"), ("ledger export", "csv")],
)
def test_o_is_short_for_output(command: str, form: str, tmp_path: Path) -> None:
    arguments = [*command.split(), "-c", f"{tmp_path}/absent.yaml", "-o", form]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)


def test_the_help_lists_the_command_of_a_plugin_and_imports_no_plugin() -> None:
    code = (
        "import sys; from bridge.cli import app; "
        "app(['--help'], standalone_mode=False); "
        "sys.exit(any(n.startswith(('bridge_', 'hvac')) for n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "vault" in done.stdout


def test_the_command_of_a_plugin_has_its_own_help() -> None:
    done = run("vault", "setup", "--help")
    assert done.returncode == 0
    assert "--plan" in done.stdout


def test_an_unknown_command_is_a_wrong_use() -> None:
    done = run("issue")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such command" in done.stderr


def test_an_error_is_a_sentence_on_stderr_and_status_1(tmp_path: Path) -> None:
    done = run("serve", "-c", tmp_path / "[none].yaml")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{tmp_path}/[none].yaml: cannot be read: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_detail_of_an_error_follows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise DeniedError("no [bold]", detail="because [red]")

    monkeypatch.setattr(bridge.cli, "app", fail)
    with pytest.raises(SystemExit, match="1"):
        main()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "no [bold]\nbecause [red]\n")


def test_a_file_that_cannot_be_made_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["meshca", "demo", "--folder", "/proc/none"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "/proc/none: No such file or directory" in capsys.readouterr().err
