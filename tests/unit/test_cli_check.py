import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bridge import demo
from bridge.cli import app
from bridge.cli.check import _fronts, _once
from bridge.clock import system_clock
from tests.support.world import World

Change = Callable[[dict[str, Any], Path], None]


def written(folder: Path, change: Change | None = None) -> Path:
    scenario = demo.prepare(folder, system_clock)
    tree = yaml.safe_load(scenario.configuration.read_text())
    if change is not None:
        change(tree, folder)
    scenario.configuration.write_text(yaml.safe_dump(tree))
    return scenario.configuration


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.stdout


def names(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_configuration_that_can_serve_passes_and_nothing_is_made(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    before = names(tmp_path)
    status, out = run("-c", path)
    assert status == 0
    assert names(tmp_path) == before
    for key in ("journal", "archive", "heads.sink", "heads.key"):
        assert f"ledger.{key}" in out
    assert "FAILED" not in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def ledger(**values: object) -> Change:
    return lambda tree, _: tree["ledger"].update(values)


def no_folder(tree: dict[str, Any], folder: Path) -> None:
    (folder / "file").write_text("")
    tree["ledger"]["journal"] = "file/journal"


def text_archive(tree: dict[str, Any], folder: Path) -> None:
    (folder / "text.db").write_text("this is no database")
    tree["ledger"]["archive"] = "sqlite:///text.db"


def folder_archive(tree: dict[str, Any], folder: Path) -> None:
    (folder / "archive.db").mkdir()
    tree["ledger"]["archive"] = "sqlite:///archive.db"


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (ledger(archive="postgresql://x/y"), "archive", "driver is not installed: No"),
        (
            ledger(archive="sqlite:///no/a.db"),
            "archive",
            "/no does not exist: make the",
        ),
        (ledger(archive="sqlite://"), "archive", "expected a file: sqlite:///FILE"),
        (ledger(archive="archive.db"), "archive", "expected a SQLAlchemy URL"),
        (ledger(archive="what:///archive.db"), "archive", "expected a SQLAlchemy URL"),
        (text_archive, "archive", "text.db: expected a database of SQLite"),
        (folder_archive, "archive", "archive.db: expected a file"),
        (ledger(heads={"sink": "no/h"}), "heads.sink", "/no does not exist: make the"),
        (ledger(heads={"sink": "hierarchy"}), "heads.sink", "expected a file"),
        (ledger(heads={"sink": "/proc/x"}), "heads.sink", "cannot write in /proc: "),
        (
            ledger(heads={"sink": "h", "key": "no.key"}),
            "heads.key",
            "no.key: ledger.heads.key: expected an Ed25519 key",
        ),
        (ledger(journal="/proc/x/y"), "journal", "cannot write in /proc: "),
        (no_folder, "journal", "/file is not a folder"),
    ],
)
def test_a_place_that_cannot_be_written_fails(
    tmp_path: Path, change: Change, key: str, says: str
) -> None:
    path = written(tmp_path, change)
    before = names(tmp_path)
    status, out = run("-c", path, "-o", "json")
    assert status == 1
    assert names(tmp_path) == before
    (failed,) = [found for found in json.loads(out) if found["result"] == "FAILED"]
    assert failed["what"] == f"ledger.{key}"
    assert says in failed["detail"]


def test_places_are_told_together_with_what_else_is_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, ledger(journal="/proc/x"))
    (tmp_path / "jwks.json").unlink()
    result = CliRunner().invoke(app, ["check", "-c", str(path)])
    told = str(result.exception)
    assert f"{path}: clusters[0].tokens.file: " in told
    assert f"{path}: ledger.journal: cannot write in /proc" in told


def test_the_same_of_several_tiers_is_told_once() -> None:
    where = "the certificate of tier {} (CN=a (b)) "
    told = _once(
        [
            where.format(1) + "has a constraint; leave it out",
            where.format(2) + "permits the URI host 'a'",
            where.format(2) + "has a constraint; leave it out",
            "something else",
        ]
    )
    assert [*told] == [
        where.format(1) + "has a constraint; leave it out; tier 2 does, too",
        where.format(2) + "permits the URI host 'a'",
        "something else",
    ]


@pytest.mark.parametrize(
    ("audience", "results"),
    [
        ("identity.l5d.io", ["ok", "ok"]),
        # Then a token of one mesh is one of the other, too.
        ("istio-ca", ["ok", "ok", "note"]),
    ],
)
def test_each_front_is_shown_with_what_it_takes(
    tmp_path: Path, audience: str, results: list[str]
) -> None:
    linkerd = {"listen": "127.0.0.1:0", "audiences": [audience]}
    with World(tmp_path, overrides={"fronts": {"linkerd": linkerd}}) as world:
        found = [*_fronts(world.config, world.snapshot)]
    assert [one.result for one in found] == results
    istio, shown, *_ = found
    assert (istio.what, istio.detail) == ("istio", "127.0.0.1:0, tokens for istio-ca")
    assert shown.what == "linkerd"
    assert f"tokens of Kubernetes for {audience}" in shown.detail
    assert ".serviceaccount.identity.linkerd.corp.example" in shown.detail
