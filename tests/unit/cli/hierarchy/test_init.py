"""`meshca hierarchy init` asks, or takes a profile; and overwrites nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge.cli.hierarchy import app
from bridge.errors import ConfigError
from bridge.hierarchy.schema import load
from bridge.hierarchy.schema.profiles import PROFILES


def init(*arguments: str, answers: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["init", *arguments], input=answers)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_writes_a_file_that_the_plan_takes(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "corp.yaml")
    status, out = init(path, "--profile", name)
    assert status == 0
    assert f"meshca hierarchy plan {path}" in out
    planned = CliRunner().invoke(app, ["plan", path])
    assert planned.exit_code == 0, planned.output


def test_without_a_profile_it_asks(tmp_path: Path) -> None:
    path = tmp_path / "corp.yaml"
    answers = "consul\nlinkerd\nfile\nAcme\na.example b.example\neu us\nweb\n"
    status, out = init(str(path), answers=answers)
    assert status == 0, out
    assert "linkerd, kubernetes (found 'consul')" in out
    file = load(path).file
    assert file.organisation == "Acme"
    assert file.trust_domains == ("a.example", "b.example")
    assert file.order() == ("root", "eu", "eu-web", "us", "us-web")
    assert file.cas["root"].key.backend == "file"
    assert file.data_planes == ("linkerd",)


def test_an_option_is_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "corp.yaml"
    status, out = init(str(path), "--organisation", "Acme", answers="\n" * 5)
    assert status == 0
    assert "Organisation" not in out
    assert load(path).file.organisation == "Acme"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "corp.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="expected a new file"):
        init(str(path), "--profile", "sidecar")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--profile", "consul"), "--profile: expected one of sidecar, ambient, linke"),
        (("--profile", "sidecar", "--region", "root"), "'root' is written twice"),
        (("--profile", "sidecar", "--region", "E U"), "region: expected 1 to 20"),
        (("--profile", "sidecar", "--trust-domain", "A"), "trust domain"),
    ],
)
def test_what_makes_no_file_is_refused_and_nothing_is_written(
    tmp_path: Path, option: tuple[str, ...], told: str
) -> None:
    status, out = init(str(tmp_path / "corp.yaml"), *option)
    assert status == 2
    assert told in out
    assert [*tmp_path.iterdir()] == []
