"""`meshca ledger`, as a person and as a program use it."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bridge.cli.ledger import app
from bridge.cli.ledger.output import _cell
from bridge.ledger.ledger import Ledger
from tests.support.harness.archive import feed
from tests.support.harness.configuration import text
from tests.unit.ledger.support import (
    CALLER,
    SetClock,
    all_rows,
    make_ended,
    make_intent,
)

LINKERD_CALLER = "api.payments.serviceaccount.identity.linkerd.corp.example"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "bridge.yaml"
    path.write_text(text())
    return path


@pytest.fixture
def running(config_file: Path) -> Iterator[Ledger]:
    from bridge import config  # noqa: PLC0415 - the fixture is its only user

    section = config.read(config_file).ledger
    ledger = Ledger.open(section, writer="w0", clock=SetClock())
    for number in range(3):
        ledger.intend(make_intent(number))
        ledger.end(make_ended(number))
    ledger.end(make_ended(7, "refused", attempt="", rule="csr", detail="=a\x1b[0m"))
    ledger._journal.flush()
    feed(section.journal, section.archive)
    yield ledger
    ledger.close()


@pytest.fixture
def stopped(running: Ledger, config_file: Path) -> None:
    running.close()
    feed(config_file.parent / "journal", f"sqlite:///{config_file.parent}/archive.db")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.usefixtures("running")
def test_verify_names_the_head_of_a_running_server(config_file: Path) -> None:
    result = run("verify", "-c", config_file)
    assert result.exit_code == 0, result.output
    assert "w0: 9 rows in 1 segment, head row 8" in result.stdout
    assert "being written" in result.stdout


@pytest.mark.usefixtures("stopped")
def test_verify_tells_programs_the_same(config_file: Path, tmp_path: Path) -> None:
    whole = run("verify", "-c", config_file, "--archive", "-o", "json")
    assert whole.exit_code == 0, whole.output
    found = json.loads(whole.stdout)
    assert found["intact"] is True
    assert found["archive"]["problems"] == []
    (writer,) = found["writers"]
    assert (writer["writer"], writer["head"]["seq"]) == ("w0", writer["rows"] - 1)
    path = tmp_path / "journal" / "w0" / "00000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"payments", b"pavments", 1))
    broken = run("verify", "-c", config_file, "--archive", "-o", "json")
    assert broken.exit_code == 1
    found = json.loads(broken.stdout)
    assert found["intact"] is False
    assert found["archive"] is None
    assert f"{path}:4: the chain breaks here" in found["writers"][0]["problems"][0]


@pytest.mark.usefixtures("stopped")
def test_verify_sees_a_cut_only_with_the_heads(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    path = journal / "w0" / "00000001.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    seeing = run("verify", "--journal", journal, "--heads", tmp_path / "heads.jsonl")
    assert seeing.exit_code == 1
    assert "heads.jsonl:2: row 8 of w0 was published" in seeing.stderr
    unvouched = run("verify", "--journal", journal)
    assert unvouched.exit_code == 1
    assert "w0: nothing outside this journal vouches for it" in unvouched.stderr
    blind = run("verify", "--journal", journal, "--without-heads")
    assert blind.exit_code == 0
    assert "a journal that was cut is not found" in blind.stderr


@pytest.mark.usefixtures("stopped")
def test_verify_of_a_journal_without_a_published_head_says_so(
    config_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "journal" / "w0" / "00000001.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    (tmp_path / "heads.jsonl").write_bytes(b"")
    result = run("verify", "-c", config_file)
    assert result.exit_code == 1
    assert "nothing outside this journal vouches for it" in result.stderr
    assert "heads.jsonl has no head of it. If that file was emptied" in result.stderr
    assert run("verify", "-c", config_file, "--without-heads").exit_code == 0


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-c", "a.yaml", "--journal", "folder"],
        ["--journal", "folder", "--heads", "heads", "--without-heads"],
    ],
)
def test_verify_wants_one_place(args: list[str]) -> None:
    result = run("verify", *args)
    assert result.exit_code == 2
    assert "expected one of" in result.stderr


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (["--serial", "AB:C0:01"], ["intent", "issued"]),
        (["--certificate", f"{1 + 9:064X}"], ["intent", "issued"]),
        (["--key", f"{1 + 7:064x}"], ["intent", "issued"]),
        (["--kind", "refused"], ["refused"]),
        (["--caller", CALLER, "--limit", "2"], ["issued", "refused"]),
        (["--caller", LINKERD_CALLER, "--limit", "2"], ["issued", "refused"]),
        (["--namespace", "payments", "--limit", "2"], ["issued", "refused"]),
        (["--cluster", "Kubernetes", "--kind", "refused"], ["refused"]),
        (["--issuing-ca", "seoul-1", "--limit", "1"], ["refused"]),
        (["--request", f"{1:032x}"], ["intent", "issued"]),
        (["--purpose", "workload", "--kind", "refused"], ["refused"]),
        (["--since", "2026-11-23T12:00:00", "--kind", "opened"], ["opened"]),
        (["--until", "2026-11-23T12:00:01Z", "--kind", "opened"], ["opened"]),
    ],
)
def test_search_while_a_server_writes(
    config_file: Path, options: list[str], kinds: list[str]
) -> None:
    result = run("search", "-c", config_file, "--output", "json", *options)
    assert result.exit_code == 0, result.output
    assert [row["kind"] for row in json.loads(result.stdout)["entries"]] == kinds


@pytest.mark.usefixtures("running")
def test_search_in_a_pipe_is_plain_text_without_control_characters(
    config_file: Path,
) -> None:
    result = run("search", "-c", config_file, "--caller", CALLER)
    lines = result.stdout.splitlines()
    assert len(lines) == 7
    assert lines[0].split("\t")[:3] == ["2026-11-23T12:00:00.000Z", "intent", CALLER]
    assert "\x1b" not in result.stdout


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("kind", ["", "issued"])
def test_an_issued_entry_has_the_end_of_what_was_issued(
    config_file: Path, kind: str
) -> None:
    search = ("search", "-c", config_file, "--caller", CALLER, "--kind", kind)
    lines = [line.split("\t") for line in run(*search).stdout.splitlines()]
    ends = [line[5] for line in lines if line[1] == "issued"]
    assert ends == ["2026-11-19T11:06:40Z"] * 3
    found = json.loads(run(*search, "-o", "json").stdout)
    assert found["format"] == 1
    issued = [row for row in found["entries"] if row["kind"] == "issued"]
    assert [row["not_after"] for row in issued] == ends


@pytest.mark.usefixtures("running")
def test_the_times_of_json_are_those_of_rfc_3339(config_file: Path) -> None:
    found = run("search", "-c", config_file, "--kind", "intent", "-o", "json").stdout
    row = json.loads(found)["entries"][0]
    assert row["at"].startswith("2026-11-23T12:00:00")
    assert row["not_before"] == "2026-11-18T11:06:40Z"
    assert {name for name, value in row.items() if type(value) is int} == {
        "generation",
        "seq",
    }


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (["--serial", "123456"], 1, "nothing found"),
        (["--until", "2020-01-01"], 1, "nothing found"),
        (["--namespace", "pay"], 1, "nothing found"),
        (["--cluster", "kubernetes"], 1, "nothing found"),
        (["--issuing-ca", "seoul"], 1, "nothing found"),
        (["--request", "f" * 32], 1, "nothing found"),
        (["--purpose", "serving"], 1, "nothing found"),
        (["--caller", f"{CALLER}x"], 1, "nothing found"),
        (["--caller", "payments/api"], 2, "--caller: expected a SPIFFE ID, or ACC"),
        (["--caller", LINKERD_CALLER.upper()], 2, "--caller: expected a SPIFFE ID"),
        (["--namespace", "%"], 2, "--namespace: expected the name of a namespace"),
        (["--request", "12"], 2, "--request: expected an ID of 32 hex digits"),
        (["--purpose", "leaf"], 2, "--purpose: expected one of workload, serving"),
        (["--since", "yesterday"], 2, "expected a time such as"),
        (["--since", "999999999d"], 2, "expected a time such as"),
        (["--until", "99999999999999d"], 2, "expected a time such as"),
        (["--serial", "zz"], 2, "--serial: expected hex digits"),
        (["--certificate", "ab"], 2, "--certificate: expected a SHA-256 in 64"),
        (["--key", "g" * 64], 2, "--key: expected a SHA-256 in 64 hex digits"),
        (["--kind", "isued"], 2, "--kind: expected one of intent, "),
        (["--limit", "0"], 2, "equal to 1"),
    ],
)
def test_search_that_finds_nothing(
    config_file: Path, options: list[str], status: int, reason: str
) -> None:
    result = run("search", "-c", config_file, *options)
    assert result.exit_code == status
    assert reason in result.stderr


@pytest.mark.usefixtures("running")
def test_export_gives_the_journals_lines_back(
    config_file: Path, tmp_path: Path
) -> None:
    result = run("export", "-c", config_file)
    lines = result.stdout.encode().splitlines()
    rows = all_rows(tmp_path / "journal" / "w0")
    assert lines == [row.line for row in rows]
    assert hashlib.sha256(lines[0]).hexdigest() == json.loads(lines[1])["prev"]
    assert run("export", "-c", config_file, "--since", "2027-01-01").stdout == ""


@pytest.mark.usefixtures("running")
def test_export_as_csv_runs_no_formula(config_file: Path) -> None:
    result = run("export", "-c", config_file, "--output", "csv")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["kind"] for row in rows].count("intent") == 3
    assert rows[2]["names"] == f'["URI:{CALLER}"]'
    assert [
        str(_cell(text))[:1]
        for text in (
            "=a",
            "+a",
            "-a",
            "@a",
            "\t=a",
            "\r\n@a",
            " =a",
            "\uff1da",
            "\uff0ba",
        )
    ] == ["'"] * 9
    assert _cell("a=b") == "a=b"
    # Nor does it control the terminal that it is shown on.
    assert rows[-1]["detail"] == "'=a\N{REPLACEMENT CHARACTER}[0m"
