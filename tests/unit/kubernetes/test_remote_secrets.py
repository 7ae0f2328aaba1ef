"""Remote secrets: added, changed, removed, half written; and what they may not name."""

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml

from bridge.errors import ConfigError
from bridge.kubernetes.api import APIServer
from bridge.kubernetes.credentials import APIAccess, Credentials
from bridge.kubernetes.remote_secrets import Allowed, RemoteSecret, RemoteSecrets
from tests.support.parts.scripted_http import json_answer
from tests.support.parts.token_reviews import ReviewServer, saying

PATH = "/api/v1/namespaces/istio-system/secrets"
NAMES = {"far": "far", "arn:far": "far", "near": "near"}


class Home(ReviewServer):
    made: contextlib.ExitStack


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Home]:
    with Home(tmp_path) as running, running.ending_after(60):
        running.objects[PATH] = listed()
        with contextlib.ExitStack() as stack:
            running.made = stack
            yield running


def looked(server: Home, allowed: Allowed | None = None) -> RemoteSecrets:
    access = APIAccess(server=server.url, ca=server.ca_file, token=server.token_file)
    home = APIServer(Credentials(access), seconds=30, calls=1)
    secrets = RemoteSecrets(home, "istio-system", NAMES, allowed or Allowed())
    server.made.callback(secrets.close)
    secrets.look()
    return secrets


def kubeconfig(user: object = None, **cluster: object) -> str:
    user = {"token": "one"} if user is None else user
    return yaml.safe_dump(
        {
            "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [
                {"name": "c", "cluster": {"server": "https://127.0.0.1:1"} | cluster}
            ],
            "users": [{"name": "u", "user": user}],
        }
    )


def secret(content: str, key: str = "far", name: str = "s", made: int = 1) -> Any:
    value = base64.b64encode(content.encode()).decode()
    meta = {"name": name, "creationTimestamp": f"2026-11-0{made}T00:00:00Z"}
    return {"metadata": meta, "data": {key: value}}


def listed(*secrets: Any, more: str = "") -> dict[str, Any]:
    return {"metadata": {"continue": more}, "items": list(secrets)}


def shown(secrets: RemoteSecrets, cluster: str = "far") -> str:
    return Credentials(RemoteSecret(secrets, cluster)).shown(0).token


def test_a_cluster_comes_changes_and_goes_with_its_secret(server: Home) -> None:
    secrets = looked(server)
    with pytest.raises(ConfigError, match="no remote secret has its cluster ID"):
        shown(secrets)
    server.objects[PATH] = listed(secret(kubeconfig()))
    secrets.look()
    assert (shown(secrets), secrets.problems()) == ("one", [])
    server.objects[PATH] = listed(secret(kubeconfig({"token": "two"})))
    secrets.look()
    assert shown(secrets) == "two"
    server.objects[PATH] = listed()
    secrets.look()
    with pytest.raises(ConfigError, match="no remote secret has its cluster ID"):
        shown(secrets)


def test_credentials_follow_the_secret_at_once(server: Home) -> None:
    server.objects[PATH] = listed(secret(kubeconfig()))
    secrets = looked(server)
    credentials = Credentials(RemoteSecret(secrets, "far"))
    found = [credentials.shown(0).token]
    server.objects[PATH] = listed(secret(kubeconfig({"token": "two"})))
    secrets.look()
    found.append(credentials.shown(0).token)
    assert found == ["one", "two"]
    server.objects[PATH] = listed()
    secrets.look()
    with pytest.raises(ConfigError, match="there is no remote secret to use"):
        credentials.shown(0)


@pytest.mark.parametrize("content", ["", "clusters: [", kubeconfig()[:60], "a: b"])
def test_a_half_written_secret_leaves_what_it_said_and_the_others(
    server: Home, content: str
) -> None:
    near = secret(kubeconfig({"token": "near"}), "near", "n")
    server.objects[PATH] = listed(secret(kubeconfig()), near)
    secrets = looked(server)
    server.objects[PATH] = listed(secret(content), near)
    secrets.look()
    assert (shown(secrets), shown(secrets, "near")) == ("one", "near")
    (problem,) = secrets.problems()
    assert problem.startswith("remote secret s, key far: ")
    with pytest.raises(ConfigError, match="remote secret to use: s, key far: "):
        shown(looked(server))


def test_a_secret_that_cannot_be_used_keeps_nothing_of_one_that_is_gone(
    server: Home,
) -> None:
    second = secret("a: b", name="t", made=2)
    server.objects[PATH] = listed(secret(kubeconfig()), second)
    secrets = looked(server)
    assert shown(secrets) == "one"
    server.objects[PATH] = listed(second)
    secrets.look()
    with pytest.raises(ConfigError, match="remote secret to use: t, key far: "):
        shown(secrets)


def test_home_that_is_away_leaves_what_was_listed(server: Home) -> None:
    server.objects[PATH] = listed(secret(kubeconfig()))
    secrets = looked(server)
    server.fault = saying(json_answer(b'{"message": "no"}', 403))
    secrets.look()
    assert shown(secrets) == "one"
    (problem,) = secrets.problems()
    assert "remote secrets in istio-system cannot be listed" in problem
    with pytest.raises(ConfigError, match="HTTP status 403: no"):
        shown(looked(server))


def test_all_pages_are_read(server: Home) -> None:
    pages = [
        listed(secret(kubeconfig()), more="next"),
        listed(secret(kubeconfig({"token": "near"}), "near", "n")),
    ]
    server.objects[PATH] = pages[0]
    asked: list[bytes] = []

    def fault(running: ReviewServer, sock: Any) -> None:
        asked.append(running.requests[-1].split(b" ")[1])
        page = pages[b"continue=next" in asked[-1]]
        sock.sendall(json_answer(json.dumps(page).encode()))

    server.fault = fault
    secrets = looked(server)
    assert (shown(secrets), shown(secrets, "near")) == ("one", "near")
    assert b"labelSelector=istio/multiCluster%3Dtrue" in asked[0].replace(b"%2F", b"/")


def test_a_page_has_room_for_large_secrets(server: Home) -> None:
    large = secret(kubeconfig())
    large["metadata"]["annotations"] = {"last-applied": "x" * 100_000}

    def fault(running: ReviewServer, sock: Any) -> None:
        (limit,) = parse_qs(running.requests[-1].split(b" ")[1])[b"limit"]
        sock.sendall(json_answer(json.dumps(listed(*[large] * int(limit))).encode()))

    server.fault = fault
    assert shown(looked(server)) == "one"


def test_secrets_without_an_end_leave_what_was_listed(server: Home) -> None:
    server.objects[PATH] = listed(secret(kubeconfig()))
    secrets = looked(server)
    before = len(server.requests)
    server.objects[PATH] = listed(more="next")
    secrets.look()
    assert len(server.requests) - before == 100
    (told,) = secrets.problems()
    assert "it has more than 1000 remote secrets" in told
    assert shown(secrets) == "one"


def test_the_older_of_two_secrets_of_a_cluster_is_used(server: Home) -> None:
    late = secret(kubeconfig({"token": "late"}), "arn:far", "a", made=2)
    server.objects[PATH] = listed(late, secret(kubeconfig()))
    secrets = looked(server)
    assert shown(secrets) == "one"
    assert secrets.problems() == [
        "remote secret a is not used: an older one is for the cluster far, too"
    ]


def test_a_cluster_that_is_not_configured_is_told(server: Home) -> None:
    server.objects[PATH] = listed(secret(kubeconfig(), "other"))
    (problem,) = looked(server).problems()
    assert "no entry of clusters with tokens.remote_secret has the" in problem


V1 = "client.authentication.k8s.io/v1"
INFO = {"provideClusterInfo": True}
EXEC = kubeconfig({"exec": {"apiVersion": V1, "command": "/bin/true"}})
FILE = kubeconfig({"tokenFile": "/etc/shadow"})
CA_FILE = kubeconfig(**{"certificate-authority": "/etc/shadow"})
KEY_FILE = kubeconfig({"client-certificate": "/a", "client-key": "/b"})
DATA_AND_FILE = kubeconfig(
    {"token": "one"}, **{"certificate-authority": "relative.pem"}
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (EXEC, "expected no exec plugin .found '/bin/true'.: add it to remote_secr"),
        (FILE, "expected no file of the bridge's host .found '/etc/shadow'."),
        (CA_FILE, "expected no file of the bridge's host .found '/etc/shadow'."),
        (KEY_FILE, "expected no file of the bridge's host .found '/a'."),
        (DATA_AND_FILE, "expected no file of the bridge's host .found 'relative.pem'."),
        (kubeconfig({"auth-provider": {"name": "a"}}), "auth providers are not supp"),
        (kubeconfig(**{"insecure-skip-tls-verify": True}), "would not be verified"),
    ],
    ids=["exec", "token", "ca", "key", "relative", "auth provider", "insecure"],
)
def test_what_reaches_into_the_host_is_refused(
    server: Home, content: str, message: str
) -> None:
    server.objects[PATH] = listed(secret(content))
    with pytest.raises(ConfigError, match=message):
        shown(looked(server))


def test_what_the_configuration_names_is_allowed(server: Home, tmp_path: Path) -> None:
    path = tmp_path / "a-token"
    path.write_text("of-a-file")
    other = secret(EXEC, "near", "n")
    server.objects[PATH] = listed(secret(kubeconfig({"tokenFile": str(path)})), other)
    allowed = Allowed(commands=frozenset({"/bin/true"}), files=frozenset({path}))
    secrets = looked(server, allowed)
    assert secrets.problems() == []
    assert shown(secrets) == "of-a-file"
    command = RemoteSecret(secrets, "near").access().command
    assert command is not None
    assert command.command == "/bin/true"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(kubeconfig(server="https://[x"), id="a URL that is none"),
        pytest.param(
            kubeconfig(
                {"exec": {"apiVersion": V1, "command": "/bin/true"} | INFO},
                **{"certificate-authority": "/dev/zero"},
            ),
            id="a device for a file",
        ),
        pytest.param("- " * 100_000, id="lists in lists"),
    ],
)
def test_one_bad_secret_holds_no_other_up(server: Home, bad: str) -> None:
    server.objects[PATH] = listed(
        secret(bad, key="near", name="bad"),
        {"metadata": 1, "data": ["x"]},
        secret(kubeconfig()),
    )
    secrets = looked(server, Allowed(commands=frozenset({"/bin/true"})))
    assert shown(secrets) == "one"
    (told,) = secrets.problems()
    assert told.startswith("remote secret bad, key near: ")
