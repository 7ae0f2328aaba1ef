import json
import os
import re
import stat
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

import bridge.cli
from bridge import __version__
from bridge.cli import app, main
from bridge.cli.chain_tree import print_chain
from bridge.cli.console import complain, warn
from bridge.client.istio import IstioReply, IstioRequest, _advice
from bridge.errors import ConfigError, DeniedError
from bridge.system.files import write_new
from tests.support.parts.pki import NOW, bundle, new_chain, new_root

MESHCA = Path(sys.executable).parent / "meshca"
ROOTS = bundle(new_root().certificate)
URI = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MESHCA, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"meshca {__version__}\n")


@pytest.mark.parametrize("command", ["", *bridge.cli._COMMANDS])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        "",
        *bridge.cli._COMMANDS,
        "hierarchy throwaway",
        "ledger search",
        "ledger verify",
    ],
)
def test_help_is_of_one_piece(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert "completion" not in result.stdout
    text = result.stdout.partition("\u256d")[0].splitlines()
    # A line that was broken where the source breaks is short, and another follows it.
    for line, below in pairwise(text):
        first = below.split()[:1]
        if line.strip() and first and "Usage:" not in line:
            assert len(line.rstrip()) + len(first[0]) > 76, line


@pytest.mark.parametrize(
    ("command", "form"),
    [("check", "json"), ("ledger search", "json"), ("ledger export", "csv")],
)
def test_o_is_short_for_output(command: str, form: str, tmp_path: Path) -> None:
    arguments = [*command.split(), "-c", f"{tmp_path}/absent.yaml", "-o", form]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)


def test_an_unknown_command_is_a_wrong_use() -> None:
    done = run("issue")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such command" in done.stderr


def test_an_error_is_a_sentence_on_stderr_and_status_1(tmp_path: Path) -> None:
    done = run("serve", "-c", tmp_path / "[none].yaml")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{tmp_path}/[none].yaml: cannot be read: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_detail_of_an_error_follows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise DeniedError("no [bold]", detail="because [red]")

    monkeypatch.setattr(bridge.cli, "app", fail)
    with pytest.raises(SystemExit, match="1"):
        main()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "no [bold]\nbecause [red]\n")


def test_complaints_are_written_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[vault] " + "x" * 300
    complain(long)
    warn("careful")
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{long}\nwarning: careful\n")


def test_plugins_are_listed_for_people_and_for_programs() -> None:
    text, parsed = run("plugins"), run("plugins", "-o", "json")
    assert text.returncode == parsed.returncode == 0
    assert re.search(
        r"^ *file +bridge_file:FileCA +meshca-bridge +\S+", text.stdout, re.MULTILINE
    )
    (ours,) = [one for one in json.loads(parsed.stdout) if one["name"] == "file"]
    assert ours == {
        "name": "file",
        "module": "bridge_file:FileCA",
        "distribution": "meshca-bridge",
        "version": ours["version"],
    }


# Files.


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


# Trees.


def test_a_chain_is_a_tree_from_the_anchor_down(
    capsys: pytest.CaptureFixture[str],
) -> None:
    permitted = x509.NameConstraints(
        [x509.DNSName("svc"), x509.UniformResourceIdentifier("corp.example")],
        [x509.RFC822Name("invalid")],
    )
    root = new_root("the [root]")
    issuing = root.issue_ca("region", constraints=permitted).issue_ca("issuing")
    leaf = issuing.issue_leaf(URI, not_after=NOW + timedelta(hours=1))
    print_chain([leaf, *issuing.chain, root.certificate])
    lines = capsys.readouterr().out.splitlines()
    roles = [line.strip("│└─├ ") for line in lines]
    assert roles[0] == "trust anchor CN=the [root]"
    assert "no name constraints" in roles[2]
    assert roles[3] == "intermediate CN=region"
    assert "permits DNS:svc, URI:corp.example" in roles[5]
    assert roles[6] == "excludes e-mail:invalid"
    assert roles[7] == "issuing CA CN=issuing"
    assert roles[-2] == f"leaf {URI.value}"
    assert f"serial {leaf.serial_number:x}" in roles[-1]
    assert "EC secp256r1" in roles[-1]


def test_a_chain_without_a_leaf_has_one_issuing_ca(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chain = new_chain()
    print_chain([*chain.chain, chain.root])
    out = capsys.readouterr().out
    assert out.count("issuing CA CN=") == 1
    assert out.count("intermediate CN=") == 1


# Request.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[IstioRequest]:
    made: list[IstioRequest] = []
    chain = new_chain()
    leaf = chain.issue_leaf(URI)
    pems = tuple(
        one.public_bytes(Encoding.PEM).decode()
        for one in (leaf, *chain.chain, chain.root)
    )

    def ask(wanted: IstioRequest) -> IstioReply:
        made.append(wanted)
        return IstioReply(key_pem=b"the key", cert_chain=pems)

    monkeypatch.setattr("bridge.cli.request.ask", ask)
    return made


def test_a_request_is_made_shown_and_written(
    tmp_path: Path, asked: list[IstioRequest]
) -> None:
    (tmp_path / "roots.pem").write_bytes(ROOTS)
    (tmp_path / "token").write_text(" t0ken\n")
    arguments = ["request", "--address", "h:1", "--roots", f"{tmp_path}/roots.pem"]
    arguments += ["--token-file", f"{tmp_path}/token", "--ttl", "600"]
    arguments += ["--cert-signer", "s", "--cluster", "c", "--out", f"{tmp_path}/out"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (wanted,) = asked
    assert (wanted.address, wanted.roots, wanted.token) == ("h:1", ROOTS, "t0ken")
    assert (wanted.ttl_seconds, wanted.cert_signer, wanted.cluster) == (600, "s", "c")
    assert str(URI.value) in result.stdout
    assert (tmp_path / "out/key.pem").read_bytes() == b"the key"
    assert (tmp_path / "out/chain.pem").read_text().count("BEGIN") == 3
    assert (tmp_path / "out/roots.pem").read_text().count("BEGIN") == 1


@pytest.mark.usefixtures("asked")
def test_a_program_may_read_the_answer(tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_bytes(ROOTS)
    arguments = ["request", "--address", "h:1", "--roots", f"{tmp_path}/roots.pem"]
    result = CliRunner().invoke(app, [*arguments, "-o", "json"])
    assert len(json.loads(result.stdout)["cert_chain"]) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--certificate", "c"], "expected --certificate and --key-file together"),
        (["--key-file", "k"], "expected --certificate and --key-file together"),
        (
            ["--certificate", "c", "--key-file", "k", "--token-file", "t"],
            "expected --token-file or --certificate, not both",
        ),
        (["--address", "h"], "--address: expected HOST:PORT (found 'h')"),
        (["--address", ":1"], "--address: expected HOST:PORT (found ':1')"),
        (["--address", "https://h:1"], "expected HOST:PORT (found 'https://h:1')"),
        (["--ttl", "-1"], "greater than or equal to 0"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_wrong_use(
    tmp_path: Path,
    options: list[str],
    says: str,
    asked: list[IstioRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roots.pem").write_bytes(ROOTS)
    for name in ("c", "k", "t"):
        (tmp_path / name).write_text("x")
    base = ["request", "--roots", "roots.pem"]
    if "--address" not in options:
        base += ["--address", "h:1"]
    result = CliRunner().invoke(app, [*base, *options], terminal_width=200)
    assert result.exit_code == 2
    assert says in result.stderr
    assert asked == []


@pytest.mark.parametrize(
    ("roots", "taken", "says"),
    [
        (b"r", "", r"--roots .*roots\.pem: line 1 is neither part"),
        (b"", "", r"--roots .*roots\.pem: expected one or more CERTIFICATE"),
        (ROOTS, "chain.pem", r"expected none of these files: chain\.pem"),
    ],
)
def test_what_would_be_in_vain_is_not_asked_for(
    tmp_path: Path, roots: bytes, taken: str, says: str, asked: list[IstioRequest]
) -> None:
    (tmp_path / "roots.pem").write_bytes(roots)
    (tmp_path / "out").mkdir()
    if taken:
        (tmp_path / "out" / taken).write_text("old")
    arguments = ["request", "--address", "h:1", "--roots", f"{tmp_path}/roots.pem"]
    result = CliRunner().invoke(app, [*arguments, "--out", f"{tmp_path}/out"])
    assert isinstance(result.exception, ConfigError)
    assert re.search(says, str(result.exception))
    assert asked == []


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ("Socket closed", ": this port may want a client certificate (--certificate)"),
        (
            "Hostname Verification Check failed",
            ": the certificate is not for h; give --server-name",
        ),
        (
            "SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: self signed",
            ": the bridge's certificate does not chain to --roots r.pem",
        ),
        (
            "Failed to create security handshaker.",
            ": --key-file is not the key of --certificate, or one is damaged",
        ),
        ("[field:hostname lookup error: Domain name not found]", ""),
        ("a token is needed", ""),
    ],
)
def test_a_failed_handshake_says_what_to_do(details: str, says: str) -> None:
    wanted = IstioRequest(address="h:1", roots=ROOTS, roots_name="r.pem")
    assert _advice(details, wanted) == says


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--cluster", "a\nb", "--cluster: expected printable ASCII"),
        ("--cluster", "\u00fc", "--cluster: expected printable ASCII"),
        ("--cert-signer", "\udcff", "--cert-signer: expected printable ASCII"),
        ("--ttl", "9" * 20, "than or equal to 9223372036854775807"),
    ],
)
def test_what_the_transport_cannot_carry_is_not_sent(
    tmp_path: Path, asked: list[IstioRequest], option: str, value: str, says: str
) -> None:
    (tmp_path / "roots.pem").write_bytes(ROOTS)
    arguments = ["request", "--address", "h:1", "--roots", f"{tmp_path}/roots.pem"]
    result = CliRunner().invoke(app, [*arguments, option, value])
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("\u2502", " ").split())
    assert asked == []


def test_a_file_that_cannot_be_made_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["meshca", "demo", "--folder", "/proc/none"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "/proc/none: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("token", [b"\xff\xfe", b"a\nb", b"a b"])
def test_a_token_that_is_no_text_is_an_error(
    tmp_path: Path,
    asked: list[IstioRequest],
    monkeypatch: pytest.MonkeyPatch,
    token: bytes,
) -> None:
    (tmp_path / "roots.pem").write_bytes(ROOTS)
    (tmp_path / "token").write_bytes(token)
    arguments = ["meshca", "request", "--address", "h:1"]
    arguments += ["--roots", f"{tmp_path}/roots.pem"]
    arguments += ["--token-file", f"{tmp_path}/token"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert asked == []
