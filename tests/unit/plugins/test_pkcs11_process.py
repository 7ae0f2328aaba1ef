"""The signer process: it may hang, crash or be killed, and no call waits for it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509

from bridge.spi import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    Latch,
    PluginContext,
    Prepared,
)
from bridge.testing import leaf_request
from bridge.x509.tbs import recorder_of
from bridge_pkcs11 import PKCS11CA
from tests.support.parts import install
from tests.support.parts.pkcs11_shim import Fault, Shim
from tests.support.parts.pki import Key, bundle, new_chain, new_root
from tests.support.parts.softhsm import SoftHSM

SECONDS = 20.0
"""For one call, on a busy machine."""
NAME = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart")


class Served:
    """An issuing CA in a token behind a shim, and the calls of a test."""

    def __init__(self, folder: Path, *before: x509.Certificate, **more: object) -> None:
        store = SoftHSM(folder / "store")
        token = store.new_token()
        self.shim = Shim(folder, store.module, store.variables)
        stand_in = cast("Key", recorder_of(token.new_key()))
        issuing = new_chain().above[0].issue_ca("hsm", key=stand_in, path_length=0)
        self.issuing = issuing.certificate
        (folder / "chain.pem").write_bytes(bundle(*before, *issuing.chain))
        self.options = {
            **token.options(pin_file=folder / "pin", module=self.shim.module),
            "start_timeout_seconds": SECONDS,
            **more,
        }
        self.context = PluginContext(
            name="seoul-1",
            base=folder,
            chain=folder / "chain.pem",
            latch=Latch(folder / "latch.json"),
        )
        self.ca = PKCS11CA(self.options, self.context)
        self.prepared: Prepared = self.ca.prepare(leaf_request((NAME,)))

    def issue(self, timeout: float = SECONDS) -> None:
        self.ca.issue(self.prepared, timeout=timeout)

    def outcome(self, timeout: float) -> tuple[BackendError | None, float]:
        """Issue; return the error, and how long the call took."""
        started = time.monotonic()
        error = None
        try:
            self.issue(timeout)
        except BackendError as raised:
            error = raised
        return error, time.monotonic() - started

    def pid(self) -> int:
        (child,) = children(os.getpid())
        return child


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for task in tasks for child in task.read_text().split()]
    return [
        child
        for child in found
        if b"bridge_pkcs11.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.shim.clear()
    served.ca.close()


def test_a_stranger_in_front_is_not_taken_for_the_issuing_ca(tmp_path: Path) -> None:
    stranger = new_root("stranger").issue_ca("of a stranger").certificate
    served = Served(tmp_path, stranger)
    try:
        assert served.ca.describe().certificate == served.issuing
        served.issue()
    finally:
        served.ca.close()


def test_the_process_starts_at_the_first_call_and_stays(served: Served) -> None:
    assert children(os.getpid()) == []
    served.issue()
    first = served.pid()
    served.issue()
    assert served.pid() == first
    served.ca.close()
    assert children(os.getpid()) == []


def test_many_calls_in_a_hung_signature_end_at_their_deadline(served: Served) -> None:
    served.issue()
    served.shim.put("C_Sign", Fault.HANG)
    with ThreadPoolExecutor(24) as threads:
        ends = [*threads.map(lambda _: served.outcome(1.5), range(24))]
    errors = [error for error, _ in ends]
    assert all(isinstance(error, BackendError) for error in errors)
    assert max(seconds for _, seconds in ends) < 5.0
    in_module = [error for error in errors if error and error.certificate_may_exist]
    assert 1 <= len(in_module) <= 8  # one each session; the others were not sent
    served.shim.clear()
    served.issue()


def test_a_hung_call_with_little_time_is_ended_by_the_next(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_pkcs11.process._HANG_SECONDS", 4.0)
    served.issue()
    hung = served.pid()
    served.shim.put("C_Sign", Fault.HANG, times=1)
    with pytest.raises(BackendTimeoutError, match="in time") as caught:
        served.issue(1.0)
    assert caught.value.certificate_may_exist
    assert served.pid() == hung  # it may only be slow
    served.issue()
    assert served.pid() == hung
    time.sleep(4.1)
    served.issue()
    assert served.pid() != hung


def test_a_late_answer_is_not_taken_for_that_of_another_call(served: Served) -> None:
    served.options["sessions"] = 1
    ca = PKCS11CA(served.options, served.context)
    try:
        other = ca.prepare(leaf_request((NAME,)))
        ca.issue(other, timeout=SECONDS)
        served.shim.put("C_Sign", Fault.SLEEP, 800, times=1)
        with pytest.raises(BackendTimeoutError, match="in time"):
            ca.issue(served.prepared, timeout=0.6)
        wait_until(lambda: served.shim.hits("C_Sign") == 1)
        time.sleep(0.4)
        issued = ca.issue(other, timeout=SECONDS)
    finally:
        ca.close()
    leaf = x509.load_der_x509_certificate(issued.leaf)
    leaf.verify_directly_issued_by(ca.describe().certificate)


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.ABORT])
def test_a_crash_in_a_signature_may_have_signed(served: Served, fault: Fault) -> None:
    served.issue()
    served.shim.put("C_Sign", fault, times=1)
    with pytest.raises(BackendUnavailableError, match="process ended") as caught:
        served.issue()
    assert caught.value.certificate_may_exist
    assert "during the call: signal" in caught.value.detail
    served.issue()


def test_a_process_that_is_killed_between_two_calls_is_not_noticed(
    served: Served,
) -> None:
    served.issue()
    first = served.pid()
    os.kill(first, signal.SIGKILL)
    # Its last thread closes its channels.
    wait_until(lambda: len([*Path(f"/proc/{first}/task").iterdir()]) == 1)
    wait_until(lambda: ") Z " in Path(f"/proc/{first}/stat").read_text())
    served.issue()
    assert served.pid() != first


def test_a_crash_at_the_start_signs_nothing_and_is_tried_again(
    served: Served,
) -> None:
    served.shim.put("C_Initialize", Fault.CRASH, times=1)
    served.issue()
    assert served.shim.calls("C_Initialize") == 2


def test_a_start_that_fails_again_and_again_is_no_storm(served: Served) -> None:
    served.shim.put("C_Initialize", Fault.CRASH)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        error, _ = served.outcome(0.3)
        assert error is not None
        assert not error.certificate_may_exist
    assert served.shim.calls("C_Initialize") <= 4


@pytest.mark.parametrize("function", ["C_Initialize", "C_Login", "C_OpenSession"])
def test_a_start_that_hangs_is_given_up(tmp_path: Path, function: str) -> None:
    served = Served(tmp_path, start_timeout_seconds=0.5)
    served.shim.put(function, Fault.HANG)
    try:
        error, seconds = served.outcome(0.4)
        assert isinstance(error, BackendUnavailableError)
        assert not error.certificate_may_exist
        assert seconds < 5.0
        first = {*children(os.getpid())}
        wait_until(lambda: not first & {*children(os.getpid())})
    finally:
        served.shim.clear()
        served.ca.close()


def test_close_does_not_wait_for_a_hung_call(served: Served) -> None:
    served.issue()
    served.shim.put("C_Sign", Fault.HANG)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(served.outcome, SECONDS)
        wait_until(lambda: served.shim.hits("C_Sign") == 1)
        started = time.monotonic()
        served.ca.close()
        assert time.monotonic() - started < 10.0
        error, _ = call.result(SECONDS)
    assert isinstance(error, BackendError)
    assert error.certificate_may_exist
    with pytest.raises(BackendUnavailableError, match="closed"):
        served.issue()


_PARENT = """
import json, sys
from pathlib import Path
from bridge.spi import Latch, PluginContext
from bridge.testing import leaf_request
from bridge_pkcs11 import PKCS11CA
from cryptography import x509
options, base = json.loads(sys.argv[1]), Path(sys.argv[2])
ca = PKCS11CA(options, PluginContext(name="x", base=base, chain=base / "chain.pem"))
name = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart")
ca.issue(ca.prepare(leaf_request((name,))), timeout=20)
print("issued", flush=True)
sys.stdin.readline()
ca.issue(ca.prepare(leaf_request((name,))), timeout=60)
"""


@pytest.mark.parametrize("how", ["_give_back", "_put_aside"])
def test_a_call_that_outlives_the_process_leaves_no_socket(
    served: Served, how: str
) -> None:
    served.issue()
    process = cast("Any", served.ca)._signer._process
    assert process is not None
    channel = process._taken(time.monotonic() + SECONDS)
    process.end(BackendUnavailableError("another call has seen it hang"))
    getattr(process, how)(channel)
    assert channel._socket.fileno() == -1


def test_the_process_ends_with_its_parent_also_in_a_hung_call(served: Served) -> None:
    arguments = (json.dumps(served.options), str(served.context.base))
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent:
        assert parent.stdout.readline() == b"issued\n"
        served.shim.put("C_Sign", Fault.HANG)
        (child,) = children(parent.pid)
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        wait_until(lambda: served.shim.hits("C_Sign") == 1)
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_a_change_of_the_chain_is_reported(served: Served) -> None:
    changed = threading.Event()
    served.ca.watch(changed.set)
    chain = served.context.base / "chain.pem"
    chain.write_bytes(chain.read_bytes() + b"\n")
    assert changed.wait(SECONDS)
    with pytest.raises(RuntimeError, match="watched already"):
        served.ca.watch(changed.set)


def test_the_process_dumps_no_core_and_the_module_gets_its_environment(
    served: Served,
) -> None:
    # Without its own configuration, SoftHSM has no tokens or does not initialise.
    served.options["environment"] = {"SOFTHSM2_CONF": "/nowhere/softhsm2.conf"}
    ca = PKCS11CA(
        {**served.options, "module": str(install.softhsm_module())}, served.context
    )
    with pytest.raises(BackendError, match=r"."):
        ca.check(timeout=SECONDS)
    ca.close()
    served.issue()
    limits = Path(f"/proc/{served.pid()}/limits").read_text()
    (core,) = [line for line in limits.splitlines() if "core file" in line]
    assert core.split()[4:6] == ["0", "0"]
