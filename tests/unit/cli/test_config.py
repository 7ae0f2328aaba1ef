import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bridge import config
from bridge.cli.command_line import app
from bridge.cli.config import TEMPLATE
from bridge.errors import ConfigError

OPTION = re.compile(r"^(?P<before> *)# (?P<key> *(?:- )?[a-z_]+: *\S.*)$")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", "init", *arguments])


def test_what_is_written_can_be_read() -> None:
    assert run().exit_code == 0
    read = config.read(Path("bridge.yaml"))
    assert str(read.trust_domain) == "corp.example"
    assert run("other.yaml", "--trust-domain", "prod.example").exit_code == 0
    assert str(config.read(Path("other.yaml")).trust_domain) == "prod.example"


def test_what_is_commented_out_can_be_used() -> None:
    text = TEMPLATE.format(trust_domain="corp.example")
    lines = [
        f"{found['before']}{found['key']}" if (found := OPTION.match(line)) else line
        for line in text.replace("# linkerd:", "linkerd:").splitlines()
    ]
    Path("bridge.yaml").write_text("\n".join(lines))
    read = config.read(Path("bridge.yaml"))
    assert read.fronts.linkerd is not None
    assert read.fronts.istio is not None
    assert read.fronts.istio.mtls_listen == "127.0.0.1:15013"
    assert read.issuance.rules[0].refuse is True


def test_what_is_said_to_be_a_default_is_one() -> None:
    text = TEMPLATE.format(trust_domain="corp.example")
    Path("bridge.yaml").write_text(text)
    plain = config.read(Path("bridge.yaml"))
    parts = text.split("such as:\n")
    shown = [parts[0], *(part.partition("\n")[2] for part in parts[1:])]
    lines = [
        f"{found['before']}{found['key']}" if (found := OPTION.match(line)) else line
        for line in "\n".join(shown).splitlines()
        if "8080" not in line
    ]
    Path("bridge.yaml").write_text("\n".join(lines))
    assert config.read(Path("bridge.yaml")) == plain
    assert len([line for line in lines if "24h" in line]) == 2


def test_a_file_that_is_there_is_not_overwritten() -> None:
    Path("bridge.yaml").write_text("mine")
    error = run().exception
    assert isinstance(error, ConfigError)
    assert "bridge.yaml: expected a new file" in str(error)
    assert Path("bridge.yaml").read_text() == "mine"


def test_a_wrong_trust_domain_is_refused() -> None:
    result = run("--trust-domain", "a/b")
    assert result.exit_code == 2
    assert "--trust-domain: a trust domain has 1 to 253" in result.stderr
    assert not Path("bridge.yaml").exists()
