"""`meshca ledger reconcile`, and what the other commands show of it."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bridge.cli.ledger import app, reconcile
from tests.support.harness.audit_log import Real, issued, lines, real_certificate
from tests.support.harness.configuration import text
from tests.unit.ledger.support import make_ended, make_intent, open_ledger

LEAF = real_certificate()
SERIAL = f"{LEAF.serial_number:x}"
ISSUED, REFUSED, OPEN = (f"{number:032x}" for number in (1, 2, 3))


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Return the configuration of a bridge with three attempts that ended `unknown`."""
    ledger = open_ledger(tmp_path)
    for number in (1, 2, 3):
        ledger.intend(make_intent(number, serial="", tbs_sha256=""))
        nothing = {"serial": "", "certificate_sha256": ""}
        ledger.end(make_ended(number, "unknown", rule="vault.timeout", **nothing))
    ledger.close()
    path = tmp_path / "bridge.yaml"
    path.write_text(text())
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    content = [
        *lines(Real.HASHED, ISSUED, not_before=None, expiration=None),
        *lines(Real.REFUSED_BY_ROLE, REFUSED),
        *lines(Real.KILLED, OPEN),
    ]
    path.write_text("".join(content))
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def settle(config_file: Path, log: Path, *more: str | Path) -> Result:
    return run("reconcile", "--vault-audit", log, "-c", config_file, *more)


def test_each_attempt_of_the_log_has_a_line(config_file: Path, log: Path) -> None:
    result = settle(config_file, log)
    assert result.exit_code == 0, result.output
    issued_line, refused_line, open_line, summary = result.stdout.splitlines()
    assert issued_line == f"{ISSUED}: issued, the log hides the serial number"
    assert refused_line == f"{REFUSED}: not issued: the reason is hashed"
    assert open_line.startswith(f"{OPEN}: stays unknown: {log}:5: the log does not say")
    assert summary == (
        "5 lines, 5 of attempts: 2 attempts settled, 0 settled before, 1 stay unknown"
    )
    again = settle(config_file, log)
    assert "0 attempts settled, 2 settled before, 1 stay unknown" in again.stdout


def test_programs_are_told_the_same(config_file: Path, log: Path) -> None:
    result = settle(config_file, log, "--vault-audit", log, "-o", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [
        (row["kind"], row["attempt"], row["result"]) for row in found["settled"]
    ] == [
        ("settled", ISSUED, "issued"),
        ("settled", REFUSED, "not-issued"),
    ]
    assert list(found["unknown"]) == [OPEN]
    assert (found["lines"], found["settled_before"]) == (10, 0)
    assert (found["problems"], found["notes"]) == ([], [])


def test_a_problem_is_told_and_ends_with_status_1(config_file: Path, log: Path) -> None:
    log.write_text("".join(issued(LEAF, ISSUED)) + "{}\n")
    result = settle(config_file, log)
    assert result.exit_code == 1
    assert f"{ISSUED}: issued, serial number {SERIAL}: mis-issued: " in result.stdout
    assert f"{log}:2: MIS-ISSUANCE" in result.stderr
    assert f"{log}:3: expected an entry of type" in result.stderr
    found = json.loads(settle(config_file, log, "-o", "json").stdout)
    assert len(found["problems"]) == 2


def test_a_note_is_told_and_ends_with_status_0(config_file: Path, log: Path) -> None:
    log.write_text("".join(lines(Real.DENIED, f"{9:032x}")))
    result = settle(config_file, log)
    assert result.exit_code == 0
    assert "attempts that the ledger does not know" in result.stderr


def test_many_problems_are_cut_short_for_people(
    config_file: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_TOLD", 3)
    log.write_text("{}\n" * 10)
    result = settle(config_file, log)
    assert result.exit_code == 1
    assert result.stderr.count("expected an entry") == 3
    assert "and 7 more, see -o json" in result.stderr
    found = json.loads(settle(config_file, log, "-o", "json").stdout)
    assert len(found["problems"]) == 10


def test_a_log_has_to_be_named(config_file: Path) -> None:
    result = run("reconcile", "-c", config_file)
    assert result.exit_code == 2
    assert "--vault-audit" in result.stderr


def test_search_shows_what_became_of_an_unknown_attempt(
    config_file: Path, log: Path
) -> None:
    settle(config_file, log)
    shown = run("search", "-c", config_file, "--kind", "unknown").stdout
    rows = [line.split("\t") for line in shown.splitlines()]
    assert [row[1:2] + row[6:] for row in rows] == [
        ["unknown", "vault.timeout", "issued"],
        ["unknown", "vault.timeout", "not-issued"],
        ["unknown", "vault.timeout", "-"],
    ]
    found = json.loads(
        run("search", "-c", config_file, "--kind", "unknown", "-o", "json").stdout
    )
    assert [row["settled"] for row in found["entries"]] == ["issued", "not-issued", ""]


def test_search_finds_what_is_not_settled(config_file: Path, log: Path) -> None:
    settle(config_file, log)
    found = json.loads(
        run("search", "-c", config_file, "--unsettled", "-o", "json").stdout
    )
    assert [(row["kind"], row["attempt"]) for row in found["entries"]] == [
        ("unknown", OPEN)
    ]
    log.write_text("".join(lines(Real.REFUSED_BY_ROLE, OPEN)))
    settle(config_file, log)
    assert run("search", "-c", config_file, "--unsettled").exit_code == 1


def test_search_for_unsettled_takes_no_other_kind(config_file: Path) -> None:
    result = run("search", "-c", config_file, "--unsettled", "--kind", "issued")
    assert result.exit_code == 2
    assert "expected no other --kind than unknown" in result.stderr


def test_a_settled_certificate_is_found_by_its_serial_number(
    config_file: Path, log: Path
) -> None:
    log.write_text("".join(issued(LEAF, ISSUED)))
    settle(config_file, log)
    shown = run("search", "-c", config_file, "--serial", SERIAL).stdout
    rows = [line.split("\t") for line in shown.splitlines()]
    assert [row[1] for row in rows] == ["intent", "unknown", "settled"]
    assert rows[-1][4:] == [SERIAL, f"{LEAF.not_valid_after_utc:%FT%TZ}", "-", "issued"]
    by_caller = run("search", "-c", config_file, "--caller", rows[0][2]).stdout
    assert "settled" in by_caller


def test_export_has_the_rows(config_file: Path, log: Path) -> None:
    settle(config_file, log)
    exported = run("export", "-c", config_file).stdout.splitlines()
    rows = [json.loads(line) for line in exported]
    assert [row["result"] for row in rows if row["kind"] == "settled"] == [
        "issued",
        "not-issued",
    ]
    table = run("export", "-c", config_file, "-o", "csv").stdout.splitlines()
    assert sum(row["kind"] == "settled" for row in csv.DictReader(table)) == 2


def test_verify_accepts_the_rows(config_file: Path, log: Path) -> None:
    settle(config_file, log)
    result = run("verify", "-c", config_file, "--archive")
    assert result.exit_code == 0, result.output
    assert "reconcile: 6 rows in 1 segment" in result.stdout
