"""The folder of a ceremony: each CA whole or not at all, and nothing overwritten."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.hierarchy import output as module
from bridge.hierarchy.keys import spki_sha256
from bridge.hierarchy.output import Output, files_of
from tests.support.parts.pki import new_root

ROOT = new_root("root").certificate
FILES = files_of([ROOT])


def test_a_certificate_is_written_in_all_shapes(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    written = output.write_files("root", FILES)
    names = ("certificate.der", "certificate.pem", "certificate.txt", "chain.pem")
    assert sorted(written) == [f"root/{name}" for name in names]
    for path, digest in written.items():
        content = (tmp_path / "out" / path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    assert output.certificate("root") == ROOT
    assert (
        spki_sha256(ROOT.public_key())
        in (tmp_path / "out/root/certificate.txt").read_text()
    )


def test_the_manifest_is_made_of_what_is_there(tmp_path: Path) -> None:
    output = Output(tmp_path)
    written = output.write_files("root", FILES)
    assert output.recorded() == frozenset()
    output.write_manifest()
    assert output.recorded() == {"root"}
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert manifest["files"] == written
    assert manifest["cas"]["root"]["spki_sha256"] == spki_sha256(ROOT.public_key())
    assert manifest["cas"]["root"]["serial"] == f"{ROOT.serial_number:x}"


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def a_link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("put", [a_file, a_folder, a_link])
def test_whatever_stands_there_is_not_overwritten(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path / "root")
    output = Output(tmp_path)
    assert output.has("root")
    with pytest.raises(ConfigError, match="root: exists, and nothing is overwritten"):
        output.write_files("root", FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._write

    def fail_at_the_chain(path: Path, content: bytes) -> None:
        if path.name == "chain.pem":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(module, "_write", fail_at_the_chain)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        Output(tmp_path).write_files("root", FILES)
    assert [*tmp_path.iterdir()] == []


def test_what_a_run_left_that_was_killed_is_removed_by_the_next(
    tmp_path: Path,
) -> None:
    (tmp_path / ".unfinished-x").mkdir()
    (tmp_path / ".unfinished-x/certificate.pem").write_text("half")
    output = Output(tmp_path)
    assert output.names() == ()
    output.write_files("root", FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"cas": 1}'])
def test_a_damaged_manifest_is_told_with_a_way_out(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"not a manifest .*restore it, or remove it"):
        Output(tmp_path).recorded()


def test_one_run_at_a_time_signs_into_a_folder(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    with output.exclusively():
        with (
            pytest.raises(ConfigError, match="another run of meshca signs into this"),
            output.exclusively(seconds=0),
        ):
            pass
        output.write_files("root", FILES)
    with output.exclusively(seconds=0):
        assert output.names() == ("root",)


def test_a_folder_is_as_it_was_written_or_it_is_not(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.write_files("root", FILES)
    assert output.holds("root", FILES)
    assert not output.holds("root", files_of([new_root("other").certificate]))
    assert not output.holds("eu", FILES)
    for name in FILES:
        path = tmp_path / "root" / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert not output.holds("root", FILES)
        path.write_bytes(content)
    assert output.holds("root", FILES)
