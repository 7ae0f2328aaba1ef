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
from tests.support.parts.pki import key_pem, new_key, public_pem, write_private

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


OFFICERS = """
officers:
- {name: Ada, role: security officer, public_key: ada.pem}
- {name: Grace, role: witness, public_key: grace.pem}
- {name: Hedy, role: witness, public_key: hedy.pem}
quorum: 2
"""
KEYS = {name: new_key() for name in ("ada", "grace", "hedy")}


@pytest.fixture
def signable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy file of three officers, quorum two, and a ceremony of one entry."""
    monkeypatch.setenv("MESHCA_PIN_GRACE", "secret")
    for name, key in KEYS.items():
        (tmp_path / f"{name}.pem").write_bytes(public_pem(key))
        passphrase = b"secret" if name == "grace" else None
        write_private(tmp_path / f"{name}.key", key_pem(key, passphrase))
    path = tmp_path / "hierarchy.yaml"
    path.write_text(FILE + OFFICERS)
    out = tmp_path / "out"
    (out / "root").mkdir(parents=True)
    (out / "root/certificate.pem").write_text("root")
    Transcript(out / FILE_NAME).append(
        "sign root",
        "ada",
        AT,
        files={"root/certificate.pem": sha256(b"root").hexdigest()},
        details={"hierarchy": sha256(path.read_bytes()).hexdigest()},
    )
    return path


def sign(file: Path, officer: str, key: str) -> tuple[int, str, str]:
    where = str(file.parent / key)
    arguments = (file, file.parent / "out", officer, "--key", where)
    return run("transcript", "sign", *arguments)


def test_officers_sign_up_to_the_quorum(signable: Path) -> None:
    out = signable.parent / "out"
    assert "Quorum not met: 1 of 2" in sign(signable, "Ada", "ada.key")[1]
    status, _, err = run("transcript", "verify", signable, out)
    assert status == 1
    assert "quorum not met: expected the signatures of 2 officers" in err
    assert "found 1: Ada" in err
    assert "with `meshca hierarchy transcript sign`" in err
    # An encrypted key: its passphrase is in the environment.
    shown = sign(signable, "Grace", "grace.key")[1]
    head = read(out / FILE_NAME).head
    for text in (shown, run("transcript", "verify", signable, out, "--head", head)[1]):
        assert "signed by Ada, Grace" in text
        assert "Quorum met: 2 of 2 have signed all entries" in text
        assert head in text


SIGNED_AGAIN = "the key of Ada has signed this already: expected the key of another"


@pytest.mark.parametrize(
    ("officer", "key", "says"),
    [
        ("Eve", "ada.key", r"no officer is called 'Eve': .* Ada, Grace, Hedy"),
        ("ada", "ada.key", r"no officer is called 'ada'"),
        ("Ada", "ada.key", SIGNED_AGAIN),
        ("Grace", "hedy.key", r"the key is not the one that .* has for Grace"),
        ("Hedy", "ada.key", r"the key is not the one that .* has for Hedy"),
        ("Hedy", "absent.key", r"absent\.key: cannot be read: No such file"),
        ("Hedy", "hedy.pem", r"hedy\.pem: expected a file that only its owner"),
    ],
)
def test_a_signature_that_is_none_of_an_officer_is_refused(
    signable: Path, officer: str, key: str, says: str
) -> None:
    sign(signable, "Ada", "ada.key")
    data = (signable.parent / "out" / FILE_NAME).read_bytes()
    with pytest.raises(ConfigError, match=says):
        sign(signable, officer, key)
    assert (signable.parent / "out" / FILE_NAME).read_bytes() == data


@pytest.mark.parametrize(
    ("uri", "more", "says"),
    [
        ("pkcs11:token=t", ["--module", "m.so"], "Ada: --key: .*object or id, are req"),
        (
            "pkcs11:token=t;object=o?pin-value=1",
            ["--module", "m.so"],
            "Ada: --key: .*without pin-value",
        ),
        ("pkcs11:token=t;object=o", [], "Ada: expected the module of the HSM's vendor"),
    ],
)
def test_an_officers_key_in_a_token_is_named_by_uri_and_module(
    signable: Path, uri: str, more: list[str], says: str
) -> None:
    arguments = (signable, signable.parent / "out", "Ada", "--key", uri, *more)
    with pytest.raises(ConfigError, match=says):
        run("transcript", "sign", *arguments)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("out/root/certificate.pem", r"certificate\.pem: it was changed since"),
        ("out/stray.pem", r"stray\.pem: no entry names this file"),
        ("hierarchy.yaml", r"verify with the file as it was in the ceremony"),
        ("out/transcript.jsonl", r"it does not follow|no line of a transcript"),
    ],
)
def test_an_officer_signs_nothing_that_was_changed(
    signable: Path, file: str, says: str
) -> None:
    with (signable.parent / file).open("a") as changed:
        changed.write("# more\n")
    with pytest.raises(ConfigError, match=says):
        sign(signable, "Ada", "ada.key")


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
