"""A served bridge with the PKI engine and Transit, from its start to its ledger."""

import base64
import time
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.clients.callers import Callers
from tests.support.harness.vault import VaultBridge
from tests.support.parts.vault import Product, Server
from tests.support.parts.vault_mounts import PKI, Transit


@pytest.mark.parametrize(
    ("default", "namespaces", "purposes"),
    [
        ("pki", {}, {"probe", "serving", "workload"}),
        # For some namespaces of Linkerd alone, a probe has another name.
        ("transit", {"namespaces": ["shop"]}, {"probe", "workload"}),
    ],
)
def test_a_leaf_of_the_pki_engine_is_on_record_with_its_window(
    vault_product: Product,
    tmp_path: Path,
    default: str,
    namespaces: dict[str, list[str]],
    purposes: set[str],
) -> None:
    engines = {"transit": Transit, "pki": PKI}
    with Server(tmp_path / "server", vault_product, storage="inmem") as server:
        bridge = VaultBridge(tmp_path / "bridge", server, engines=engines)
        rule = {"fronts": ["linkerd"], **namespaces, "issuing_cas": ["pki"]}
        bridge.change(issuance__issuing_cas=[default], issuance__rules=[rule])
        with bridge:
            with Callers(bridge, each=1) as callers:
                callers.await_served(time.monotonic(), 30)
            checked = bridge.run("check")
            assert checked.returncode == 0, checked.stdout + checked.stderr
            bridge.require_all_on_record(callers)
            rows = bridge.rows(kind="issued", issuing_ca="pki")
    assert {row["purpose"] for row in rows} == purposes
    for row in rows:
        leaf = x509.load_der_x509_certificate(base64.b64decode(row["certificate"]))
        begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        assert row["serial"] == f"{leaf.serial_number:x}"
        assert row["not_before"] == begins.timestamp()
        assert row["not_after"] == ends.timestamp()
    assert not bridge.rows(kind="unknown")
