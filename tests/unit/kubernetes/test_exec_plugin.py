"""Exec plugins: what they may write, one run at a time, and an end for each."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.kubernetes.exec_plugin import Command, ExecCredential, ExecPlugin

V1 = "client.authentication.k8s.io/v1"
NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def answer(version: str = V1, **status: object) -> str:
    made = {"kind": "ExecCredential", "apiVersion": version, "status": status}
    return json.dumps(made)


def with_token(token: str, expires: str = "", version: str = V1) -> str:
    status = {"token": token, "expirationTimestamp": expires}
    return answer(version, **status)


def token_of(plugin: ExecPlugin, refused: ExecCredential | None = None) -> str:
    return plugin.credential(soon(), refused).token


def shell(script: str, version: str = V1, **more: object) -> Command:
    given = {"env": (), "cluster": None} | more
    return Command(
        api_version=version,
        command="/bin/sh",
        args=("-c", script),
        **given,  # type: ignore[arg-type]
    )


def saying(text: str, version: str = V1) -> Command:
    return shell(f"cat <<'END'\n{text}\nEND", version)


def soon() -> float:
    return time.monotonic() + 60


def credential_of(command: Command) -> ExecCredential:
    return ExecPlugin(command, clock=lambda: NOW).credential(soon())


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_token_is_taken_from_the_answer(version: str) -> None:
    version = f"client.authentication.k8s.io/{version}"
    text = with_token("abc", "2026-11-29T13:00:00Z", version)
    found = credential_of(saying(text, version))
    expires_at = NOW + timedelta(hours=1)
    assert (found.token, found.expires_at) == ("abc", expires_at)


def test_a_client_certificate_is_taken_from_the_answer() -> None:
    text = answer(clientCertificateData="CERT", clientKeyData="KEY")
    found = credential_of(saying(text))
    assert (found.certificate, found.key, found.token) == (b"CERT", b"KEY", "")


def test_a_program_is_told_of_the_cluster(tmp_path: Path) -> None:
    script = f'printf %s "$KUBERNETES_EXEC_INFO$A" > {tmp_path}/info; exit 1'
    command = shell(script, env=(("A", "b"),), cluster={"server": "https://a"})
    with pytest.raises(ConfigError, match="it ended with 1"):
        credential_of(command)
    told = (tmp_path / "info").read_text()
    assert told.endswith("b")
    assert json.loads(told[:-1]) == {
        "apiVersion": V1,
        "kind": "ExecCredential",
        "spec": {"interactive": False, "cluster": {"server": "https://a"}},
    }


BAD = {
    "rubbish": (saying("hello"), "expected an ExecCredential in JSON"),
    "nothing": (shell("true"), "expected an ExecCredential in JSON"),
    "a list": (saying("[]"), "expected an ExecCredential in JSON"),
    "no status": (saying('{"kind": "ExecCredential"}'), "with a status"),
    "another kind": (
        saying('{"kind": "Pod", "status": {}}'),
        "expected kind ExecCredential",
    ),
    "another version": (
        saying(with_token("a", version="client.authentication.k8s.io/v1beta1")),
        "expected apiVersion client.authentication.k8s.io/v1 ",
    ),
    "an empty status": (saying(answer()), "expected token, or clientCertificateData"),
    "a certificate alone": (
        saying(answer(clientCertificateData="b")),
        "expected token, or clientCertificateData with clientKeyData",
    ),
    "a number": (saying(answer(token=7)), "expected texts"),
    "a time without a zone": (
        saying(with_token("a", "2026-11-29T13:00:00")),
        "expirationTimestamp with a zone",
    ),
    "no time": (
        saying(with_token("a", "soon")),
        "expirationTimestamp as in RFC 3339",
    ),
    "expired": (
        saying(with_token("a", "2026-11-29T11:59:59Z")),
        "its credential has expired",
    ),
    "exit 1": (shell("echo no rights >&2; exit 1"), "ended with 1: 'no rights'"),
    "no end of output": (shell("exec cat /dev/zero"), "expected at most 1048576 bytes"),
    "no program": (
        Command(api_version=V1, command="/nonexistent/a"),
        "No such file or directory",
    ),
}


@pytest.mark.parametrize(("command", "message"), BAD.values(), ids=BAD)
def test_what_is_no_credential_is_told(command: Command, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        credential_of(command)


def test_a_program_that_hangs_is_ended_and_holds_nobody() -> None:
    plugin = ExecPlugin(shell("sleep 600 & sleep 600"), seconds=0.5)
    with pytest.raises(TimeoutError, match="/bin/sh has not ended"):
        plugin.credential(time.monotonic())
    with pytest.raises(ConfigError, match=r"expected its end within 0\.5 s"):
        plugin.credential(soon())


def test_callers_at_once_share_one_run(tmp_path: Path) -> None:
    script = f"echo run >> {tmp_path}/runs; sleep 0.2; echo '{with_token('a')}'"
    plugin = ExecPlugin(shell(script))
    with ThreadPoolExecutor(4) as pool:
        found = {
            one.result().token
            for one in [pool.submit(plugin.credential, soon()) for _ in range(4)]
        }
    assert found == {"a"}
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what moves the monotonic clock; waiting still takes real time."""
    offset, real = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + offset[0])

    def move(seconds: float) -> None:
        offset[0] += seconds

    return move


def counting(tmp_path: Path, expires: str = "") -> Command:
    """Return a program whose first token is `1`, and the next `2`."""
    text = with_token("T", expires)
    runs = tmp_path / "runs"
    return shell(
        f'echo >> {runs}; n=$(wc -l < {runs}); echo \'{text}\' | sed "s/T\\"/$n\\"/"'
    )


def test_a_refused_credential_is_made_again_but_not_in_a_storm(
    tmp_path: Path, at: Callable[[float], None]
) -> None:
    plugin = ExecPlugin(counting(tmp_path))
    assert token_of(plugin) == "1"
    first = plugin.credential(soon())
    with pytest.raises(ConfigError, match="has expired, or is refused"):
        plugin.credential(soon(), refused=first)  # too soon for another run
    at(1)
    assert token_of(plugin, first) == "2"


def test_an_old_credential_is_used_while_the_next_is_made(
    tmp_path: Path, at: Callable[[float], None]
) -> None:
    now = [NOW]
    command = counting(tmp_path, "2026-11-29T12:10:00Z")
    plugin = ExecPlugin(command, clock=lambda: now[0])
    assert token_of(plugin) == "1"
    at(1)
    now[0] += timedelta(minutes=8)
    assert token_of(plugin) == "1"
    now[0] += timedelta(minutes=1)
    assert token_of(plugin) == "1"
    while token_of(plugin) == "1":
        threading.Event().wait(0.01)
    assert (tmp_path / "runs").read_text() == "\n\n"
