"""`meshca hierarchy crl`, as a person calls it."""

from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bridge.cli.hierarchy import app
from bridge.hierarchy.ceremony import sign
from bridge.hierarchy.keys import LocalKey
from bridge.hierarchy.words import lines_of
from bridge.system.clock import system_clock
from tests.support.parts.ceremonies import HeldCeremony, tree
from tests.support.parts.pki import key_pem, write_private


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hierarchy file, the keys of its CAs, and their certificates in `out`."""
    found = tmp_path_factory.mktemp("ceremony")
    text = yaml.safe_dump(tree(), sort_keys=False)
    (found / "hierarchy.yaml").write_text(text)
    (found / "keys").mkdir()
    started = system_clock() - timedelta(hours=1)
    held = HeldCeremony(found, clock=lambda: started)
    for name in ("root", "eu", "prod"):
        sign(held.ceremony(), name)
        signer = held.signers[name]
        assert isinstance(signer, LocalKey)
        write_private(found / f"keys/{name}.key", key_pem(signer.private_key))
    return found


def run(folder: Path, *more: str) -> tuple[int, str]:
    now = system_clock().isoformat()
    result = CliRunner().invoke(
        app,
        [
            *("crl", str(folder / "hierarchy.yaml"), "eu", "--time", now),
            *("--out", str(folder / "out"), *more),
        ],
        catch_exceptions=False,
    )
    return result.exit_code, result.output


def test_a_person_sees_what_was_made(folder: Path) -> None:
    status, shown = run(folder, "--revoke", "prod", "--reason", "keyCompromise")
    assert status == 0
    assert "eu: CRL number 1, 1 revoked, next update " in shown
    digest = shown.partition("crl.der\n  SHA-256 ")[2][:64]
    assert all(line in shown for line in lines_of(digest))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--serial", "0x"], "expected a positive number of at most 159 bits in hex"),
        (["--serial", "-1"], "expected a positive number"),
        (["--serial", "1 2"], "expected a positive number"),
        (["--serial", "0"], "expected a positive number"),
        (["--serial", "f" * 41], "expected a positive number"),
        (["--revoke", "prod", "--reason", "certificateHold"], "expected one of keyCom"),
        (["--reason", "superseded"], "expected --revoke, --certificate or --serial"),
    ],
)
def test_a_bad_option_is_status_2(folder: Path, given: list[str], says: str) -> None:
    status, shown = run(folder, *given)
    assert status == 2
    assert says in " ".join(shown.replace("│", " ").split())


def test_a_serial_number_is_taken_as_others_show_it(folder: Path) -> None:
    given = ("--confirm-unknown-serial", "--serial", "0xAB:CD", "--serial", "0abc")
    status, shown = run(folder, *given)
    assert status == 0
    (newest,) = folder.glob(f"out/eu.crl.{shown.partition('number ')[2][0]}/crl.txt")
    assert "serial abcd since" in newest.read_text()
    assert "serial abc since" in newest.read_text()
