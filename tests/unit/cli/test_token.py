import json
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner, Result

from bridge.cli.command_line import app
from bridge.errors import ConfigError

SA = ("--sa", "shop/web", "--audience", "istio-ca")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["token", *arguments])


def test_a_token_is_of_the_account_and_for_the_audience_for_an_hour() -> None:
    first, second = run(*SA), run("--sa", "pay/api.v1", "--audience", "identity.l5d.io")
    assert "throwaway" in first.stderr
    assert second.stderr == ""
    keys = jwt.PyJWKSet.from_json(Path("jwks.json").read_text("ascii"))
    (key,) = keys.keys
    for result, audience, account in (
        (first, "istio-ca", "shop:web"),
        (second, "identity.l5d.io", "pay:api.v1"),
    ):
        claims = jwt.decode(
            result.stdout.strip(), key, algorithms=["ES256"], audience=audience
        )
        assert claims["sub"] == f"system:serviceaccount:{account}"
        assert claims["iss"] == "https://kubernetes.default.svc"
        assert claims["exp"] - claims["iat"] == 3600
    assert Path("cluster.key").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in Path("jwks.json").read_text("ascii")
    assert "d" not in json.loads(Path("jwks.json").read_text("ascii"))["keys"][0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sa", "web", "--audience", "a"], "--sa: expected NAMESPACE/NAME"),
        (["--sa", "Shop/web", "--audience", "a"], "--sa: expected NAMESPACE/NAME"),
        (["--sa", "shop/", "--audience", "a"], "--sa: expected NAMESPACE/NAME"),
        (["--sa", "shop/a/b", "--audience", "a"], "--sa: expected NAMESPACE/NAME"),
        (["--sa", "shop/web", "--audience", " "], "--audience: expected"),
    ],
)
def test_a_wrong_option_is_refused_before_a_file_is_made(
    arguments: list[str], reason: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr
    assert [*Path().iterdir()] == []


def test_keys_of_others_are_not_overwritten_nor_used() -> None:
    Path("jwks.json").write_text('{"keys": []}')
    error = run(*SA).exception
    assert isinstance(error, ConfigError)
    assert "jwks.json: expected the public half of cluster.key" in str(error)
    assert Path("jwks.json").read_text() == '{"keys": []}'
    Path("cluster.key").write_text("of another program")
    error = run(*SA, "--jwks", "new.json").exception
    assert isinstance(error, ConfigError)
    assert "cluster.key: expected a key on P-256 in PEM" in str(error)
    assert Path("cluster.key").read_text() == "of another program"
