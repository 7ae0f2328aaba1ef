"""An HSM and a Vault that are declared equals, the first of them lost; both orders."""

import os
import signal
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from tests.support.clients.callers import RETRYABLE, Callers
from tests.support.harness.faults import keep
from tests.support.harness.hsm import Backend, add_equal_hsm
from tests.support.harness.vault import VaultBridge
from tests.support.harness.workers import await_true
from tests.support.parts.vault import PRODUCTS, Product, Server
from tests.support.parts.vault_mounts import PKI, Transit

_EACH = 3
_PAUSE_SECONDS = 0.1
"""Of each client, after an answer: far below the highest rate, also in a busy CI."""
_FAULT_SECONDS = 5.0
_HSM = "hsm"
Part = tuple[Callable[[], object], Callable[[], object]]
"""Begins and ends a fault."""


def stalled_hsm(_: Server, backend: Backend) -> Part:
    return backend.stall, backend.shim.clear


def sealed_vault(server: Server, _: Backend) -> Part:
    return server.seal, server.unseal


def stopped_vault(server: Server, _: Backend) -> Part:
    return (
        lambda: os.kill(server.pid, signal.SIGSTOP),
        lambda: os.kill(server.pid, signal.SIGCONT),
    )


ROWS = tuple(
    (product, *row)
    for product in PRODUCTS
    for row in (
        ("pki", [_HSM, "pki"], stalled_hsm),
        ("transit", [_HSM, "transit"], stalled_hsm),
        ("pki", ["pki", _HSM], sealed_vault),
        ("pki", ["pki", _HSM], stopped_vault),
        ("transit", ["transit", _HSM], stopped_vault),
    )
)


@pytest.mark.parametrize(
    ("product", "engine", "order", "fault"),
    [
        pytest.param(*row, marks=pytest.mark.xdist_group(f"vault-equal-{number % 4}"))
        for number, row in enumerate(ROWS)
    ],
    ids=[
        f"{product}, {' before '.join(order)}, {fault.__name__}"
        for product, _, order, fault in ROWS
    ],
)
def test_calls_go_to_the_second_of_hsm_and_vault(
    tmp_path: Path,
    product: Product,
    engine: str,
    order: list[str],
    fault: Callable[[Server, Backend], Part],
) -> None:
    kinds: dict[str, type[PKI | Transit]] = {"pki": PKI, "transit": Transit}
    with Server(tmp_path / "server", product) as server:
        bridge = VaultBridge(
            tmp_path / "bridge", server, engines={engine: kinds[engine]}
        )
        backend = add_equal_hsm(bridge, _HSM, order)
        begin, end = fault(server, backend)
        first = order[0]
        with bridge, Callers(bridge, _EACH, _PAUSE_SECONDS) as callers:
            callers.await_served(time.monotonic(), 30)
            # A signer process takes longer to start than Vault to answer, and may fail
            # its first probes on a busy machine.
            await_true(lambda: issuers_since(bridge, callers, order) == {first})
            await_true(lambda: all(is_well(bridge, name) for name in order))
            began = time.monotonic()
            begin()
            try:
                time.sleep(_FAULT_SECONDS)
                results, codes = callers.results(began), callers.codes(began)
            finally:
                end()
            slowest = max(one.seconds for one in results)
            name = f"{product}: {' before '.join(order)}: {fault.__name__}"
            keep(name, _FAULT_SECONDS, 0.0, slowest, dict(codes))
            assert set(codes) <= RETRYABLE, callers.texts(began)
            failed = codes.total() - codes["OK"]
            assert failed < codes.total() / 100, callers.texts(began)
            late = [one for one in results if one.asked > began + 2.5]
            assert statistics.median(one.seconds for one in late) < 0.5
            assert {one.front for one in late} == {"istio", "linkerd"}
            # One that failed twice in 30 s, its start included, gets calls later.
            is_open = partial(bridge.metric, "meshca_breaker_open", issuing_ca=first)
            await_true(lambda: is_open() == 0)
        bridge.require_all_on_record(callers)


def is_well(bridge: VaultBridge, name: str) -> bool:
    signed = bridge.metric("meshca_backend_calls_total", issuing_ca=name, result="ok")
    return signed > 0 and not bridge.metric("meshca_breaker_open", issuing_ca=name)


def issuers_since(bridge: VaultBridge, callers: Callers, order: list[str]) -> set[str]:
    found = callers.results(time.monotonic() - 1)
    return {issuer_of(bridge, one.leaf, order) for one in found if one.leaf}


def issuer_of(bridge: VaultBridge, leaf: bytes, names: list[str]) -> str:
    certificate = x509.load_der_x509_certificate(leaf)
    for name in names:
        chain = (bridge.folder / f"{name}.pem").read_bytes()
        try:
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(chain))
        except (ValueError, InvalidSignature):
            continue
        return name
    raise AssertionError("none of the issuing CAs signed it")
