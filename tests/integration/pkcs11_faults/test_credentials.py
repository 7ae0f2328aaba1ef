"""A wrong PIN is tried once by the whole host; another key signs for nobody."""

import re
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from tests.integration.pkcs11_faults.support import ground
from tests.support.clients.callers import RETRYABLE, Callers
from tests.support.harness.faults import WELL_AGAIN_SECONDS, keep
from tests.support.harness.hsm import HSMBridge
from tests.support.harness.workers import await_true
from tests.support.parts import softhsm

_WORKERS = 4
_RESTARTS = 10


@pytest.mark.xdist_group("pkcs11-pin")
def test_a_wrong_pin_is_tried_once_and_a_mended_file_once_more(tmp_path: Path) -> None:
    bridge = HSMBridge(tmp_path / "served", _WORKERS, awaits="/healthz")
    backend = bridge.only
    right, logins = backend.pin_file.read_text(), backend.shim.calls
    backend.pin_file.write_text("wrong-1\n")
    for _ in range(_RESTARTS):
        began = len(_log(bridge))
        bridge.__enter__()
        assert "PIN" in bridge.run("check").stdout
        await_true(partial(_is_refused_to_all, bridge, began), 60)
        bridge.kill()
    assert logins("C_Login") == 1
    backend.pin_file.write_text(right)
    checked = bridge.run("check").stdout
    assert re.search(r"hsm-1 +backend +ok", checked), checked
    assert logins("C_Login") == 2
    with bridge, Callers(bridge) as callers:
        callers.await_served(time.monotonic(), 60)
    bridge.require_all_on_record(callers)
    assert right.strip() not in _log(bridge)


@pytest.mark.xdist_group("pkcs11-other-key")
def test_another_key_under_the_label_signs_for_nobody(tmp_path: Path) -> None:
    with ground(tmp_path / "served") as shared:
        bridge, callers, backend = shared.bridge, shared.callers, shared.bridge.only
        kept = tmp_path / "tokens"
        shutil.copytree(backend.store.tokens, kept)
        began = time.monotonic()
        backend.token.delete_key()
        backend.token.new_key()
        await_true(lambda: shared.failures(began) >= 5)
        backend.store.take_away()
        shutil.copytree(kept, backend.store.tokens)
        well = time.monotonic()
        took = callers.await_served(well, 30)
        codes = callers.codes(began)
        slowest = max(one.seconds for one in callers.results(began))
        keep("another key under the label", well - began, took, slowest, dict(codes))
        # It needs a person, who has put the key back here.
        assert set(codes) <= RETRYABLE | {"FAILED_PRECONDITION"}, callers.texts(began)
        assert took <= WELL_AGAIN_SECONDS
        chain = (bridge.folder / "hsm-1.pem").read_bytes()
        issuing = x509.load_pem_x509_certificates(chain)[0]
        for one in callers.results():
            if one.leaf:
                leaf = x509.load_der_x509_certificate(one.leaf)
                leaf.verify_directly_issued_by(issuing)


@pytest.mark.xdist_group("pkcs11-two")
def test_of_two_issuing_cas_on_a_token_one_is_reloaded(tmp_path: Path) -> None:
    bridge = HSMBridge(tmp_path / "served")
    backend = bridge.only
    key = backend.token.new_key(label="second", key_id="02")
    chain = bridge.folder / "second.pem"
    softhsm.write_chain(key, bridge.folder / "hierarchy", chain)
    options = backend.token.options(
        pin_file=backend.pin_file,
        module=backend.shim.module,
        key_label="second",
        key_id="02",
    )
    second = {"plugin": "pkcs11", "chain": chain.name, "options": options}
    rule = {"fronts": ["linkerd"], "issuing_cas": ["second"]}
    bridge.change(issuing_cas__second=second, issuance__rules=[rule])
    with bridge, Callers(bridge) as callers:
        began = time.monotonic()
        callers.await_served(began, 30)
        signers = set(bridge.signers())
        bridge.change(**{"issuing_cas__hsm-1__options__sessions": 4})
        bridge.hang_up()
        bridge.await_reloads("ok")
        await_true(lambda: len(set(bridge.signers()) & signers) <= 1)
        callers.await_served(time.monotonic(), 60)
        codes = callers.codes(began)
        # A reload replaces the workers. gRPC's core cancels a call that arrives while
        # the old one stops (docs/faults.md): at most the one that a client has out.
        assert set(codes) <= {"OK", "CANCELLED"}, callers.texts(began)
        assert codes["CANCELLED"] <= 4, callers.texts(began)
    bridge.require_all_on_record(callers)


def _log(bridge: HSMBridge) -> str:
    file = bridge.folder / "log"
    return file.read_text("utf-8") if file.exists() else ""


def _is_refused_to_all(bridge: HSMBridge, began: int) -> bool:
    found = re.findall(r" (w\d) .*login to the token is refused", _log(bridge)[began:])
    return len(set(found)) == _WORKERS
