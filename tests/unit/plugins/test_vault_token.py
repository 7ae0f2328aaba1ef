"""The token of a session: one login for all, the old one until the new one works."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.sdk import BackgroundLoop
from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendUnavailableError,
    PluginContext,
)
from bridge_vault.connection import VaultError
from bridge_vault.options import VaultOptions
from bridge_vault.token import VaultToken
from tests.support.harness.fake_vault import ANSWER_SECONDS, FakeVault, answer
from tests.support.parts.pki import write_private

THREADS = 24
HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., VaultToken]


@pytest.fixture
def make(
    vault: FakeVault, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Make:
    # A test calls `keep` itself.
    monkeypatch.setattr(BackgroundLoop, "start", lambda _: None)

    def made(**login: Any) -> VaultToken:
        file = write_private(tmp_path / "jwt", b"jwt\n")
        method = login or {"jwt": {"role": "bridge", "token_file": str(file)}}
        options = VaultOptions.model_validate(
            {"addresses": ["http://127.0.0.1:8200"], "login": method}
        )
        context = PluginContext(name="ca", base=tmp_path)
        return VaultToken(options, lambda: context, vault.adapt, clock=clock)

    return made


@pytest.fixture
def token(make: Make) -> VaultToken:
    return make()


@pytest.fixture
def of_file(make: Make, vault: FakeVault, tmp_path: Path) -> VaultToken:
    vault.tokens["first"] = {"ttl": 3600, "renewable": True}
    write_private(tmp_path / "token", b"first\n")
    return make(token={"file": str(tmp_path / "token")})


def soon(clock: Clock) -> float:
    return clock.now + ANSWER_SECONDS


def at_once(work: Callable[[], str]) -> list[str]:
    """Return the results of the work, done by many threads at a time."""
    barrier = threading.Barrier(THREADS)

    def run(_: int) -> str:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(run, range(THREADS))]


def test_threads_without_a_token_share_one_login(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    assert {*at_once(lambda: token.get(soon(clock)))} == {"token-1"}
    assert vault.logins == 1


def test_threads_with_a_dead_token_share_one_question_and_one_login(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    assert token.get(soon(clock)) == "token-1"
    vault.tokens.clear()

    def refused() -> str:
        token.refused("token-1", answer(403), soon(clock))
        return token.get(soon(clock))

    before = vault.count("lookup-self")
    assert {*at_once(refused)} == {"token-2"}
    assert vault.logins == 2
    assert vault.count("lookup-self") == before + 2  # the dead one and the new one


def test_a_token_that_lives_means_a_policy_and_no_login(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    token.get(soon(clock))
    with pytest.raises(BackendBrokenError, match=r"^Vault's policies do not permit"):
        token.refused("token-1", answer(403), soon(clock))
    assert token.get(soon(clock)) == "token-1"
    assert vault.logins == 1


def test_one_answer_does_for_all_calls_that_were_refused_before_it(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    token.get(soon(clock))
    before = vault.count("lookup-self")
    clock.now = 1.0
    for _ in range(3):
        with pytest.raises(BackendBrokenError, match=r"policies do not permit"):
            token.refused("token-1", answer(403), soon(clock))
    assert vault.count("lookup-self") == before + 1
    clock.now = 2.0
    with pytest.raises(BackendBrokenError, match=r"policies do not permit"):
        token.refused("token-1", answer(403), soon(clock))
    assert vault.count("lookup-self") == before + 2


def test_a_refusal_of_an_earlier_token_says_nothing_of_the_new_one(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.life["lease_duration"] = 60
    token.get(soon(clock))
    clock.now = 60.0
    assert token.get(soon(clock)) == "token-2"
    token.refused("token-1", answer(403), soon(clock))
    assert vault.count("lookup-self") == 2  # one for each login
    assert token.get(soon(clock)) == "token-2"


def test_a_token_that_came_while_the_old_one_was_asked_about_is_kept(
    token: VaultToken, vault: FakeVault, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.life["renewable"] = False
    token.get(soon(clock))
    vault.tokens.clear()
    clock.now = HOUR * 0.7
    serve = vault.serve

    def replaced(url: str, asker: str, body: dict[str, Any]) -> dict[str, Any]:
        if asker == "token-1":
            token.keep()
        return serve(url, asker, body)

    monkeypatch.setattr(vault, "serve", replaced)
    token.refused("token-1", answer(403), soon(clock))
    assert token.get(soon(clock)) == "token-2"
    assert vault.logins == 2


def test_a_token_that_cannot_be_asked_about_is_kept(
    token: VaultToken, vault: FakeVault, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    token.get(soon(clock))

    def away(*_: object) -> dict[str, Any]:
        raise answer(503, "Vault is sealed")

    with monkeypatch.context() as patched:
        patched.setattr(vault, "serve", away)
        with pytest.raises(BackendUnavailableError, match=r"^Vault cannot serve now$"):
            token.refused("token-1", answer(403), soon(clock))
    assert token.get(soon(clock)) == "token-1"
    assert vault.logins == 1


def test_a_login_outlives_the_callers_that_began_it(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.served.clear()
    for _ in range(3):
        with pytest.raises(BackendAuthError, match=r"^the login at Vault has"):
            token.get(clock.now + 0.01)
    vault.served.set()
    assert token.get(soon(clock)) == "token-1"
    assert vault.logins == 1


def test_a_login_that_failed_is_not_repeated_for_a_moment(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.refusal = answer(429, "quota")
    vault.refusal.retry_after = 7.0
    failures = [caught(lambda: token.get(soon(clock))) for _ in range(3)]
    assert [getattr(each, "retry_after_seconds", 0) for each in failures] == [7.0] * 3
    assert vault.logins == 1
    clock.now += 1.0
    vault.refusal = None
    assert token.get(soon(clock)) == "token-2"
    assert vault.logins == 2


def caught(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception, match=r".") as raised:
        work()
    return raised.value


def test_a_slow_login_in_the_background_leaves_the_old_token_in_use(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.life["renewable"] = False
    token.get(soon(clock))
    vault.served.clear()
    vault.began.clear()
    clock.now = HOUR * 0.7
    keeping = threading.Thread(target=token.keep)
    keeping.start()
    assert vault.began.wait(ANSWER_SECONDS)
    began = time.monotonic()
    assert {*at_once(lambda: token.get(soon(clock)))} == {"token-1"}
    assert time.monotonic() - began < ANSWER_SECONDS / 2
    vault.served.set()
    keeping.join(ANSWER_SECONDS)
    assert token.get(soon(clock)) == "token-2"
    assert vault.logins == 2


SEALED = answer(503, "Vault is sealed")


@dataclass(frozen=True)
class Life:
    """A token's life, and what happens when a part of an hour of it has passed."""

    id: str
    life: dict[str, Any]
    renewal: int | VaultError = 3600
    age: float = 0.7
    renewals: int = 1
    logins: int = 1


LIVES = [
    Life("young", {}, age=0.5, renewals=0),
    Life("renewable", {}),
    Life("granted less", {}, 1900),
    Life("near its explicit end", {}, 1700, logins=2),
    Life("granted nothing", {}, 0, logins=2),
    Life("batch, not renewable", {"renewable": False}, renewals=0, logins=2),
    Life("renewal refused", {}, answer(400), logins=2),
    Life("renewal denied", {}, answer(403), logins=2),
    Life("sealed", {}, SEALED),
    Life("root token", {"lease_duration": 0}, age=1e6, renewals=0),
]


@pytest.mark.parametrize("row", LIVES, ids=lambda row: row.id)
def test_a_token_is_renewed_or_replaced_at_two_thirds_of_its_life(
    token: VaultToken, vault: FakeVault, clock: Clock, row: Life
) -> None:
    vault.life |= row.life
    vault.renewal = row.renewal
    token.get(soon(clock))
    clock.now = HOUR * row.age
    token.keep()
    token.keep()  # it waits for the next time
    assert vault.count("renew-self") == row.renewals
    assert vault.logins == row.logins
    assert token.get(soon(clock)) == f"token-{row.logins}"


def test_a_renewal_that_failed_is_tried_again_and_the_token_is_used_to_its_end(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.renewal = SEALED
    token.get(soon(clock))
    for number in range(1, 4):
        clock.now = HOUR * 0.7 + number * 5
        token.keep()
        assert vault.count("renew-self") == number
        assert token.get(soon(clock)) == "token-1"
    clock.now = HOUR
    assert token.get(soon(clock)) == "token-2"


def test_a_renewal_begins_another_life(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    token.get(soon(clock))
    clock.now = HOUR * 0.7
    token.keep()
    clock.now = HOUR * 1.6
    assert token.get(soon(clock)) == "token-1"
    assert vault.logins == 1


def test_a_token_with_a_limit_is_replaced_before_a_call_is_refused(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.life["num_uses"] = 5
    taken = Counter(at_once(lambda: token.get(soon(clock))))
    assert max(taken.values()) == 5
    assert vault.logins == 5
    assert vault.count("lookup-self") == 0  # each would take a use


def test_the_last_use_of_a_token_is_not_spent_on_a_renewal(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.life["num_uses"] = 2
    token.get(soon(clock))
    clock.now = HOUR * 0.7
    token.keep()
    assert vault.count("renew-self") == 0
    assert vault.logins == 2


def test_uses_that_others_took_are_found_out(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.life["num_uses"] = 5
    token.get(soon(clock))
    vault.tokens["token-1"]["num_uses"] = 1
    token.refused("token-1", answer(403), soon(clock))
    assert token.get(soon(clock)) == "token-2"


class TestTokenFile:
    def test_another_token_in_the_file_is_used(
        self, of_file: VaultToken, vault: FakeVault, clock: Clock, tmp_path: Path
    ) -> None:
        assert of_file.get(soon(clock)) == "first"
        vault.tokens["second"] = {"ttl": 3600, "renewable": True}
        write_private(tmp_path / "token", b"second\n")
        of_file.keep()
        assert of_file.get(soon(clock)) == "second"

    @pytest.mark.parametrize("content", [b"", b"dead\n", b'{"wrap_info": {}}'])
    def test_what_is_no_good_token_leaves_the_old_one_in_use_and_renewed(
        self,
        of_file: VaultToken,
        vault: FakeVault,
        clock: Clock,
        tmp_path: Path,
        content: bytes,
    ) -> None:
        of_file.get(soon(clock))
        write_private(tmp_path / "token", content)
        clock.now = HOUR * 0.7
        of_file.keep()
        assert vault.count("renew-self") == 1
        clock.now = HOUR * 1.5
        assert of_file.get(soon(clock)) == "first"

    def test_a_token_that_cannot_be_renewed_is_told_once(
        self,
        of_file: VaultToken,
        vault: FakeVault,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        vault.tokens["first"]["renewable"] = False
        of_file.get(soon(clock))
        clock.now = HOUR * 0.7
        with caplog.at_level(logging.WARNING):
            of_file.keep()
            of_file.keep()
        (told,) = caplog.messages
        assert "ends in 1080 s and cannot be renewed" in told
        assert vault.count("renew-self") == 0

    def test_a_token_is_renewed_however_little_is_granted(
        self, of_file: VaultToken, vault: FakeVault, clock: Clock
    ) -> None:
        of_file.get(soon(clock))
        vault.renewal = 1300
        clock.now = HOUR * 0.7
        of_file.keep()
        assert vault.count("renew-self") == 1
        clock.now = HOUR * 0.7 + 1299
        assert of_file.get(soon(clock)) == "first"


def test_a_session_that_is_closed_begins_no_login(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    token.get(soon(clock))
    token.close()
    assert token.get(soon(clock)) == "token-1"  # of a call under way
    clock.now = HOUR
    with pytest.raises(BackendUnavailableError, match=r"session with Vault is closed$"):
        token.get(soon(clock))
    assert vault.logins == 1


def test_a_close_does_not_wait_for_a_login(
    token: VaultToken, vault: FakeVault, clock: Clock
) -> None:
    vault.served.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(token.get, soon(clock))
        assert vault.began.wait(ANSWER_SECONDS)
        token.close()
        vault.served.set()
        assert waiting.result(ANSWER_SECONDS) == "token-1"


def test_what_is_shown_of_a_token_is_not_the_token(
    token: VaultToken, clock: Clock
) -> None:
    token.get(soon(clock))
    assert "token-1" not in repr(vars(token))
