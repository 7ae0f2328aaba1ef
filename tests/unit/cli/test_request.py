"""`meshca request`, over clients that do not connect."""

import json
import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from bridge.cli import main
from bridge.cli.command_line import app
from bridge.client.istio import IstioReply, IstioRequest
from bridge.client.linkerd import LinkerdReply, LinkerdRequest
from bridge.errors import ConfigError
from bridge.x509.path import validate_chain
from tests.support.parts.pki import NOW, bundle, new_chain, new_root
from tests.vectors.generate_linkerd import IDENTITY

ROOTS = bundle(new_root().certificate)
URI = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web")


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
        (b"r", "", r"--roots: .*roots\.pem: expected one or more CERTIFICATE"),
        (b"", "", r"--roots: .*roots\.pem: expected one or more CERTIFICATE"),
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


# Linkerd.


CHAIN = new_chain()


@pytest.fixture
def linkerd_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[LinkerdRequest]:
    made: list[LinkerdRequest] = []
    leaf = CHAIN.issue_leaf(x509.DNSName(IDENTITY))
    issuing, *between = CHAIN.chain
    path = validate_chain(issuing, between, [CHAIN.root], now=NOW, source="x")

    def certify(wanted: LinkerdRequest) -> LinkerdReply:
        made.append(wanted)
        return LinkerdReply(leaf, path, NOW + timedelta(minutes=50), b"the key")

    monkeypatch.setattr("bridge.cli.request.certify", certify)
    monkeypatch.chdir(tmp_path)
    Path("roots.pem").write_bytes(bundle(CHAIN.root))
    Path("token").write_bytes(b"t0ken\n")
    return made


BASE = ["request", "--front", "linkerd", "--address", "h:1", "--roots", "roots.pem"]
TOKEN = ["--token-file", "token"]
NAMED = ["--identity", IDENTITY]


def test_a_linkerd_request_is_made_shown_and_written(
    linkerd_asked: list[LinkerdRequest],
) -> None:
    result = CliRunner().invoke(app, [*BASE, *TOKEN, *NAMED, "--out", "out"])
    assert result.exit_code == 0, result.output
    (wanted,) = linkerd_asked
    assert (wanted.address, wanted.identity) == ("h:1", IDENTITY)
    assert wanted.token == b"t0ken"  # the newline of the file is not part of it
    assert [*wanted.anchors] == [CHAIN.root]
    assert f"leaf {IDENTITY}" in result.stdout
    assert "trust anchor" in result.stdout
    until = f"{NOW + timedelta(minutes=50):%Y-%m-%dT%H:%M:%SZ}"
    assert f"valid until {until}" in result.stdout
    assert Path("out/key.pem").read_bytes() == b"the key"
    assert Path("out/chain.pem").read_text().count("BEGIN") == 3
    assert Path("out/roots.pem").read_text().count("BEGIN") == 1


@pytest.mark.usefixtures("linkerd_asked")
def test_the_anchors_are_read_once_where_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, names = Path.read_bytes, list[str]()

    def noted(path: Path) -> bytes:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert CliRunner().invoke(app, [*BASE, *TOKEN, *NAMED]).exit_code == 0
    assert names == ["roots.pem", "token"]


@pytest.mark.usefixtures("linkerd_asked")
def test_a_program_may_read_the_answer_of_linkerd() -> None:
    result = CliRunner().invoke(app, [*BASE, *TOKEN, *NAMED, "-o", "json"])
    found = json.loads(result.stdout)
    assert len(found["cert_chain"]) == 3
    assert found["valid_until"].startswith(f"{NOW:%Y-%m-%d}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (NAMED, "expected --token-file"),
        (TOKEN, "--identity: expected"),
        ([*TOKEN, "--identity", "spiffe://a/b"], "(found 'spiffe://a/b')"),
        ([*TOKEN, *NAMED, "--ttl", "60"], "not part of Linkerd's API"),
        ([*TOKEN, *NAMED, "--key", "rsa2048"], "not part of Linkerd's API"),
        ([*TOKEN, *NAMED, "--cluster", "a"], "not part of Linkerd's API"),
        ([*TOKEN, *NAMED, "--cert-signer", "a"], "not part of Linkerd's API"),
        ([*TOKEN, *NAMED, "--server-name", "a"], "not part of Linkerd's API"),
        (
            [*TOKEN, *NAMED, "--front", "istio"],
            "--identity is part of Linkerd's API only",
        ),
    ],
)
def test_a_linkerd_request_that_makes_no_sense_is_a_wrong_use(
    linkerd_asked: list[LinkerdRequest], options: list[str], says: str
) -> None:
    result = CliRunner().invoke(app, [*BASE, *options], terminal_width=200)
    assert result.exit_code == 2
    assert says in result.stderr
    assert linkerd_asked == []
