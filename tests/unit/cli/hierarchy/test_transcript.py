"""`meshca hierarchy transcript` and `digest`, as a person sees them."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge.cli.hierarchy import app
from bridge.errors import ConfigError
from bridge.hierarchy.transcript import FILE_NAME, Transcript, read
from bridge.hierarchy.words import lines_of, words_of

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
FILE = """
version: 1
name: corp
organisation: Corp
cas:
  root:
    common_name: Corp Root CA
    key: {backend: file, path: root.key, algorithm: p256}
    validity: {years: 20}
    path_len: 2
"""


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        app, [str(one) for one in arguments], catch_exceptions=False
    )
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A hierarchy file without officers, and a ceremony of one entry in `out`."""
    path = tmp_path / "hierarchy.yaml"
    path.write_text(FILE)
    (tmp_path / "out").mkdir()
    digest = sha256(FILE.encode()).hexdigest()
    Transcript(tmp_path / "out" / FILE_NAME).append(
        "sign root", "ada", AT, details={"hierarchy": digest}
    )
    return path


def test_verify_shows_the_head_to_be_noted(file: Path) -> None:
    out = file.parent / "out"
    head = read(out / FILE_NAME).head
    for given in ((), ("--head", head), ("--head", words_of(head))):
        status, shown, err = run("transcript", "verify", file, out, *given)
        assert status == 0
        assert "1 entries, unchanged; signed by nobody" in shown
        assert head in shown
        assert all(line in shown for line in lines_of(head))
        assert "names no officers" in err


def test_verify_fails_with_all_that_is_wrong(file: Path) -> None:
    out = file.parent / "out"
    (out / "stray.pem").write_text("")
    status, shown, err = run("transcript", "verify", file, out, "--head", "0" * 64)
    assert status == 1
    assert shown == ""
    assert "lines at the end were cut off or added since" in err
    assert "stray.pem: no entry names this file" in err


def test_print_writes_a_new_page(file: Path) -> None:
    page = file.parent / "record.html"
    status, shown, _ = run("transcript", "print", file, file.parent / "out", page)
    assert (status, shown) == (0, f"Written: {page}\n")
    assert "<h2>1. sign root</h2>" in page.read_text()
    with pytest.raises(ConfigError, match=r"record\.html: expected a new file"):
        run("transcript", "print", file, file.parent / "out", page)


def test_print_says_what_is_missing(file: Path) -> None:
    (file.parent / "out/stray.pem").write_text("")
    page = file.parent / "record.html"
    run("transcript", "print", file, file.parent / "out", page)
    assert "Not complete" in page.read_text()


def test_digest_shows_each_file_in_hex_and_as_words(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("eu.csr", "us.csr")]
    for path in paths:
        path.write_text(path.name)
    status, shown, _ = run("digest", *paths)
    assert status == 0
    for path in paths:
        digest = sha256(path.name.encode()).hexdigest()
        assert f"{path}: {digest}\n" in shown
        assert all(f"  {line}\n" in shown for line in lines_of(digest))


def test_digest_is_of_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a file \(found a folder\)"):
        run("digest", tmp_path)
