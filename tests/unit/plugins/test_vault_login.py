"""Logins: what is sent, what a refusal means, and what is never shown or repeated."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendUnavailableError,
    Latch,
    PluginContext,
)
from bridge_vault.connection import VaultError
from bridge_vault.login import LoginMethod
from bridge_vault.options import VaultOptions
from tests.support.harness.fake_vault import FakeVault, answer
from tests.support.parts.pki import write_private

SECRET = "s.ecret-of-the-bridge"  # noqa: S105 - of a test


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


Make = Callable[..., LoginMethod]


@pytest.fixture
def make(vault: FakeVault, tmp_path: Path) -> Make:
    latch = tmp_path / "latch.json"

    def made(kind: str, *, content: bytes = f"{SECRET}\n".encode()) -> LoginMethod:
        file = write_private(tmp_path / "secret", content)
        methods: dict[str, dict[str, Any]] = {
            "token": {"file": str(file)},
            "approle": {"role_id": "role-id", "secret_id_file": str(file)},
            "kubernetes": {"role": "bridge", "token_file": str(file)},
            "jwt": {"role": "bridge", "token_file": str(file), "mount": "oidc/eu"},
            "tls": {"certificate_file": "c.pem", "key_file": "k.pem", "role": "bridge"},
        }
        options = VaultOptions.model_validate(
            {
                "addresses": ["https://127.0.0.1:8200"],
                "login": {kind: methods[kind]},
            }
        )
        context = PluginContext(name="ca", base=tmp_path, latch=Latch(latch))
        return LoginMethod(options, lambda: context, vault.adapt, time.monotonic)

    return made


def log_in(method: LoginMethod) -> str:
    return method.log_in(time.monotonic() + 5).token


def told(error: BackendError) -> str:
    """Return all that is shown of an error, and of what it came from."""
    shown, one = "", error
    while one is not None:
        shown += f"{one} {one!r} {getattr(one, 'detail', '')} "
        one = one.__cause__ or one.__context__  # type: ignore[assignment]
    return shown


SENT = {
    "approle": ("/v1/auth/approle/login", {"role_id": "role-id", "secret_id": SECRET}),
    "kubernetes": ("/v1/auth/kubernetes/login", {"role": "bridge", "jwt": SECRET}),
    "jwt": ("/v1/auth/oidc/eu/login", {"role": "bridge", "jwt": SECRET}),
    "tls": ("/v1/auth/cert/login", {"name": "bridge"}),
}


@pytest.mark.parametrize("kind", SENT)
def test_a_login_sends_what_its_method_wants_and_proves_the_token(
    make: Make, vault: FakeVault, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sent: list[tuple[str, object]] = []
    serve = vault.serve

    def noted(url: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        sent.append((url, body))
        return serve(url, token, body)

    monkeypatch.setattr(vault, "serve", noted)
    assert log_in(make(kind)) == "token-1"
    assert sent[0] == SENT[kind]
    assert sent[1][0] == "/v1/auth/token/lookup-self"


REFUSALS = [
    ("approle", answer(400, "invalid role or secret ID"), BackendCredentialError),
    ("approle", answer(403), BackendAuthError),  # a locked role; no such mount
    ("approle", answer(503, "Vault is sealed"), BackendUnavailableError),
    ("approle", answer(404, "namespace not found"), BackendBrokenError),
    ("kubernetes", answer(403), BackendAuthError),
    ("jwt", answer(400, "token is expired"), BackendAuthError),
    ("tls", answer(400, "invalid certificate"), BackendAuthError),
    ("tls", answer(500, "internal error"), BackendUnavailableError),
]


@pytest.mark.parametrize(("kind", "refusal", "expected"), REFUSALS)
def test_a_refused_login_is_one_error(
    make: Make,
    vault: FakeVault,
    kind: str,
    refusal: VaultError,
    expected: type[BackendError],
) -> None:
    vault.refusal = refusal
    with pytest.raises(expected, match=r"Vault") as raised:
        log_in(make(kind))
    assert type(raised.value) is expected
    assert not raised.value.certificate_may_exist
    assert str(refusal) in raised.value.detail
    assert SECRET not in told(raised.value)


def test_a_secret_id_that_was_refused_is_not_tried_again(
    make: Make, vault: FakeVault
) -> None:
    vault.refusal = answer(400, "invalid role or secret ID")
    for _ in range(3):
        with pytest.raises(BackendCredentialError, match=r"refuse"):
            log_in(make("approle"))
    assert vault.logins == 1
    vault.refusal = None
    assert log_in(make("approle", content=b"another one\n")) == "token-2"


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503, 0])
def test_a_secret_id_that_was_not_looked_at_is_tried_again(
    make: Make, vault: FakeVault, status: int
) -> None:
    vault.refusal = answer(status)
    with pytest.raises(BackendError, match=r"Vault"):
        log_in(make("approle"))
    vault.refusal = None
    assert log_in(make("approle")) == "token-2"


@pytest.mark.parametrize("kind", SENT)
def test_a_token_that_may_not_look_itself_up_is_told(
    make: Make, vault: FakeVault, kind: str
) -> None:
    vault.denied.add("lookup-self")
    with pytest.raises(BackendBrokenError, match=r"may not look itself up$") as raised:
        log_in(make(kind))
    assert "read on auth/token/lookup-self" in raised.value.detail


NO_TOKEN: list[tuple[dict[str, Any], str]] = [
    ({"wrap_info": {"token": "s.wraps"}, "auth": None}, "it is wrapped: expected"),
    ({"auth": {"client_token": ""}}, "expected auth.client_token"),
    ({"auth": []}, "expected auth.client_token"),
    ({}, "expected auth.client_token"),
]


@pytest.mark.parametrize(("content", "detail"), NO_TOKEN)
def test_an_answer_without_a_token_is_refused(
    make: Make,
    vault: FakeVault,
    monkeypatch: pytest.MonkeyPatch,
    content: dict[str, Any],
    detail: str,
) -> None:
    monkeypatch.setattr(vault, "serve", lambda *_: content)
    with pytest.raises(BackendBrokenError, match=r"login has no token$") as raised:
        log_in(make("jwt"))
    assert raised.value.detail.startswith(detail)
    assert "s.wraps" not in told(raised.value)


class TestTokenFile:
    def test_the_token_says_what_its_life_is(
        self, make: Make, vault: FakeVault
    ) -> None:
        vault.tokens[SECRET] = {"ttl": 60, "renewable": True, "num_uses": 4}
        granted = make("token").log_in(time.monotonic() + 5)
        assert (granted.seconds, granted.is_renewable, granted.uses) == (60.0, True, 3)
        assert SECRET not in repr(granted)

    @pytest.mark.parametrize(
        ("life", "seconds", "uses"),
        [
            ({"ttl": 0, "expire_time": None}, 0.0, None),
            ({"ttl": 0, "expire_time": "2026-12-30T23:43:30Z"}, 1.0, None),
            ({"ttl": 60, "num_uses": 1}, 60.0, 0),
        ],
    )
    def test_no_life_is_taken_for_an_endless_one(
        self,
        make: Make,
        vault: FakeVault,
        life: dict[str, Any],
        seconds: float,
        uses: int | None,
    ) -> None:
        vault.tokens[SECRET] = life
        granted = make("token").log_in(time.monotonic() + 5)
        assert (granted.seconds, granted.uses) == (seconds, uses)

    def test_a_wrapping_token_is_told_and_not_used_up(
        self, make: Make, vault: FakeVault
    ) -> None:
        vault.wrapping.add(SECRET)
        with pytest.raises(BackendAuthError, match=r"wrapping token$") as raised:
            log_in(make("token"))
        assert raised.value.detail.endswith("expected the token that it wraps")
        assert vault.count("lookup-self") == 0
        assert SECRET not in told(raised.value)

    def test_a_dead_token_is_told(self, make: Make, tmp_path: Path) -> None:
        with pytest.raises(BackendAuthError, match=r"^Vault does not know") as raised:
            log_in(make("token"))
        assert raised.value.detail.startswith(f"{tmp_path / 'secret'}: it has ended")
        assert SECRET not in told(raised.value)


CONTENTS = [
    ("token", b"", 0o600, "expected a token (found an empty file)"),
    ("token", b"\n", 0o600, "expected a token (found an empty file)"),
    ("token", f"{SECRET}\rx".encode(), 0o600, "one line of printable ASCII"),
    ("token", f"{SECRET}\nx".encode(), 0o600, "one line of printable ASCII"),
    ("token", f"{SECRET}é".encode(), 0o600, "one line of printable ASCII"),
    ("token", f"{SECRET}\n".encode(), 0o640, "allow_group_read: true"),
    ("token", f"{SECRET}\n".encode(), 0o604, "run chmod 600"),
    (
        "token",
        json.dumps({"token": SECRET, "wrapped_accessor": ""}).encode(),
        0o600,
        "leave wrap_ttl out of the agent's sink",
    ),
    ("approle", b"", 0o600, "expected a SecretID (found an empty file)"),
    ("approle", f"{SECRET}\x00".encode(), 0o600, "one line of printable ASCII"),
    ("approle", f"{SECRET}\n".encode(), 0o644, "run chmod 600"),
    ("jwt", b"", 0o600, "expected a JWT (found an empty file)"),
    ("kubernetes", f"{SECRET}\x7f".encode(), 0o600, "one line of printable ASCII"),
]


@pytest.mark.parametrize("row", CONTENTS)
def test_a_file_that_cannot_be_used_is_told_and_not_sent(
    make: Make,
    vault: FakeVault,
    tmp_path: Path,
    row: tuple[str, bytes, int, str],
) -> None:
    kind, content, mode, expected = row
    method = make(kind, content=content)
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(BackendAuthError, match=r"the (credential|file)") as raised:
        log_in(method)
    assert expected in raised.value.detail
    assert raised.value.detail.startswith(f"{tmp_path / 'secret'}: ")
    assert SECRET not in told(raised.value)
    assert vault.calls == []


@pytest.mark.parametrize("kind", ["token", "approle", "jwt", "kubernetes"])
def test_a_file_that_is_absent_is_told(make: Make, tmp_path: Path, kind: str) -> None:
    method = make(kind)
    (tmp_path / "secret").unlink()
    with pytest.raises(BackendAuthError, match=r"cannot be read$") as raised:
        log_in(method)
    assert str(tmp_path / "secret") in raised.value.detail


@pytest.mark.parametrize("kind", ["jwt", "kubernetes"])
def test_a_projected_token_may_be_readable(
    make: Make, tmp_path: Path, kind: str
) -> None:
    method = make(kind)
    (tmp_path / "secret").chmod(0o644)
    assert log_in(method) == "token-1"
