"""`meshca request --front linkerd`, over a client that does not connect."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from bridge.cli import app
from bridge.client.linkerd import LinkerdReply, LinkerdRequest
from bridge.x509.path import validate_chain
from tests.support.parts.pki import NOW, bundle, new_chain
from tests.vectors.generate_linkerd import IDENTITY

CHAIN = new_chain()


@pytest.fixture
def wished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[LinkerdRequest]:
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


def test_a_request_is_made_shown_and_written(wished: list[LinkerdRequest]) -> None:
    result = CliRunner().invoke(app, [*BASE, *TOKEN, *NAMED, "--out", "out"])
    assert result.exit_code == 0, result.output
    (wanted,) = wished
    assert (wanted.address, wanted.identity) == ("h:1", IDENTITY)
    assert wanted.token == b"t0ken\n"  # as it lies there: a proxy trims nothing
    assert [*wanted.anchors] == [CHAIN.root]
    assert f"leaf {IDENTITY}" in result.stdout
    assert "trust anchor" in result.stdout
    until = (NOW + timedelta(minutes=50)).isoformat(timespec="seconds")
    assert f"valid until {until}" in result.stdout
    assert Path("out/key.pem").read_bytes() == b"the key"
    assert Path("out/chain.pem").read_text().count("BEGIN") == 3
    assert Path("out/roots.pem").read_text().count("BEGIN") == 1


@pytest.mark.usefixtures("wished")
def test_a_program_may_read_the_answer() -> None:
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
def test_a_request_that_makes_no_sense_is_a_wrong_use(
    wished: list[LinkerdRequest], options: list[str], says: str
) -> None:
    result = CliRunner().invoke(app, [*BASE, *options], terminal_width=200)
    assert result.exit_code == 2
    assert says in result.stderr
    assert wished == []
