"""A token, its sessions or its process fail and come back: nobody restarts the bridge.

All rows have one bridge and its clients, one after the other.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pkcs11_faults.support import (
    CODES,
    SESSION_COUNT,
    Ground,
    ground,
)
from tests.support.harness.processes import descendants, is_alive
from tests.support.harness.workers import await_true
from tests.support.parts.pkcs11_shim import Fault

pytestmark = pytest.mark.xdist_group("pkcs11-recovery")
_ENOUGH = 5
"""Calls that fail in a row: so many open the breaker."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ground(tmp_path_factory.mktemp("bridge") / "served") as made:
        yield made


def test_a_token_that_was_away_is_used_again(shared: Ground) -> None:
    store, is_felt = shared.bridge.only.store, shared.new_processes(2)
    shared.survive(
        "token removed and restored",
        store.take_away,
        until=is_felt,
        end=store.bring_back,
    )


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("sessions closed behind our back", Fault.CLOSE_SESSIONS),
        ("logged out behind our back", Fault.LOGOUT),
    ],
)
def test_what_another_took_away_is_had_again(
    shared: Ground, name: str, fault: Fault
) -> None:
    shim = shared.bridge.only.shim
    shared.survive(
        name,
        lambda: shim.put("C_SignInit", fault, times=3),
        until=lambda: shim.hits("C_SignInit") == 3,
    )


@pytest.mark.parametrize(("name", "code"), CODES.items(), ids=[*CODES])
@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
def test_a_session_that_a_code_makes_useless_is_replaced(
    shared: Ground, function: str, name: str, code: int
) -> None:
    shim = shared.bridge.only.shim
    shared.survive(
        f"{name} from {function}",
        lambda: shim.put(function, Fault.RETURN_INSTEAD, code),
        until=lambda: shim.hits(function) >= _ENOUGH,
    )


def test_a_signature_that_was_made_and_not_given_is_on_record(shared: Ground) -> None:
    shim = shared.bridge.only.shim
    shared.survive(
        "CKR_DEVICE_ERROR after C_Sign signed",
        lambda: shim.put("C_Sign", Fault.RETURN_AFTER, CODES["CKR_DEVICE_ERROR"]),
        until=lambda: shim.hits("C_Sign") >= _ENOUGH,
    )


def test_a_token_that_gives_no_more_sessions_is_asked_again(shared: Ground) -> None:
    shim = shared.bridge.only.shim

    def begin() -> None:
        shim.put("C_OpenSession", Fault.RETURN_INSTEAD, SESSION_COUNT)
        shim.put("C_SignInit", Fault.CLOSE_SESSIONS, times=1)

    shared.survive(
        "session limit (CKR_SESSION_COUNT)",
        begin,
        until=lambda: shim.hits("C_OpenSession") >= 2,
    )


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.ABORT])
@pytest.mark.parametrize("function", ["C_Sign", "C_Initialize"])
def test_a_module_that_crashes_ends_its_own_process_only(
    shared: Ground, function: str, fault: Fault
) -> None:
    bridge, shim = shared.bridge, shared.bridge.only.shim
    parent, worker = bridge.pid, bridge.worker

    def begin() -> None:
        shim.put(function, fault)
        if function == "C_Initialize":
            bridge.kill_signers()

    shared.survive(
        f"{fault.name.lower()} in {function}",
        begin,
        until=lambda: shim.hits(function) >= 2,
    )
    assert (bridge.pid, bridge.worker) == (parent, worker)


def test_a_signer_that_is_killed_while_it_signs_is_replaced(shared: Ground) -> None:
    bridge, shim = shared.bridge, shared.bridge.only.shim

    def end() -> None:
        bridge.kill_signers()
        shim.clear()

    shared.survive(
        "signer killed in C_Sign",
        lambda: shim.put("C_Sign", Fault.SLEEP, 300),
        until=lambda: shim.hits("C_Sign") >= 2,
        end=end,
    )


def test_a_worker_that_is_killed_while_it_signs_is_replaced(tmp_path: Path) -> None:
    with ground(tmp_path / "served", workers=2) as two:
        bridge, shim = two.bridge, two.bridge.only.shim
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        worker = bridge.children()[0]
        signers = descendants(worker)

        def end() -> None:
            os.kill(worker, signal.SIGKILL)
            shim.clear()

        two.survive(
            "worker killed in C_Sign",
            lambda: shim.put("C_Sign", Fault.SLEEP, 300),
            until=lambda: shim.hits("C_Sign") >= 2,
            end=end,
        )
        # The old signer holds the token's sessions, and nobody needs it any more.
        await_true(lambda: not any(is_alive(pid) for pid in signers))
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
