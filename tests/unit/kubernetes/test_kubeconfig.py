"""What a kubeconfig may say, and what is refused in it."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.errors import ConfigError
from bridge.kubernetes.credentials import APIAccess, Credentials
from bridge.kubernetes.exec_plugin import Command
from bridge.kubernetes.kubeconfig import KubeconfigFile, access_of
from tests.support.parts.pki import new_root

CA = new_root().pem
V1 = "client.authentication.k8s.io/v1"


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def kubeconfig(
    cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None
) -> dict[str, Any]:
    good = {"server": "https://127.0.0.1:6443", "certificate-authority-data": b64(CA)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "one",
        "clusters": [{"name": "c", "cluster": good | (cluster or {})}],
        "users": [{"name": "u", "user": user or {"token": "abc"}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "two", "context": {"cluster": "c", "user": "absent"}},
        ],
    }


def read(
    tree: object, context: str = "", folder: Path | None = Path("/k")
) -> APIAccess:
    return access_of(yaml.safe_dump(tree).encode(), context, folder)


def test_a_token_and_trust_anchors_are_taken() -> None:
    found = read(kubeconfig())
    assert (found.server, found.ca) == ("https://127.0.0.1:6443", CA)
    assert (found.token, found.files) == ("abc", ())


def test_files_are_relative_to_the_kubeconfig() -> None:
    cluster = {"certificate-authority-data": "", "certificate-authority": "ca.pem"}
    user = {
        "tokenFile": "token",
        "token": "is not used",
        "client-certificate": "/a/cert.pem",
        "client-key": "key.pem",
    }
    found = read(kubeconfig(cluster | {"tls-server-name": "api.example"}, user))
    assert found == APIAccess(
        server="https://127.0.0.1:6443",
        server_name="api.example",
        ca=Path("/k/ca.pem"),
        token=Path("/k/token"),
        certificate=Path("/a/cert.pem"),
        key=Path("/k/key.pem"),
    )


def test_content_goes_before_a_file() -> None:
    user = {
        "client-certificate-data": b64(b"C"),
        "client-certificate": "cert.pem",
        "client-key-data": b64(b"K"),
    }
    found = read(kubeconfig(user=user))
    assert (found.certificate, found.key, found.files) == (b"C", b"K", ())


def exec_user(**more: object) -> dict[str, Any]:
    return {"exec": {"apiVersion": V1, "command": "make-token"} | more}


def test_an_exec_plugin_is_taken() -> None:
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"a": 1}}
    user = exec_user(
        command="bin/make-token",
        args=["--for", "me"],
        env=[{"name": "A", "value": "b"}],
        interactiveMode="IfAvailable",
        provideClusterInfo=True,
    )
    found = read(kubeconfig({"extensions": [extension]}, user)).command
    assert found == Command(
        api_version=V1,
        command="/k/bin/make-token",
        args=("--for", "me"),
        env=(("A", "b"),),
        cluster={
            "server": "https://127.0.0.1:6443",
            "certificate-authority-data": b64(CA),
            "config": {"a": 1},
        },
    )
    plain = read(kubeconfig(user=exec_user())).command
    assert plain == Command(api_version=V1, command="make-token")


CERTIFICATE = {"client-certificate-data": b64(b"C")}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no verification": (
        kubeconfig({"insecure-skip-tls-verify": True}),
        "cluster c: insecure-skip-tls-verify: the API server would not be verified",
    ),
    "a proxy": (
        kubeconfig({"proxy-url": "http://p:3128"}),
        "cluster c: proxy-url: a proxy is not supported",
    ),
    "an auth provider": (
        kubeconfig(user={"auth-provider": {"name": "gcp"}}),
        "user u: auth-provider: auth providers are not supported: use exec",
    ),
    "a password": (
        kubeconfig(user={"username": "a", "password": "hush"}),
        "user u: username: a password is not supported",
    ),
    "impersonation": (
        kubeconfig(user={"token": "a", "as": "admin"}),
        "user u: as: impersonation is not supported",
    ),
    "no credential": (kubeconfig(user={"as-groups": []}), "user u: expected a token"),
    "a certificate alone": (
        kubeconfig(user=CERTIFICATE),
        "expected client-certificate and client-key",
    ),
    "no base64": (
        kubeconfig({"certificate-authority-data": "%"}),
        "cluster c: certificate-authority-data: expected base64",
    ),
    "http": (
        kubeconfig({"server": "http://127.0.0.1"}),
        "cluster c: server: expected https://HOST:PORT",
    ),
    "a path": (
        kubeconfig({"server": "https://a/k8s"}),
        "server: expected https://HOST:PORT",
    ),
    "a line end": (
        kubeconfig({"server": "https://a\r\nX: y"}),
        "server: expected https://HOST:PORT",
    ),
    "another API": (
        kubeconfig(user=exec_user(apiVersion="client.authentication.k8s.io/v1alpha1")),
        "exec.apiVersion: expected client.authentication.k8s.io/v1 or",
    ),
    "a terminal": (
        kubeconfig(user=exec_user(interactiveMode="Always")),
        "Always needs a terminal",
    ),
    "no program": (
        kubeconfig(user=exec_user(command="")),
        "exec.command: expected a program",
    ),
    "no context": (
        kubeconfig() | {"current-context": ""},
        "expected current-context, or the name of a context",
    ),
    "another context": (
        kubeconfig() | {"current-context": "three"},
        "contexts: expected one with the name 'three' .found 0.",
    ),
    "two of a name": (
        kubeconfig() | {"users": kubeconfig()["users"] * 2},
        "users: expected one with the name 'u' .found 2.",
    ),
    "a number": (
        kubeconfig(user={"token": 7}),
        "users.0.user.token: Input should be a valid string",
    ),
}


@pytest.mark.parametrize(("tree", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tree)


@pytest.mark.parametrize("content", [b"", b"- a", b"a: [", b"\xff", b"token: hush: a"])
def test_what_is_no_kubeconfig_is_refused_without_its_content(content: bytes) -> None:
    with pytest.raises(ConfigError, match="expected a kubeconfig") as caught:
        access_of(content)
    assert "hush" not in str(caught.value)


def test_a_secret_at_a_wrong_place_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="valid string") as caught:
        read(kubeconfig(user={"token": ["hush"]}))
    assert "hush" not in str(caught.value)


@pytest.fixture
def move(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    at = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: at[0])
    return lambda: at.__setitem__(0, at[0] + 60)


def token_of(credentials: Credentials) -> str:
    return credentials.shown(0).token


def write(path: Path, content: str) -> Path:
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text(content)
    return new.replace(path)


def test_a_kubeconfig_is_read_again_when_it_changes(
    tmp_path: Path, move: Callable[[], None]
) -> None:
    path = write(tmp_path / "config", json.dumps(kubeconfig()))
    credentials = Credentials(KubeconfigFile(path))
    assert token_of(credentials) == "abc"
    write(path, json.dumps(kubeconfig(user={"token": "new"}))[:-9])  # half written
    move()
    assert token_of(credentials) == "abc"
    other = kubeconfig({"server": "https://127.0.0.2:1"}, {"token": "new"})
    write(path, json.dumps(other))
    move()
    shown = credentials.shown(0)
    assert (shown.place, shown.token) == ("127.0.0.2:1", "new")
    path.unlink()
    move()
    assert credentials.shown(0) is shown


def test_a_kubeconfig_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "config", json.dumps(kubeconfig()))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="expected a file that only its owner"):
        KubeconfigFile(path).access()


def test_an_exec_plugin_makes_the_token_again_when_it_is_refused(
    tmp_path: Path,
) -> None:
    made = tmp_path / "token"
    made.write_text("one")
    answer = '{"apiVersion": "%s", "kind": "ExecCredential", "status": {"token": "%s"}}'
    script = f"printf '{answer}' {V1} $(cat {made})"
    user = exec_user(command="/bin/sh", args=["-c", script])
    path = write(tmp_path / "config", json.dumps(kubeconfig(user=user)))
    credentials = Credentials(KubeconfigFile(path))
    until = time.monotonic() + 60
    first = credentials.shown(until)
    assert credentials.shown(until) is first
    made.write_text("two")
    with pytest.raises(ConfigError, match="has expired, or is refused"):
        credentials.shown(until, refused=first)  # a second between two runs
    time.sleep(1)
    second = credentials.shown(until, refused=first)
    assert (first.token, second.token) == ("one", "two")
