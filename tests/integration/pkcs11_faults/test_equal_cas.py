"""Two equal issuing CAs in tokens, the first at fault; and one alone that is down."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.clients.callers import RETRYABLE, Callers, Result
from tests.support.harness.faults import MEASURES, WELL_AGAIN_SECONDS, keep
from tests.support.harness.hsm import Backend, HSMBridge
from tests.support.harness.workers import await_true

_EACH = 3
_PAUSE_SECONDS = 0.1
"""Of each client, after an answer: far below the highest rate, also in a busy CI."""
_FAULT_SECONDS = 8.0
_DOWN_SECONDS = 60.0 if MEASURES else 8.0


def refuse(_: HSMBridge, first: Backend) -> None:
    first.refuse()


def stall(_: HSMBridge, first: Backend) -> None:
    first.stall()


def stop(bridge: HSMBridge, first: Backend) -> None:
    bridge.stop_signers(first)


@pytest.mark.xdist_group("pkcs11-equal")
@pytest.mark.parametrize("fault", [refuse, stall, stop])
def test_an_equal_ca_takes_the_calls_of_one_that_fails(
    tmp_path: Path, fault: Callable[[HSMBridge, Backend], None]
) -> None:
    bridge = HSMBridge(tmp_path / "served", names=("a", "b"))
    first = bridge.backends["a"]
    with bridge, Callers(bridge, _EACH, _PAUSE_SECONDS) as callers:
        callers.await_served(time.monotonic(), 30)
        # Both signer processes start at once, and either may be the first.
        await_true(
            lambda: issuers_since(bridge, callers, time.monotonic() - 1) == {"a"}, 90
        )
        began = time.monotonic()
        fault(bridge, first)
        time.sleep(_FAULT_SECONDS)
        results = callers.results(began)
        codes = callers.codes(began)
        slowest = max(one.seconds for one in results)
        last_by_first = max(
            (
                one.asked
                for one in served(callers, began)
                if issuer_of(bridge, one) == "a"
            ),
            default=began,
        )
        name = f"the first of two equal CAs: {fault.__name__}"
        keep(name, _FAULT_SECONDS, last_by_first - began, slowest, dict(codes))
        assert set(codes) <= RETRYABLE, callers.texts(began)
        failed = codes.total() - codes["OK"]
        assert failed < codes.total() / 100, callers.texts(began)
        # From its second second on the calls do not wait for the first.
        late = [one for one in results if one.asked > began + 1.5]
        assert statistics.median(one.seconds for one in late) < 0.5
        for front in ("istio", "linkerd"):
            assert any(one.front == front for one in late)
        first.shim.clear()
        # One that failed twice in 30 s, its start included, gets calls a minute later.
        await_true(
            lambda: "a" in issuers_since(bridge, callers, time.monotonic() - 1), 90
        )
    bridge.require_all_on_record(callers)


@pytest.mark.xdist_group("pkcs11-down")
def test_the_only_ca_is_down_and_callers_hear_of_it_at_once(tmp_path: Path) -> None:
    bridge = HSMBridge(tmp_path / "served")
    with bridge, Callers(bridge, _EACH, _PAUSE_SECONDS) as callers:
        callers.await_served(time.monotonic(), 30)
        rows = len(bridge.rows())
        began = time.monotonic()
        bridge.only.stall()
        time.sleep(_DOWN_SECONDS)
        results, codes = callers.results(began), callers.codes(began)
        waited = statistics.median(one.seconds for one in results)
        keep("the only CA is down", _DOWN_SECONDS, 0.0, waited, dict(codes))
        assert set(codes) <= RETRYABLE, callers.texts(began)
        assert waited <= (0.1 if MEASURES else 0.5)
        status, body = bridge.get("/readyz")
        assert status == 200
        told = json.loads(body)
        assert told["ready"] is True
        warning = told["workers"]["w0"]["warnings"]["issuing CAs"]
        assert "hsm-1 fails, and gets no calls" in warning
        assert bridge.metric("meshca_breaker_open", issuing_ca="hsm-1") == 1
        written = len(bridge.rows()) - rows
        # Calls that were out when it began have their own rows.
        assert written < 10 * _DOWN_SECONDS
        bridge.only.shim.clear()
        well = time.monotonic()
        assert callers.await_served(well, 30) <= WELL_AGAIN_SECONDS
    bridge.require_all_on_record(callers)


def served(callers: Callers, since: float) -> list[Result]:
    return [one for one in callers.results(since) if one.leaf]


def issuers_since(bridge: HSMBridge, callers: Callers, since: float) -> set[str]:
    return {issuer_of(bridge, one) for one in served(callers, since)}


def issuer_of(bridge: HSMBridge, result: Result) -> str:
    leaf = x509.load_der_x509_certificate(result.leaf)
    for name in bridge.backends:
        chain = (bridge.folder / f"{name}.pem").read_bytes()
        issuing = x509.load_pem_x509_certificates(chain)[0]
        try:
            leaf.verify_directly_issued_by(issuing)
        except Exception:  # noqa: BLE001, S112 - any failure means another issuer
            continue
        return name
    raise AssertionError("none of the issuing CAs signed it")
