"""The command line as a whole: help, version, errors."""

import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge import __version__
from bridge.cli import command_line, main
from bridge.cli.command_line import app
from bridge.errors import ConfigError, DeniedError
from tests.support.harness.terminal import shown

MESHCA = Path(sys.executable).parent / "meshca"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MESHCA, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"meshca {__version__}\n")


@pytest.mark.parametrize("command", ["", *command_line._COMMANDS])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        "",
        *command_line._COMMANDS,
        "hierarchy throwaway",
        "ledger search",
        "ledger verify",
    ],
)
def test_help_in_a_pipe_has_each_paragraph_on_one_line(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    prose = re.split("Arguments:|Options:", result.stdout)[0].splitlines()
    assert len(prose) > 3
    assert [two for two in pairwise(prose) if all(map(str.strip, two))] == []


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("command", ["", "ledger search", "vault"])
def test_help_on_a_terminal_is_cut_off_nowhere(command: str, columns: int) -> None:
    words = [*command.split(), "--help"]
    status, said = shown([MESHCA, *words], columns)
    assert status == 0
    assert "".join(said.split()) == "".join(run(*words).stdout.split())
    assert max(map(len, said.splitlines())) <= max(columns, 50)


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("chek", "check"),
        ("sevre", "serve"),
        ("valt", "vault"),
        ("ledger serch", "search"),
        ("ledger latch lsit", "list"),
        ("hierarchy throwawy", "throwaway"),
    ],
)
def test_a_mistyped_command_gets_a_suggestion(mistyped: str, meant: str) -> None:
    result = CliRunner().invoke(app, mistyped.split())
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.stderr


def test_a_wrong_use_is_told_in_one_line_in_a_pipe() -> None:
    result = CliRunner().invoke(app, ["ledger", "search", "-c", "x", "--kind", "y"])
    *_, told = result.stderr.splitlines()
    assert told.startswith("Error: Invalid value: --kind: expected one of intent, ")
    assert told.endswith("(found 'y')")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("meshca ", {"serve", "ledger", "vault", "token", "config"}),
        ("meshca ledger s", {"search"}),
        ("meshca ledger latch ", {"list", "clear"}),
        ("meshca check --conf", {"--config"}),
        ("meshca request --front ", {"istio", "linkerd"}),
        ("meshca vault s", {"setup"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    done = subprocess.run(
        [MESHCA],
        env={
            "_MESHCA_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(words),
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert offered <= {*done.stdout.split()}, done.stderr
    assert done.stderr == ""


INTERRUPTED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def look(event, details):
    global left
    if event == "import":
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(look)
from bridge.cli import main
main()
"""


@pytest.mark.parametrize("at", [8, 100, 250, 400, 800])
@pytest.mark.parametrize("command", ["check -c none.yaml", "ledger latch list -c none"])
def test_ctrl_c_shows_no_traceback(command: str, at: int) -> None:
    # While the program is being imported, and later.
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(at), *command.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    is_over_before = done.returncode == 1 and "cannot be read" in done.stderr
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "") or is_over_before
    assert done.stdout == ""


def test_ctrl_c_in_a_destructor_ends_the_program_as_well() -> None:
    code = (
        "import os, signal, sys\n"
        "from bridge import cli\n"
        "from bridge.cli import command_line\n"
        "class Part:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT); len('')\n"
        "def run():\n"
        "    Part()\n"
        "    print('goes on')\n"
        "command_line.run = run\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("command", "form"),
    [("check", "json"), ("ledger search", "json"), ("ledger export", "csv")],
)
def test_o_is_short_for_output(command: str, form: str, tmp_path: Path) -> None:
    arguments = [*command.split(), "-c", f"{tmp_path}/absent.yaml", "-o", form]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)


def test_the_help_lists_the_command_of_a_plugin_and_imports_no_plugin() -> None:
    code = (
        "import sys; from bridge.cli.command_line import app; "
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

    monkeypatch.setattr(command_line, "app", fail)
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
