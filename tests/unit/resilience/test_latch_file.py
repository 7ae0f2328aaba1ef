"""The content of the latch's file, and how processes share it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.errors import BackendCredentialError, LedgerError
from bridge.resilience.latch import Latch
from bridge.resilience.latch_file import Content, Entry, LatchFile, new_id


def entry(name: str = "", state: str = "refused", at: float = 1.0) -> Entry:
    """Return an entry; that of an issuing CA where it is stopped."""
    kind = "issuing_ca" if state == "stopped" else "credential"
    scope = f"scope of {name}"
    digest = "" if state == "stopped" else "00" * 32
    return Entry(
        id=new_id(),
        kind=kind,
        scope=scope,
        issuing_ca=name,
        state=state,
        at=at,
        digest=digest,
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


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        # what would be lost in silence, and tried again
        ("entries", {}, "entries: dict"),
        ("notes", {}, "notes: dict"),
        ("cleared", "0a", "cleared: str"),
        ("entries.1", "the first", "two entries have one id"),
        ("entries.0.digest", "", "digest: ''"),
        ("entries.0.digest", "ab" * 31, "digest: 'abab"),
        # what would end a login by a bug
        ("entries.0.digest", "\u00e9" * 64, "digest: '\u00e9"),
        ("entries.0.salt", "abc", "salt: 'abc'"),
        ("entries.0.salt", "zz", "salt: 'zz'"),
        ("entries.0.state", "fine", "'fine' is not a valid State"),
        ("entries.0.kind", "x", "'x' is not a valid Kind"),
        ("entries.0.at", "now", "at: str"),
        ("entries.0.scope", 1, "scope: int"),
        ("entries.0.state", "stopped", "state: 'stopped' of kind 'credential'"),
        # what would not stop an issuing CA
        ("entries.1.state", "proven", "state: 'proven' of kind 'issuing_ca'"),
        ("entries.1.state", "trying", "state: 'trying' of kind 'issuing_ca'"),
        # what cannot be shown or written into a row
        ("entries.0.at", 1e300, "at: 1e\\+300"),
        ("entries.0.at", -1, "at: -1"),
        ("entries.0.at", 10**400, "at: 1000"),
        ("entries.0.at", float("nan"), "at: nan"),
        ("notes.0.entry.at", float("inf"), "at: inf"),
        ("begun_at", float("inf"), "begun_at: inf"),
        ("read_at", float("nan"), "read_at: nan"),
    ],
)
def test_a_file_that_was_edited_to_nonsense_is_refused(
    tmp_path: Path, where: str, value: object, told: str
) -> None:
    file = LatchFile(tmp_path / "latch.json")
    with file.change() as content:
        content.put(entry("a"))
        content.put(entry("b", "stopped"))
    tree = json.loads((tmp_path / "latch.json").read_bytes())
    if value == "the first":
        value = tree["entries"][0]
    *above, last = [int(key) if key.isdigit() else key for key in where.split(".")]
    at = tree
    for key in above:
        at = at[key]
    at[last] = value
    (tmp_path / "latch.json").write_text(json.dumps(tree))
    with pytest.raises(LedgerError, match="the latch cannot be used") as error:
        file.read()
    assert re.search(f"holds no latch: .*{told}", error.value.detail)
    assert "move it away" in error.value.detail


def test_digits_of_a_digest_may_be_capital(tmp_path: Path) -> None:
    path = tmp_path / "latch.json"
    latch = Latch(path)
    with pytest.raises(BackendCredentialError, match="no"), latch.attempt("s", b"1"):
        raise BackendCredentialError("no")
    tree = json.loads(path.read_bytes())
    tree["entries"][0]["digest"] = tree["entries"][0]["digest"].upper()
    path.write_text(json.dumps(tree))
    with pytest.raises(BackendCredentialError, match="refused before"):
        latch.attempt("s", b"1").__enter__()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latch.json"
    path.mkdir()
    with pytest.raises(LedgerError, match="the latch cannot be used") as error:
        LatchFile(path).read()
    assert error.value.rule == "ledger.latch"
    assert error.value.detail == f"{path} cannot be read: Is a directory"
