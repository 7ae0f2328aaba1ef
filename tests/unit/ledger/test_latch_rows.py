"""The rows of what is latched, stopped and cleared, and who writes them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bridge.errors import BackendCredentialError, LedgerError
from bridge.ledger.chain import encode, link, parse
from bridge.ledger.events import Cleared, Latched, Stopped
from bridge.ledger.latch_rows import LatchRecorder, LatchRow, begin, entry_of, row_of
from bridge.resilience.latch import Latch
from bridge.resilience.latch_file import Content, Entry, LatchFile, Note
from bridge.resilience.quarantine import StoppedCAs

PIN = b"hunter-2-31337"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "latch.json"


def refuse(path: Path) -> None:
    error = BackendCredentialError("the PIN is wrong")
    with (
        pytest.raises(BackendCredentialError, match="the PIN is wrong"),
        Latch(path, issuing_ca="hsm").attempt("token 0042", PIN),
    ):
        raise error


def test_each_change_has_a_row_once_and_in_order(path: Path) -> None:
    rows: list[LatchRow] = []
    one, other = (LatchRecorder(path, rows.append) for _ in range(2))
    one.run()
    assert rows == []
    refuse(path)
    StoppedCAs(path).add("hsm", "0a", "another name")
    one.run()
    other.run()
    with LatchFile(path).change() as content:
        content.clear("hsm", by="alice", reason="it was mended")
    other.run()
    one.run()
    latched, stopped, *cleared = rows
    assert isinstance(latched, Latched)
    assert (latched.issuing_ca, latched.scope) == ("hsm", "token 0042")
    assert (latched.state, latched.detail) == ("refused", "the PIN is wrong")
    assert isinstance(stopped, Stopped)
    assert (stopped.issuer_sha256, stopped.detail) == ("0a", "another name")
    assert [asdict(row) for row in cleared] == [
        {
            "latch": row.latch,
            "issuing_ca": "hsm",
            "scope": scope,
            "by": "alice",
            "detail": "it was mended",
        }
        for row, scope in ((latched, "token 0042"), (stopped, "0a"))
    ]
    assert all(isinstance(row, Cleared) for row in cleared)
    assert LatchFile(path).read().notes == []


def test_no_row_holds_the_secret(path: Path) -> None:
    refuse(path)
    rows: list[LatchRow] = []
    LatchRecorder(path, rows.append).run()
    for spelling in (PIN.decode(), PIN.hex()):
        assert spelling not in repr(rows)


def test_a_row_that_could_not_be_written_is_written_later(path: Path) -> None:
    rows: list[LatchRow] = []

    def refuse_row(_: LatchRow) -> None:
        raise LedgerError("the journal is shut")

    refuse(path)
    recorder = LatchRecorder(path, refuse_row)
    with pytest.raises(LedgerError, match="the journal is shut"):
        recorder.run()
    recorder._record = rows.append
    recorder.run()
    assert len(rows) == 1


def test_one_worker_at_a_time_writes(path: Path) -> None:
    refuse(path)
    rows: list[LatchRow] = []
    recorder = LatchRecorder(path, rows.append)
    with LatchFile(path).turn("rows", 1):
        recorder.run()
    assert rows == []
    recorder.run()
    assert len(rows) == 1


def test_an_entry_is_the_same_after_its_way_through_a_journal(path: Path) -> None:
    refuse(path)
    StoppedCAs(path).add("hsm", "0a", "another name")
    content = LatchFile(path).read()
    for entry, note in zip(content.entries.values(), content.notes, strict=True):
        line = link(encode(row_of(note), 1), "0" * 64, 0)
        found = entry_of(parse(line).values)
        assert found == Entry(**{**asdict(entry), "at": float(int(entry.at))})


def test_a_clearance_names_the_entry() -> None:
    entry = Entry(id="1f", kind="credential", scope="s", state="trying", at=1.0)
    row = row_of(Note(entry=entry, by="alice", reason="why"))
    assert json.loads(link(encode(row, 1), "0" * 64, 0)) == {
        "at": 1,
        "by": "alice",
        "detail": "why",
        "issuing_ca": "",
        "kind": "cleared",
        "latch": "1f",
        "prev": "0" * 64,
        "scope": "s",
        "seq": 0,
    }


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_start_says_whether_other_hosts_share_the_archive(
    path: Path, *, is_shared: bool
) -> None:
    begin(path, 5.0, is_shared=is_shared)
    assert LatchFile(path).read() == Content(begun_at=5.0 if is_shared else 0.0)
    assert path.exists() is is_shared


def test_a_worker_does_not_start_with_a_damaged_file(path: Path) -> None:
    path.write_bytes(b"{")
    with pytest.raises(LedgerError, match="the latch cannot be used") as error:
        begin(path, 5.0, is_shared=False)
    assert error.value.detail.startswith(f"{path} holds no latch")
