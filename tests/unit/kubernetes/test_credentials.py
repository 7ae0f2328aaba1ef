"""Files of credentials are read again, and a half-replaced one takes nothing away."""

import gc
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from bridge.errors import ConfigError
from bridge.kubernetes.credentials import APIAccess, Credentials, Shown, in_cluster
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
def files(tmp_path: Path) -> APIAccess:
    root, key = new_root(), new_key()
    leaf = root.issue_leaf(key=key)
    (tmp_path / "ca.pem").write_bytes(root.pem)
    (tmp_path / "client.pem").write_bytes(bundle(leaf))
    (tmp_path / "token").write_text("one\n")
    return APIAccess(
        server="https://127.0.0.1:6443",
        ca=tmp_path / "ca.pem",
        token=tmp_path / "token",
        certificate=tmp_path / "client.pem",
        key=write_private(tmp_path / "client.key", key_pem(key)),
    )


def path(given: object) -> Path:
    assert isinstance(given, Path)
    return given


def descriptors() -> set[str]:
    return {one.name for one in Path("/proc/self/fd").iterdir()}


def token_of(credentials: Credentials, refused: Shown | None = None) -> str:
    return credentials.shown(0, refused).token


def context_of(credentials: Credentials) -> ssl.SSLContext:
    context = credentials.shown(0).peer.tls
    assert context is not None
    return context


def test_a_token_is_read_again_every_minute_and_when_it_is_refused(
    files: APIAccess, now: Callable[[float], None]
) -> None:
    credentials = Credentials(files)
    first = credentials.shown(0)
    assert token_of(credentials) == "one"
    path(files.token).write_text("two")
    now(59)
    assert token_of(credentials) == "one"
    now(1)
    assert token_of(credentials) == "two"
    path(files.token).write_text("three")
    two = credentials.shown(0)
    assert credentials.shown(0, refused=first) is two  # not the one in use
    assert token_of(credentials, two) == "three"


@pytest.mark.parametrize("content", ["", "\n", "a b", "a\r\nInjected: b", "\x00"])
def test_a_token_file_that_is_being_replaced_leaves_the_token(
    files: APIAccess, content: str, now: Callable[[float], None]
) -> None:
    credentials = Credentials(files)
    assert token_of(credentials) == "one"
    path(files.token).write_text(content)
    now(60)
    assert token_of(credentials) == "one"
    with pytest.raises(ConfigError, match="expected one token and nothing else"):
        token_of(Credentials(files))
    path(files.token).write_text("two")
    now(1)
    assert token_of(credentials) == "two"


def test_the_context_is_made_anew_when_a_file_changes(
    files: APIAccess, now: Callable[[float], None]
) -> None:
    credentials = Credentials(files)
    first = context_of(credentials)
    now(1)
    assert context_of(credentials) is first
    # Another pair, and the certificate comes first.
    root, key = new_root(), new_key()
    leaf = root.issue_leaf(key=key)
    path(files.certificate).write_bytes(bundle(leaf))
    now(1)
    assert context_of(credentials) is first
    path(files.key).write_bytes(key_pem(key))
    now(1)
    second = context_of(credentials)
    assert second is not first
    path(files.ca).write_text("no PEM")
    now(1)
    assert context_of(credentials) is second
    with pytest.raises(ConfigError, match="expected certificates in PEM"):
        context_of(Credentials(files))
    path(files.ca).write_bytes(root.pem)
    now(1)
    assert context_of(credentials) is not second


def test_a_context_that_cannot_be_made_does_not_hold_up_the_token(
    files: APIAccess, now: Callable[[float], None]
) -> None:
    credentials = Credentials(files)
    first = context_of(credentials)
    path(files.ca).write_text("no PEM")
    path(files.token).write_text("two")
    now(60)
    shown = credentials.shown(0)
    assert (shown.peer.tls, shown.token) == (first, "two")


def test_a_key_is_in_no_file(files: APIAccess) -> None:
    pem = path(files.certificate).read_bytes(), path(files.key).read_bytes()
    given = APIAccess(server=files.server, ca=None, certificate=pem[0], key=pem[1])
    gc.collect()  # what other tests left open
    before = descriptors()
    assert context_of(Credentials(given)).get_ca_certs() is not None
    assert descriptors() == before
    other = APIAccess(
        server=files.server, ca=None, certificate=pem[0], key=key_pem(new_key())
    )
    with pytest.raises(ConfigError, match="with its key in what was given"):
        context_of(Credentials(other))


def test_a_key_with_a_passphrase_is_refused(files: APIAccess) -> None:
    key = serialization.load_pem_private_key(path(files.key).read_bytes(), None)
    path(files.key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a"),
        )
    )
    with pytest.raises(ConfigError, match="a private key without a passphrase"):
        context_of(Credentials(files))


def test_what_a_server_shows_is_verified(files: APIAccess) -> None:
    context = context_of(Credentials(files))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_key_that_others_can_read_is_refused(files: APIAccess) -> None:
    path(files.key).chmod(0o644)
    with pytest.raises(ConfigError, match="expected a file that only its owner"):
        context_of(Credentials(files))


@pytest.mark.parametrize(
    ("host", "url"),
    [("10.96.0.1", "https://10.96.0.1:6443"), ("fd00::1", "https://[fd00::1]:6443")],
)
def test_a_pod_knows_its_api_server(
    monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT_HTTPS", "6443")
    found = in_cluster()
    assert found.server == url
    assert str(found.token).endswith("serviceaccount/token")


def test_elsewhere_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="this is no pod"):
        in_cluster()
