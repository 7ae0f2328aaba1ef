import os
import stat
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.system.files import write_new


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
