"""The content of the latch's file, and how processes share it."""

from dataclasses import replace
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.resilience.latch_file import Content, Entry, LatchFile, new_id


def entry(name: str = "", state: str = "refused", at: float = 1.0) -> Entry:
    """Return an entry; that of an issuing CA where it is stopped."""
    kind = "issuing_ca" if state == "stopped" else "credential"
    scope = f"scope of {name}"
    return Entry(
        id=new_id(), kind=kind, scope=scope, issuing_ca=name, state=state, at=at
    )


def content_of(*entries: Entry) -> Content:
    content = Content()
    for each in entries:
        content.put(each)
    return content


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = LatchFile(tmp_path / "state/latch.json")
    with file.change() as content:
        content.put(entry("a"))
        content.put(entry("b", "stopped"))
        content.clear("a", by="alice", reason="the PIN was right")
        content.begun_at, content.read_at = 2.0, 1.0
        assert content.awaits_archive
    assert file.read() == content


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = LatchFile(tmp_path / "latch.json")

    def fail() -> None:
        with file.change() as content:
            content.put(entry("a"))
            raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        fail()
    assert file.read() == Content()


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    file = LatchFile(tmp_path / "latch.json")
    with file.change():
        pass
    assert not (tmp_path / "latch.json").exists()


def test_a_lock_that_is_not_released_is_an_error(tmp_path: Path) -> None:
    file = LatchFile(tmp_path / "latch.json")
    with (
        file.turn("login", 1),
        pytest.raises(TimeoutError, match="another process"),
        file.turn("login", 0.02),
    ):
        pytest.fail("two have the lock")
    with file.turn("login", 0), file.turn("another", 0):
        pass


def test_each_entry_that_is_latched_has_one_note() -> None:
    trying, proven = entry("a", "trying"), entry("b", "proven")
    content = content_of(trying, proven)
    assert content.notes == []
    latched = replace(trying, state="unanswered")
    content.put(latched)
    content.put(replace(latched, reason="the same"))
    assert [note.entry for note in content.notes] == [latched]


@pytest.mark.parametrize("state", ["refused", "unanswered", "stopped", "trying"])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_clearance_removes_what_has_the_name(state: str, *, by_name: bool) -> None:
    mine, other = entry("a", state), entry("b", state)
    content = content_of(mine, other)
    content.notes.clear()
    name = mine.issuing_ca if by_name else mine.id
    assert content.clear(name, by="alice", reason="why") == [mine]
    assert [*content.entries.values()] == [other]
    (note,) = content.notes
    assert (note.entry, note.by, note.reason) == (mine, "alice", "why")


def test_a_clearance_leaves_what_is_proven() -> None:
    content = content_of(entry("a", "proven"))
    assert content.clear("a", by="alice", reason="why") == []
    assert content.entries


def test_entries_of_other_hosts_are_taken_over_once() -> None:
    mine, theirs = entry("a"), entry("b")
    content = content_of(mine)
    content.notes.clear()
    for _ in range(2):
        content.merge([theirs, mine], [])
    assert [*content.entries.values()] == [mine, theirs]
    # They are in a journal of their host.
    assert content.notes == []


def test_what_was_cleared_elsewhere_is_cleared_here() -> None:
    mine, theirs = entry("a"), entry("b")
    content = content_of(mine)
    content.merge([mine, theirs], [mine.id, theirs.id])
    assert content.entries == {}


def test_what_was_cleared_here_does_not_come_back() -> None:
    mine = entry("a")
    content = content_of(mine)
    content.clear("a", by="alice", reason="why")
    content.merge([mine], [])
    assert content.entries == {}


def test_of_a_scope_the_newest_proven_credentials_stay() -> None:
    entries = [entry("a", "proven", float(at)) for at in range(10)]
    other = entry("b", "proven", 0.0)
    content = content_of(other, *reversed(entries))
    assert sorted(content.entries) == sorted(each.id for each in (other, *entries[2:]))


def test_what_root_writes_belongs_to_the_owner_of_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.chown", lambda path, *_: given.append(path))
    path = tmp_path / "state/latch.json"
    with LatchFile(path).change() as content:
        content.put(entry("a"))
    assert given == [path.parent, path.with_name("latch.lock"), path]
    given.clear()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with LatchFile(path).change() as content:
        content.put(entry("b"))
    assert given == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latch.json"
    path.mkdir()
    with pytest.raises(LedgerError, match="the latch cannot be used") as error:
        LatchFile(path).read()
    assert error.value.rule == "ledger.latch"
    assert error.value.detail == f"{path} cannot be read: Is a directory"
