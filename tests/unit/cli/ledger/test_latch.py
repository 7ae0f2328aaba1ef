"""`meshca ledger latch`: what is shown, and what a clearance does."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bridge.cli.ledger import app
from bridge.errors import BackendCredentialError, ConfigError, LedgerError
from bridge.ledger.latch_rows import LatchRecorder, LatchRow
from bridge.resilience.latch import Latch
from bridge.resilience.quarantine import StoppedCAs
from tests.support.harness.configuration import text

PIN = b"hunter-2-31337"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bridge.yaml").write_text(text())
    return tmp_path


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "journal/state/latch.json"


@pytest.fixture
def latched(path: Path) -> None:
    """A refused PIN, a proven one, and an issuing CA that is stopped."""
    latch = Latch(path, issuing_ca="seoul-1")
    with latch.attempt("token 0042", b"another"):
        pass
    error = BackendCredentialError("the PIN is wrong")
    with (
        pytest.raises(BackendCredentialError, match="the PIN is wrong"),
        latch.attempt("token 0042", PIN),
    ):
        raise error
    StoppedCAs(path).add("seoul-2", "0a1b", "another name")


def run(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(app, ["latch", *args, "-c", f"{folder}/bridge.yaml"])


def listed(folder: Path) -> list[dict[str, Any]]:
    result = run(folder, "list", "--output", "json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["latched"]
    return found


@pytest.mark.usefixtures("latched")
def test_list_shows_what_waits_for_an_operator(folder: Path) -> None:
    result = run(folder, "list")
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["name", "what", "state", "since", "scope", "reason"]
    for line, cells in zip(
        lines,
        (
            ("seoul-1", "credential", "refused", "token 0042", "the PIN is wrong"),
            ("seoul-2", "issuing CA", "stopped", "0a1b", "another name"),
        ),
        strict=True,
    ):
        assert all(cell in line for cell in cells)


@pytest.mark.usefixtures("latched")
def test_for_programs_there_is_an_id_and_no_digest(folder: Path) -> None:
    first, second = listed(folder)
    assert {each: first[each] for each in ("name", "kind", "state", "reason")} == {
        "name": "seoul-1",
        "kind": "credential",
        "state": "refused",
        "reason": "the PIN is wrong",
    }
    assert second["kind"] == "issuing_ca"
    assert len(first["id"]) == 32
    assert "digest" not in first
    assert "salt" not in first


def test_where_nothing_is_latched_the_list_says_so(folder: Path) -> None:
    result = run(folder, "list")
    assert (result.exit_code, result.stdout) == (0, "nothing is latched\n")
    assert listed(folder) == []
    assert not (folder / "journal").exists()


@pytest.mark.usefixtures("latched")
@pytest.mark.parametrize("by", ["name", "scope", "id"])
def test_a_clearance_allows_one_more_try_and_is_recorded(
    by: str, folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    name = listed(folder)[0][by]
    result = run(folder, "clear", name, "--reason", "the PIN was right")
    assert result.exit_code == 0, result.output
    assert result.stdout == "cleared: credential seoul-1 (refused)\n"
    assert [each["name"] for each in listed(folder)] == ["seoul-2"]
    with Latch(path).attempt("token 0042", PIN):
        pass
    rows: list[LatchRow] = []
    LatchRecorder(path, rows.append).run()
    last = rows[-1]
    assert (last.kind, last.detail) == ("cleared", "the PIN was right")
    assert last.by == "alice"  # type: ignore[union-attr]


@pytest.mark.usefixtures("latched")
def test_a_running_process_uses_a_ca_again_after_the_clearance(
    folder: Path, path: Path
) -> None:
    stopped = StoppedCAs(path)
    assert stopped.reason("0a1b")
    run(folder, "clear", "seoul-2", "--reason", "its template was mended")
    assert stopped.reason("0a1b") is None


@pytest.mark.usefixtures("latched")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("seoul-3", "--reason", "x"),
            LedgerError,
            "under the name 'seoul-3'; latched are: seoul-1, seoul-2",
        ),
        (("seoul-1", "--reason", " "), ConfigError, "--reason: expected a reason"),
    ],
)
def test_what_cannot_be_cleared_is_told(
    arguments: tuple[str, ...],
    error: type[Exception],
    message: str,
    folder: Path,
) -> None:
    result = run(folder, "clear", *arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert len(listed(folder)) == 2


def test_a_name_that_nothing_has_makes_no_file(folder: Path) -> None:
    result = run(folder, "clear", "seoul-1", "--reason", "x")
    assert "latched are: none" in str(result.exception)
    assert not (folder / "journal").exists()


def test_a_reason_is_required(folder: Path) -> None:
    assert run(folder, "clear", "seoul-1").exit_code == 2


@pytest.mark.parametrize("command", [("list",), ("clear", "a", "--reason", "b")])
def test_a_damaged_file_is_named(
    command: tuple[str, ...], folder: Path, path: Path
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    result = run(folder, *command)
    assert isinstance(result.exception, LedgerError)
    assert result.exception.detail.startswith(f"{path} holds no latch")
