"""`meshca hierarchy sign`, `cross-sign` and `rehearse`, as a person sees them."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bridge.cli.hierarchy import app
from bridge.errors import ConfigError
from bridge.hierarchy.output import Output
from bridge.hierarchy.schema import load
from bridge.hierarchy.words import lines_of, words_of
from tests.support.parts.ceremonies import tree
from tests.support.parts.pki import key_pem, new_key, write_private


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        app, [str(one) for one in arguments], catch_exceptions=False
    )
    return result.exit_code, result.stdout, result.stderr


def now() -> str:
    return datetime.now(UTC).isoformat()


def write(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "hierarchy.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def sign(path: Path, name: str, *more: object) -> tuple[int, str, str]:
    out = path.parent / "out"
    options = ("--out", out, "--time", now(), "--make-key", *more)
    return run("sign", path, name, *options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, tree())


def test_sign_shows_the_file_and_what_is_read_aloud(file: Path) -> None:
    status, shown, err = sign(file, "root")
    assert (status, err) == (0, "")
    out = file.parent / "out"
    assert f"{file}: SHA-256 {load(file).digest}\n" in shown
    assert "root: CN=Corp Root CA,O=Corp (valid to 20" in shown
    digests = Output(out).digests("root")
    assert all(
        f"{out / path}\n  SHA-256 {digest}\n" in shown
        for path, digest in digests.items()
    )
    assert shown.endswith(
        "Read aloud, the SHA-256 of root/certificate.pem:\n"
        + "".join(f"  {line}\n" for line in lines_of(digests["root/certificate.pem"]))
    )


def test_a_run_that_was_cut_off_says_that_it_is_complete_now(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: Output) -> None:
        raise ConfigError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Output, "write_manifest", stopped)
        with pytest.raises(ConfigError, match="the disk is full"):
            sign(file, "root")
    _, shown, _ = sign(file, "root")
    assert shown.startswith("root was signed before; its record is now complete\n")


@pytest.mark.parametrize("form", [str, str.upper, words_of])
def test_the_file_that_was_agreed_is_signed(
    file: Path, form: Callable[[str], str]
) -> None:
    status, _, _ = sign(file, "root", "--digest", form(load(file).digest))
    assert status == 0


def test_a_file_that_was_changed_since_it_was_agreed_signs_nothing(file: Path) -> None:
    agreed = load(file).digest
    content = file.read_text()
    file.write_text(content.replace("years: 20", "years: 21"))
    with pytest.raises(
        ConfigError, match=r"is not the file that was agreed: its SHA-256 is .*restore"
    ):
        sign(file, "root", "--digest", agreed)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "--time: expected the time that you read elsewhere"),
        (("--time", "noon"), "--time: expected a time with its zone, .*found 'noon'"),
        (("--time", "2027-01-31T12:00"), "--time: expected a time with its zone"),
        (
            ("--time", (datetime.now(UTC) - timedelta(days=1)).isoformat()),
            "the clock of this machine says",
        ),
    ],
    ids=["nobody tells", "no time", "no zone", "another day"],
)
def test_a_clock_that_nobody_looked_at_signs_nothing(
    file: Path, given: tuple[str, ...], says: str
) -> None:
    out = file.parent / "out"
    with pytest.raises(ConfigError, match=says):
        run("sign", file, "root", "--make-key", "--out", out, *given)
    assert not out.exists()


def test_a_passphrase_comes_by_the_descriptor_and_is_not_shown(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    write_private(tmp_path / "keys/root.key", key_pem(new_key("p384"), b"open sesame"))
    (tmp_path / "pin").write_text("open sesame\n")
    descriptor = os.open(tmp_path / "pin", os.O_RDONLY)
    try:
        status, shown, err = sign(file, "root", "--pin-fd", descriptor)
    finally:
        os.close(descriptor)
    assert status == 0
    assert "sesame" not in shown + err
    transcript = (tmp_path / "out/transcript.jsonl").read_text()
    assert "sesame" not in transcript


def test_cross_sign_signs_the_root_of_another_file(tmp_path: Path) -> None:
    rules = [{"rule": "path_len.too-long", "ca": "root", "reason": "cross-signing"}]
    old = write(tmp_path / "old", tree(root={"path_len": 3}) | {"accepted": rules})
    new = write(tmp_path / "new", tree(root={"common_name": "Corp Root CA 2"}))
    for path in (old, new):
        assert sign(path, "root")[0] == 0
    out = old.parent / "out"
    certificate = new.parent / "out/root/certificate.pem"
    options = ("--certificate", certificate, "--by", "root", "--out", out)
    status, shown, err = run("cross-sign", old, "new-root", *options, "--time", now())
    assert (status, err) == (0, "")
    assert "new-root.by.root: CN=Corp Root CA 2,O=Corp (valid to 20" in shown
    assert Output(out).names() == ("new-root.by.root", "root")
    status, shown, _ = run("verify", old, "--out", out)
    assert status == 0
    assert "new-root.by.root: a cross-certificate; 1 allowed and 3 forbidden" in shown


def test_rehearse_leaves_nothing_and_shows_the_digest(file: Path) -> None:
    status, shown, err = run("rehearse", file)
    assert (status, err) == (0, "")
    assert "prod: CN=Corp EU prod CA,O=Corp (valid to " in shown
    assert "Rehearsed: 3 certificates and 2 first CRLs with throwaway keys" in shown
    assert shown.endswith(f"{file}: SHA-256 {load(file).digest}\n")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
