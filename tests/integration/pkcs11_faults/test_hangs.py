"""Any function of a module may hang: callers hear of it, and nobody restarts."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.pkcs11_faults.support import CODES, Ground, ground
from tests.support.clients.callers import RETRYABLE, Callers
from tests.support.harness.faults import PATIENCE_SECONDS
from tests.support.harness.workers import await_true
from tests.support.parts.pkcs11_shim import FUNCTIONS, Fault, Shim

pytestmark = pytest.mark.xdist_group("pkcs11-hangs")
_AT_START = (
    "C_Initialize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_OpenSession",
    "C_Login",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_GetAttributeValue",
)
_IN_SIGNING = ("C_SignInit", "C_Sign")
_IN_RECOVERY = ("C_CloseSession", "C_GetSessionInfo")
_AT_ONCE = 24


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("bridge") / "served"
    # A part that is well just after a start that hangs costs this time and a new start.
    options: dict[str, Any] = {"sessions": _AT_ONCE, "start_timeout_seconds": 2.0}
    with ground(folder, each=_AT_ONCE // 2, **options) as made:
        yield made


@pytest.mark.parametrize("function", [*_AT_START, *_IN_SIGNING])
def test_a_function_that_hangs_holds_nobody_for_longer_than_its_deadline(
    shared: Ground, function: str
) -> None:
    bridge, shim = shared.bridge, shared.bridge.only.shim
    # The one that hangs has to end, and another one to begin.
    is_over = shared.new_processes(2 if function in _AT_START else 1)

    def begin() -> None:
        shim.put(function, Fault.HANG)
        if function in _AT_START:
            bridge.kill_signers()

    shared.survive(
        f"{function} hangs",
        begin,
        until=lambda: shim.hits(function) >= 1 and is_over(),
    )


@pytest.mark.parametrize("function", _IN_RECOVERY)
def test_a_function_that_hangs_on_the_way_back_holds_nobody(
    shared: Ground, function: str
) -> None:
    shim = shared.bridge.only.shim

    def begin() -> None:
        shim.put(function, Fault.HANG)
        code = CODES["CKR_USER_NOT_LOGGED_IN"]
        shim.put("C_SignInit", Fault.RETURN_INSTEAD, code, times=2)

    shared.survive(f"{function} hangs", begin, until=lambda: shim.hits(function) >= 1)


def all_sessions_are_open(shim: Shim) -> Callable[[], bool]:
    """Return what tells whether a signer process that begins later has opened them all.

    It is to be asked again and again until it has.
    """
    process, before = shim.calls("C_Initialize"), math.inf
    now = 0

    def is_so() -> bool:
        nonlocal process, before, now
        if (at := shim.calls("C_Initialize")) != process:
            process, before = at, now
        now = shim.calls("C_OpenSession") - shim.calls("C_CloseSession")
        return now - before > _AT_ONCE  # one is for the login

    return is_so


def test_24_signatures_that_hang_at_once_hold_neither_front(shared: Ground) -> None:
    shim = shared.bridge.only.shim
    # More clients than sessions, each of which takes its time: all sessions are opened.
    with Callers(shared.bridge, _AT_ONCE // 3) as more:
        are_all_open = all_sessions_are_open(shim)
        shared.bridge.kill_signers()
        shim.put("C_Sign", Fault.SLEEP, 100)
        await_true(are_all_open, PATIENCE_SECONDS)
        processes = shim.calls("C_Initialize")
        hung, began = [0], time.monotonic()

        def is_felt() -> bool:
            hits = shim.hits("C_Sign")
            if shim.calls("C_Initialize") == processes:
                hung.append(hits)  # all in one process, and none has returned
            seen = {(one.front, one.code) for one in shared.callers.results(began)}
            return {("istio", "UNAVAILABLE"), ("linkerd", "UNAVAILABLE")} <= seen

        shared.survive(
            "C_Sign hangs in 24 calls at once",
            lambda: shim.put("C_Sign", Fault.HANG),
            until=is_felt,
        )
        assert max(hung) >= _AT_ONCE
        assert set(more.codes(began)) <= RETRYABLE, more.texts(began)


def test_each_function_that_is_called_has_a_row(shared: Ground) -> None:
    shim = shared.bridge.only.shim
    shared.bridge.kill_signers()
    await_true(shared.bridge.signers)
    rows = {*_AT_START, *_IN_SIGNING, *_IN_RECOVERY}
    # The first has no way to hang, and these two come when nobody waits any more.
    rows |= {"C_GetFunctionList", "C_Finalize", "C_Logout"}
    assert {name for name in FUNCTIONS if shim.calls(name)} <= rows
