"""Files: secrets are judged when opened, replaced whole, locked, never overwritten."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.system.files import (
    failure_text,
    lines_backwards,
    locked,
    read_public,
    read_secret,
    replace,
    stamp_of,
    write_new,
)

_SOON_SECONDS = 20.0


def test_the_mode_of_the_opened_file_is_judged_and_not_that_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, private = tmp_path / "key", tmp_path / "private"
    path.write_bytes(b"secret")
    path.chmod(0o644)
    private.write_bytes(b"other")
    private.chmod(0o600)
    opened = os.open

    def swap(path: Path, flags: int) -> int:
        file = opened(path, flags)
        private.replace(path)
        return file

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(ConfigError, match=r"found 0644"):
        read_secret(path)
    monkeypatch.undo()
    assert read_secret(path) == b"other"


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_a_secret_of_its_owner_alone_is_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    assert read_secret(path) == b"secret"


@pytest.mark.parametrize(
    ("mode", "allow_group_read", "message"),
    [
        (0o640, False, "such as mode 0600 .found 0640.; run chmod 600 .*key, or hint"),
        (0o644, False, "such as mode 0600 .found 0644.; run chmod 600 .*key$"),
        (0o601, True, "such as mode 0600 or 0440 .found 0601.; run chmod 600 .*key$"),
        (0o660, True, "such as mode 0600 or 0440 .found 0660.; run chmod 600 .*key$"),
    ],
)
def test_a_secret_that_others_have_a_right_to_is_refused(
    tmp_path: Path, mode: int, message: str, *, allow_group_read: bool
) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        read_secret(path, allow_group_read=allow_group_read, group_hint=", or hint")


def test_a_change_of_the_mode_alone_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(0o644)
    before = stamp_of([path])
    path.chmod(0o600)
    assert stamp_of([path]) != before


def test_a_replaced_file_is_whole_and_has_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_crash_left_is_removed_and_not_written_to(tmp_path: Path) -> None:
    left, other = tmp_path / "file.new", tmp_path / "other"
    other.write_bytes(b"of another user")
    left.hardlink_to(other)
    replace(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert other.read_bytes() == b"of another user"
    assert not left.exists()


def test_a_replacement_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_lock_on_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with locked(tmp_path):
            entered.set()

    second = threading.Thread(target=enter)
    with locked(tmp_path):
        second.start()
        assert not entered.wait(0.05)
    assert entered.wait(_SOON_SECONDS)
    second.join()


def test_files_are_written_for_the_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_new(tmp_path / "new/er", {"key.pem": b"k", "chain.pem": b"c"})
    finally:
        os.umask(old)
    for name, content in (("key.pem", b"k"), ("chain.pem", b"c")):
        path = tmp_path / "new/er" / name
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new/er").stat().st_mode) == 0o700


@pytest.mark.parametrize("link", [False, True], ids=["file", "dangling link"])
def test_nothing_is_written_over(tmp_path: Path, *, link: bool) -> None:
    taken = tmp_path / "chain.pem"
    if link:
        taken.symlink_to(tmp_path / "elsewhere")
    else:
        taken.write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"chain\.pem: expected a new file \(File ex"):
        write_new(tmp_path, {"key.pem": b"k", "chain.pem": b"c", "roots.pem": b"r"})
    assert {path.name for path in tmp_path.iterdir()} == {"chain.pem"}
    assert link or taken.read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="expected a new file"):
        write_new(tmp_path / "file/below", {"key.pem": b"k"})


def test_in_a_volume_of_kubernetes_the_way_out_is_not_chmod(tmp_path: Path) -> None:
    # As the kubelet lays out a Secret: the file's name is a link into `..data`.
    folder = tmp_path / "..2026_11_29_00_00_00.1"
    folder.mkdir()
    (folder / "tls.key").write_bytes(b"secret")
    (folder / "tls.key").chmod(0o644)
    (tmp_path / "..data").symlink_to(folder.name)
    (tmp_path / "tls.key").symlink_to("..data/tls.key")
    with pytest.raises(
        ConfigError, match=r"set defaultMode: 0400 in the Secret"
    ) as got:
        read_secret(tmp_path / "tls.key")
    assert "run chmod" not in str(got.value)


@pytest.mark.parametrize(
    ("below", "reason"),
    [
        ("a.pem", "No such file or directory"),
        ("b/c/a.pem", "No such file or directory: there is no folder {}/b"),
    ],
)
def test_of_an_absent_file_the_folder_that_is_absent_is_named(
    tmp_path: Path, below: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as refusal:
        read_public(tmp_path / below)
    told = f"{tmp_path / below}: cannot be read: {reason.format(tmp_path)}"
    assert str(refusal.value) == told


@pytest.mark.parametrize(
    ("folder", "way_out"),
    [("plain", "let this user have the file"), ("..2026_11", "set fsGroup in the")],
)
def test_a_right_that_is_missing_is_told_with_the_user_who_lacks_it(
    tmp_path: Path, folder: str, way_out: str
) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    told = failure_text(tmp_path / folder / "tls.key", error)
    assert told.startswith(f"Permission denied for the user with uid {os.geteuid()}: ")
    assert way_out in told


def test_the_command_of_a_way_out_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "a key"
    path.write_bytes(b"secret")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"run chmod 600 '.*/a key'"):
        read_secret(path)


@pytest.mark.parametrize("step", [1, 3, 7, 1 << 16])
@pytest.mark.parametrize("content", [b"", b"\n", b"ab\n\ncd\nab\nx", b"x", b"\nab\n"])
@pytest.mark.parametrize("sought", [b"", b"b"])
def test_lines_are_read_from_the_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    content: bytes,
    sought: bytes,
) -> None:
    monkeypatch.setattr("bridge.system.files._STEP_BYTES", step)
    path = tmp_path / "lines"
    path.write_bytes(content)
    expected, offset = list[tuple[int, bytes]](), 0
    for line in content.split(b"\n")[:-1]:
        expected.append((offset, line))
        offset += len(line) + 1
    found = list(lines_backwards(path, sought))
    assert found == [each for each in reversed(expected) if sought in each[1]]
