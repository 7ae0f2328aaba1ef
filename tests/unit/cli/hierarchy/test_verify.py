"""`meshca hierarchy verify`, as a person sees it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bridge.cli.hierarchy import app
from bridge.errors import ConfigError
from bridge.hierarchy.ceremony import sign
from bridge.hierarchy.crl import CRLRequest, make_crl
from tests.support.parts.ceremonies import HeldCeremony, tree


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> HeldCeremony:
    """A ceremony whose root and regional CA are signed, now."""
    return signed_now(tmp_path_factory.mktemp("verify"))


def signed_now(folder: Path) -> HeldCeremony:
    moment = datetime.now(UTC)
    held = HeldCeremony(folder, clock=lambda: moment)
    held.loaded.path.write_text(yaml.safe_dump(tree(), sort_keys=False))
    for name in ("root", "eu"):
        sign(held.ceremony(), name)
    return held


def verify(
    held: HeldCeremony, *more: object, file: Path | None = None
) -> tuple[int, str, str]:
    given = (file or held.loaded.path, "--out", held.output.folder, *more)
    result = CliRunner().invoke(
        app, ["verify", *map(str, given)], catch_exceptions=False
    )
    return result.exit_code, result.stdout, result.stderr


def test_each_ca_is_told_in_the_order_of_the_tree(held: HeldCeremony) -> None:
    status, shown, err = verify(held)
    assert (status, err) == (0, "")
    root, eu, prod = shown.splitlines()
    assert root.startswith("root: as the file says; 1 allowed and 3 forbidden leaves")
    assert eu.startswith("eu: as the file says; 1 allowed and ")
    assert prod == "prod: not signed yet"


def test_only_a_ca_and_those_above_it_are_told(held: HeldCeremony) -> None:
    status, shown, _ = verify(held, "--only", "root")
    assert status == 0
    assert [line.partition(":")[0] for line in shown.splitlines()] == ["root"]
    with pytest.raises(ConfigError, match="us: expected the name of a CA of the file"):
        verify(held, "--only", "us")


def test_what_is_not_as_the_file_says_is_the_exit_status(
    held: HeldCeremony, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    text = held.loaded.path.read_text()
    other.write_text(text.replace("Corp EU CA", "Another CA"))
    status, shown, err = verify(held, file=other)
    assert status == 1
    assert "eu: the certificate has the subject CN=Corp EU CA,O=Corp; the" in err
    assert "root: as the file says" in shown
    assert "eu: as the file says" not in shown


def test_what_is_revoked_is_the_exit_status(tmp_path: Path) -> None:
    held = signed_now(tmp_path)
    make_crl(held.ceremony(), "root", CRLRequest(names=["eu"]))
    status, shown, err = verify(held)
    assert status == 1
    assert "eu: eu is revoked by" in " ".join(err.split())
    assert "root: as the file says" in shown
    assert "eu: as the file says" not in shown
