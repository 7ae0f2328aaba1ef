"""The sessions of a signer process: shared, renewed step by step, and no more often."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from pkcs11 import exceptions
from pkcs11.exceptions import PKCS11Error

from bridge.spi import (
    BackendBrokenError,
    BackendCredentialError,
    BackendThrottledError,
    BackendUnavailableError,
)
from bridge_pkcs11.recovery import ExhaustedError, SessionPool, told
from bridge_pkcs11.token import KeySession

SOON = 1e9


class FakeToken:
    """A token whose calls raise what a test puts in."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.opening: Iterator[Exception | None] = iter(())
        self.login: Exception | None = None

    def open_session(self) -> KeySession:
        self.done.append("open")
        self._raise(next(self.opening, None))
        return KeySession(*cast("tuple[Any, Any, Any]", (None, None, None)))

    def log_in(self) -> None:
        self.done.append("login")
        self._raise(self.login)

    def discard(self, opened: KeySession) -> None:
        self.done.append("close")

    @staticmethod
    def _raise(error: Exception | None) -> None:
        if error is not None:
            raise error


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def failing(times: int, error: Exception) -> Callable[[KeySession], str]:
    """Return work that raises for its first calls."""
    left = [error] * times

    def work(_: KeySession) -> str:
        if left:
            raise left.pop()
        return "signature"

    return work


@pytest.fixture
def token() -> FakeToken:
    return FakeToken()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(token: FakeToken, clock: Clock) -> SessionPool:
    pool = SessionPool(token, 2, clock)
    pool.start()
    token.done.clear()
    return pool


LOST = exceptions.ObjectHandleInvalid()


@pytest.mark.parametrize(
    ("failures", "steps"),
    [
        (0, []),
        (1, ["close", "open"]),
        (2, ["close", "open", "close", "login", "open"]),
    ],
)
def test_the_way_back_goes_step_by_step(
    token: FakeToken, pool: SessionPool, failures: int, steps: list[str]
) -> None:
    assert pool.run(failing(failures, LOST), SOON) == "signature"
    assert token.done == steps


@pytest.mark.parametrize(
    "error",
    [
        exceptions.SessionHandleInvalid(),
        exceptions.SessionClosed(),
        exceptions.ObjectHandleInvalid(),
        exceptions.KeyHandleInvalid(),
        exceptions.UserNotLoggedIn(),
        exceptions.NoSuchKey(),
        exceptions.DeviceRemoved(),
        exceptions.DeviceError(),
        exceptions.DeviceMemory(),
        exceptions.TokenNotPresent(),
        exceptions.GeneralError(),
        exceptions.FunctionFailed(),
        exceptions.OperationActive(),
        PKCS11Error("Unmapped error code 0x80000001"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_after_the_last_step_the_process_is_over(
    token: FakeToken, pool: SessionPool, error: PKCS11Error
) -> None:
    with pytest.raises(ExhaustedError, match=r".") as caught:
        pool.run(failing(3, error), SOON)
    assert token.done[-1] == "close"
    # The next process may be well: the caller is to ask again.
    assert isinstance(caught.value.error, BackendUnavailableError)
    assert not caught.value.error.certificate_may_exist


@pytest.mark.parametrize(
    "error",
    [
        exceptions.MechanismInvalid(),
        exceptions.KeyTypeInconsistent(),
        exceptions.ArgumentsBad(),
        exceptions.DataLenRange(),
        exceptions.FunctionRejected(),
        PKCS11Error("Unmapped error code 0x68"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_can_never_succeed_is_not_repeated_and_the_session_goes(
    token: FakeToken, pool: SessionPool, error: PKCS11Error
) -> None:
    with pytest.raises(type(error)):
        pool.run(failing(1, error), SOON)
    assert token.done == ["close"]
    assert isinstance(told(error), BackendBrokenError)


def test_a_second_login_so_soon_is_not_tried(
    token: FakeToken, pool: SessionPool, clock: Clock
) -> None:
    assert pool.run(failing(2, LOST), SOON) == "signature"
    clock.now += 0.9
    with pytest.raises(ExhaustedError, match="an error"):
        pool.run(failing(3, LOST), SOON)
    assert token.done.count("login") == 1
    clock.now += 0.2
    assert pool.run(failing(2, LOST), SOON) == "signature"
    assert token.done.count("login") == 2


def test_calls_that_fail_together_log_in_once(token: FakeToken) -> None:
    pool = SessionPool(token, 8)
    together = threading.Barrier(8, timeout=20)

    def call(_: int) -> str:
        calls = 0

        def work(_: KeySession) -> str:
            nonlocal calls
            calls += 1
            if calls == 1:
                together.wait()
            if "login" not in token.done:
                raise LOST
            return "signature"

        return pool.run(work, SOON)

    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(call, range(8))] == ["signature"] * 8
    assert token.done.count("login") == 1


def test_a_refused_pin_ends_the_way_back(token: FakeToken, pool: SessionPool) -> None:
    token.login = BackendCredentialError("refused")
    with pytest.raises(ExhaustedError, match="refused") as caught:
        pool.run(failing(2, LOST), SOON)
    assert caught.value.error is token.login


def test_where_the_token_allows_fewer_sessions_calls_share_them(
    token: FakeToken, pool: SessionPool, clock: Clock
) -> None:
    token.opening = iter([exceptions.SessionCount()])
    busy, done = threading.Event(), threading.Event()

    def hold(_: KeySession) -> str:
        busy.set()
        done.wait(20)
        return "first"

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.run, hold, SOON)
        assert busy.wait(20)
        second = threads.submit(pool.run, failing(0, LOST), SOON)
        with pytest.raises(BackendThrottledError, match="in use"):
            pool.run(failing(0, LOST), clock.now)
        done.set()
        assert (first.result(20), second.result(20)) == ("first", "signature")
    assert token.done == ["open"]


def test_no_session_at_all_is_told(token: FakeToken) -> None:
    token.opening = iter([exceptions.SessionCount()] * 9)
    with pytest.raises(ExhaustedError, match="an error") as caught:
        SessionPool(token, 2).run(failing(0, LOST), SOON)
    assert isinstance(caught.value.error, BackendUnavailableError)
    assert caught.value.error.detail == "CKR_SESSION_COUNT"


def test_idle_sessions_are_kept_alive_and_dead_ones_dropped(
    token: FakeToken, pool: SessionPool, clock: Clock
) -> None:
    looks: list[float] = []
    pool.keep_alive(lambda _: looks.append(clock.now), 10.0)
    clock.now = 11.0
    pool.keep_alive(lambda _: looks.append(clock.now), 10.0)
    pool.keep_alive(lambda _: looks.append(clock.now), 10.0)
    assert looks == [11.0]
    clock.now = 30.0
    pool.keep_alive(failing(1, LOST), 10.0)
    assert token.done == ["close"]
