"""Files of credentials are read again, and a half-replaced one takes nothing away."""

import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.kubernetes.credentials import CredentialFiles, Credentials, in_cluster
from tests.support.parts.pki import bundle, key_pem, new_key, new_root, write_private


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what moves the clock."""
    at = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: at[0])

    def move(seconds: float) -> None:
        at[0] += seconds

    return move


@pytest.fixture
def files(tmp_path: Path) -> CredentialFiles:
    root, key = new_root(), new_key()
    leaf = root.issue_leaf(key=key)
    (tmp_path / "ca.pem").write_bytes(root.pem)
    (tmp_path / "client.pem").write_bytes(bundle(leaf))
    (tmp_path / "token").write_text("one\n")
    return CredentialFiles(
        ca_file=tmp_path / "ca.pem",
        token_file=tmp_path / "token",
        certificate_file=tmp_path / "client.pem",
        key_file=write_private(tmp_path / "client.key", key_pem(key)),
    )


def token_file(files: CredentialFiles) -> Path:
    assert files.token_file is not None
    return files.token_file


def test_a_token_is_read_again_every_minute_and_when_it_is_refused(
    files: CredentialFiles, now: Callable[[float], None]
) -> None:
    credentials = Credentials(files)
    assert credentials.token() == "one"
    token_file(files).write_text("two")
    now(59)
    assert credentials.token() == "one"
    now(1)
    assert credentials.token() == "two"
    token_file(files).write_text("three")
    assert credentials.token(refused="one") == "two"  # not the one in use
    assert credentials.token(refused="two") == "three"


@pytest.mark.parametrize("content", ["", "\n", "a b", "a\r\nInjected: b", "\x00"])
def test_a_token_file_that_is_being_replaced_leaves_the_token(
    files: CredentialFiles, content: str, now: Callable[[float], None]
) -> None:
    credentials = Credentials(files)
    assert credentials.token() == "one"
    token_file(files).write_text(content)
    now(60)
    assert credentials.token() == "one"
    with pytest.raises(ConfigError, match="expected one token and nothing else"):
        Credentials(files).token()
    token_file(files).write_text("two")
    now(1)
    assert credentials.token() == "two"


def test_the_context_is_made_anew_when_a_file_changes(
    files: CredentialFiles, now: Callable[[float], None]
) -> None:
    credentials = Credentials(files)
    first = credentials.context()
    now(1)
    assert credentials.context() is first
    # Another pair, and the certificate comes first.
    root, key = new_root(), new_key()
    leaf = root.issue_leaf(key=key)
    assert files.certificate_file is not None
    assert files.key_file is not None
    files.certificate_file.write_bytes(bundle(leaf))
    now(1)
    assert credentials.context() is first
    files.key_file.write_bytes(key_pem(key))
    now(1)
    second = credentials.context()
    assert second is not first
    files.ca_file.write_text("no PEM")
    now(1)
    assert credentials.context() is second
    with pytest.raises(ConfigError, match="expected certificates in PEM"):
        Credentials(files).context()
    files.ca_file.write_bytes(root.pem)
    now(1)
    assert credentials.context() is not second


def test_what_a_server_shows_is_verified(files: CredentialFiles) -> None:
    context = Credentials(files).context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_key_that_others_can_read_is_refused(files: CredentialFiles) -> None:
    assert files.key_file is not None
    files.key_file.chmod(0o644)
    with pytest.raises(ConfigError, match="expected a file that only its owner"):
        Credentials(files).context()


@pytest.mark.parametrize(
    ("host", "url"),
    [("10.96.0.1", "https://10.96.0.1:6443"), ("fd00::1", "https://[fd00::1]:6443")],
)
def test_a_pod_knows_its_api_server(
    monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT_HTTPS", "6443")
    found, files = in_cluster()
    assert found == url
    assert str(files.token_file).endswith("serviceaccount/token")


def test_elsewhere_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="this is no pod"):
        in_cluster()
