"""A certificate that differs from what was asked is on record, and goes to nobody."""

import json
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from tests.integration.vault_faults.support import REFUSED, on_each_product
from tests.support.clients.callers import Callers
from tests.support.harness.faults import PATIENCE_SECONDS, keep
from tests.support.harness.vault import ROLE, VaultBridge
from tests.support.harness.workers import await_true
from tests.support.parts.faulty_proxy import Exchange, FaultyProxy, Request, on
from tests.support.parts.pki import new_key
from tests.support.parts.vault import Product, Server
from tests.support.parts.vault_mounts import PKI

pytestmark = on_each_product("vault-misissued")
_END = "%Y-%m-%dT%H:%M:%SZ"
Change = Callable[[PKI, VaultBridge, Request], Request]


def with_body(request: Request, **fields: object) -> Request:
    return replace(request, body=json.dumps({**request.json, **fields}).encode())


def another_key(_: PKI, __: VaultBridge, request: Request) -> Request:
    nobody = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = nobody.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.PEM)
    return with_body(request, csr=csr.decode("ascii"))


def another_name(_: PKI, __: VaultBridge, request: Request) -> Request:
    uri = "spiffe://corp.example/ns/shop/sa/another"
    return with_body(request, uri_sans=[uri], alt_names="")


def another_window(_: PKI, __: VaultBridge, request: Request) -> Request:
    asked = request.json
    if "ttl" in asked:  # Vault
        seconds = int(asked["ttl"].removesuffix("s"))
        return with_body(request, ttl=f"{seconds - 120}s")
    ends = datetime.strptime(asked["not_after"], _END)  # noqa: DTZ007
    shorter = ends - timedelta(minutes=2)
    return with_body(request, not_after=shorter.strftime(_END))


def another_usage(engine: PKI, _: VaultBridge, request: Request) -> Request:
    other = replace(engine, role="another")
    other.write_role(**ROLE, key_usage=["DigitalSignature", "CertSign"])
    return replace(request, path=request.path.replace("/sign/mesh", "/sign/another"))


def another_issuer(engine: PKI, bridge: VaultBridge, request: Request) -> Request:
    hierarchy, chain = bridge.folder / "hierarchy", bridge.folder / "another.pem"
    issuer = engine.add_issuer(hierarchy, chain)
    return replace(request, path=request.path.replace(engine.issuer, issuer))


CHANGES: Mapping[str, Change] = {
    "key": another_key,
    "name": another_name,
    "window": another_window,
    "usage": another_usage,
    "issuer": another_issuer,
}


@dataclass
class Altered:
    """Asks the server for something else than the bridge did."""

    change: Change
    engine: PKI
    bridge: VaultBridge
    leaves: list[bytes] = field(default_factory=list)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    """Makes another role or issuer: exchanges have a thread each."""

    def __call__(self, exchange: Exchange) -> None:
        with self.one_at_a_time:
            changed = self.change(self.engine, self.bridge, exchange.request)
        token = self.engine.server.root_token
        headers = {**changed.headers, "x-vault-token": token}
        exchange.request = replace(changed, headers=headers)
        answer = exchange.forward()
        leaf = x509.load_pem_x509_certificate(
            answer.json["data"]["certificate"].encode()
        )
        self.leaves.append(leaf.public_bytes(Encoding.DER))
        exchange.send(answer)


def test_a_certificate_that_differs_stops_its_ca_and_no_equal_one(
    vault_product: Product, tmp_path: Path
) -> None:
    names = (*CHANGES, "well")
    with (
        Server(tmp_path / "server", vault_product) as server,
        FaultyProxy(server.url) as proxy,
    ):
        bridge = VaultBridge(
            tmp_path / "bridge",
            server,
            addresses=[proxy.url],
            engines=dict.fromkeys(names, PKI),
        )
        with bridge, Callers(bridge) as callers:
            for name, after in pairwise(names):
                stop(bridge, callers, proxy, name, after)
            assert "well" not in {
                row["issuing_ca"] for row in bridge.rows(kind="stopped")
            }
        bridge.require_all_on_record(callers)


def stop(
    bridge: VaultBridge, callers: Callers, proxy: FaultyProxy, name: str, after: str
) -> None:
    """Have a CA mis-issue, and await that the one after it serves."""
    callers.await_served(time.monotonic(), PATIENCE_SECONDS)
    engine = bridge.engines[name]
    assert isinstance(engine, PKI)
    altered = Altered(CHANGES[name], engine, bridge)
    before, began = len(callers.results()), time.monotonic()
    with proxy.fault(altered, on(f"/{engine.mount}/.*/sign/")):
        await_true(lambda: bridge.rows(kind="stopped", issuing_ca=name))
        stopped = time.monotonic()
        took = callers.await_served(stopped, PATIENCE_SECONDS)
        later = callers.results(stopped + took)
    answered = callers.results()[before:]
    codes = Counter(one.code for one in answered)
    slowest = max(one.seconds for one in answered)
    row = f"{bridge.server.product}: another {name}: {after} serves"
    keep(row, stopped - began, took, slowest, dict(codes))
    assert set(codes) <= REFUSED, callers.texts(began)
    assert codes["FAILED_PRECONDITION"] >= 1
    assert {one.code for one in later} <= {"OK"}

    def kept() -> set[bytes]:
        rows = bridge.rows(kind="unknown", issuing_ca=name)
        return {b64decode(row.get("certificate", "")) for row in rows}

    assert altered.leaves
    # An answer to another call may still be on its way to the ledger.
    await_true(lambda: set(altered.leaves) <= kept())
    assert not set(altered.leaves) & set(callers.leaves())
    assert bridge.metric("meshca_latched", kind="issuing_ca") == len(
        bridge.rows(kind="stopped")
    )
