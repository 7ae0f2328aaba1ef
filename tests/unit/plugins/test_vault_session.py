"""Sessions: one for all CAs that log in alike, and one login for a token that died."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendUnavailableError,
    PluginContext,
)
from bridge_vault import session as module
from bridge_vault.options import VaultOptions
from bridge_vault.session import SharedSession
from tests.support.harness.fake_vault import FakeVault, answer
from tests.support.parts.pki import new_root, write_private

THREADS = 24
SECONDS = 10.0


class Counts:
    """The metrics of a CA."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()

    def set(self, name: str, value: float) -> None:
        """See `PluginMetrics.set`."""

    def count(self, name: str, amount: int = 1) -> None:
        """See `PluginMetrics.count`."""
        self.events[name] += amount


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> FakeVault:
    made = FakeVault()

    def adapter(_servers: object, deadline: float, *, token: str, **_: str) -> object:
        return made.adapt(deadline, token)

    monkeypatch.setattr(module, "VaultAdapter", adapter)
    return made


Make = Callable[..., SharedSession]


@pytest.fixture
def make(vault: FakeVault, tmp_path: Path) -> Iterator[Make]:
    assert vault.logins == 0
    write_private(tmp_path / "jwt", b"jwt\n")
    opened: list[SharedSession] = []

    def made(metrics: Counts | None = None, **options: Any) -> SharedSession:
        login = {"jwt": {"role": "bridge", "token_file": str(tmp_path / "jwt")}}
        given = {"addresses": ["http://127.0.0.1:8200"], "login": login, **options}
        context = PluginContext(name="ca", base=tmp_path, metrics=metrics or Counts())
        opened.append(SharedSession(VaultOptions.model_validate(given), context))
        return opened[-1]

    yield made
    for one in opened:
        one.close()
    assert module._open == {}


def sign(session: SharedSession) -> Any:
    return session.call(lambda adapter: adapter.post("/v1/sign"), SECONDS, signs=True)


def test_cas_that_log_in_alike_have_one_login(make: Make, vault: FakeVault) -> None:
    for session in [make(), make()]:
        sign(session)
    assert vault.logins == 1


@pytest.mark.parametrize(
    "other",
    [
        {"addresses": ["http://127.0.0.1:8201"]},
        {"namespace": "eu"},
        {"login": {"jwt": {"role": "other", "token_file": "jwt"}}},
    ],
)
def test_cas_with_another_server_or_login_have_their_own(
    make: Make, other: dict[str, Any]
) -> None:
    make()
    make(**other)
    assert len(module._open) == 2


def test_a_successor_keeps_the_session_of_a_ca_that_is_closed(
    make: Make, vault: FakeVault
) -> None:
    old, new = Counts(), Counts()
    first = make(old)
    sign(first)
    successor = make(new)
    first.close()
    first.close()  # once is enough
    vault.tokens.clear()
    sign(successor)
    assert vault.logins == 2
    assert old.events == {"vault_logins": 1}
    assert new.events == {"vault_logins": 1, "vault_tokens_lost": 1}


def test_a_changed_file_makes_another_session(make: Make, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(new_root("one").pem)
    options = {"addresses": ["https://127.0.0.1:8200"], "ca_file": str(ca_file)}
    make(**options)
    ca_file.write_bytes(new_root("two").pem)
    make(**options)
    assert len(module._open) == 2


def test_sessions_made_and_closed_by_many_threads_leave_none(
    make: Make, vault: FakeVault
) -> None:
    barrier = threading.Barrier(THREADS)

    def use(_: int) -> None:
        barrier.wait()
        for _number in range(20):
            session = make()
            sign(session)
            session.close()

    with ThreadPoolExecutor(THREADS) as pool:
        assert [*pool.map(use, range(THREADS))] == [None] * THREADS
    assert module._open == {}
    assert vault.logins >= 1


def test_many_calls_with_a_dead_token_make_one_login(
    make: Make, vault: FakeVault
) -> None:
    session = make()
    sign(session)
    vault.tokens.clear()
    barrier = threading.Barrier(THREADS)

    def use(_: int) -> None:
        barrier.wait()
        sign(session)

    with ThreadPoolExecutor(THREADS) as pool:
        assert [*pool.map(use, range(THREADS))] == [None] * THREADS
    assert vault.logins == 2


def test_many_calls_without_a_right_make_no_login(make: Make, vault: FakeVault) -> None:
    session = make()
    sign(session)
    vault.denied.add("sign")

    def use(_: int) -> BackendBrokenError:
        with pytest.raises(BackendBrokenError, match=r"policies do not") as raised:
            sign(session)
        return raised.value

    with ThreadPoolExecutor(THREADS) as pool:
        failures = [*pool.map(use, range(THREADS))]
    assert {failure.certificate_may_exist for failure in failures} == {False}
    assert vault.logins == 1
    vault.denied.clear()
    sign(session)
    assert vault.logins == 1


def test_a_new_token_that_is_dead_as_well_ends_the_call(
    make: Make, vault: FakeVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()
    serve = vault.serve

    def dying(url: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        if url.endswith("/sign"):
            vault.tokens.clear()
        return serve(url, token, body)

    monkeypatch.setattr(vault, "serve", dying)
    with pytest.raises(BackendAuthError, match=r"^Vault refuses the token of a new"):
        sign(session)
    assert vault.logins == 2


def test_another_failure_asks_for_no_login_and_looks_nothing_up(
    make: Make, vault: FakeVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()
    sign(session)
    before, serve = vault.count("lookup-self"), vault.serve

    def sealed(url: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        if url.endswith("/sign"):
            raise answer(503, "Vault is sealed")
        return serve(url, token, body)

    with monkeypatch.context() as patched:
        patched.setattr(vault, "serve", sealed)
        with pytest.raises(BackendUnavailableError, match=r"^Vault cannot serve now$"):
            sign(session)
    sign(session)
    assert vault.logins == 1
    assert vault.count("lookup-self") == before
