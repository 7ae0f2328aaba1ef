"""Istio's second port over the wire: each call judges its client certificate again.

TLS verifies a certificate once, when the connection begins, and by looser rules.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from bridge.issuance.call import Issued
from bridge.metrics.instruments import Metrics
from bridge.server.istio import METHOD
from bridge.server.server import Server
from bridge.snapshot.trust_bundle import TrustBundle
from tests.support.clients.istio_raw import request
from tests.support.harness.core import CALLER, World, csr
from tests.support.harness.workers import await_true
from tests.support.parts.pki import Authority, Key, bundle, key_pem, new_key, new_root

pytestmark = pytest.mark.xdist_group("client-certificates")

HOUR = timedelta(hours=1)
SERVER_NAME = "meshca.example"
SECOND_PORT = {
    "fronts": {
        "istio": {
            "mtls_listen": "127.0.0.1:0",
            "mtls_identities": [{"namespaces": ["shop"]}],
            "mtls_max_age": "30m",
            "tls": {"dns_names": [SERVER_NAME]},
        }
    },
    "limits": {"threads": 2},
}


@dataclass
class SecondPort:
    """A server in this process, and connections to its second port."""

    world: World
    server: Server
    metrics: Metrics

    @property
    def closed(self) -> float:
        """How many connections were closed for their certificate."""
        name, labels = "meshca_connections_closed_total", {"reason": "certificate"}
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def connect(self, chain: bytes, key: Key) -> Callable[[], str]:
        """Return a call on one connection: the status, and the text of a refusal."""
        credentials = grpc.ssl_channel_credentials(self._roots(), key_pem(key), chain)
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        address = self.server.mtls_address
        call = grpc.secure_channel(address, credentials, options).unary_unary(METHOD)

        def ask() -> str:
            self.world.await_fed()
            try:
                call(request(), timeout=20)
            except grpc.RpcError as error:
                return f"{error.code().name} {error.details()}"
            return "OK"

        return ask

    def forged(self, issuer: Authority, key: Key) -> Callable[[], str]:
        """Connect with a certificate that a CA issued beside the ledger."""
        now = self.world.clock()
        name = x509.UniformResourceIdentifier(CALLER)
        leaf = issuer.issue_leaf(
            name, key=key, not_before=now - HOUR, not_after=now + HOUR
        )
        return self.connect(bundle(leaf, *issuer.chain), key)

    def _roots(self) -> bytes:
        return (self.world.folder / "roots.pem").read_bytes()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondPort]:
    folder: Path = tmp_path_factory.mktemp("world")
    with World(folder, overrides=SECOND_PORT) as world:
        world.clock.now = datetime.now(UTC)
        metrics = Metrics("1", world.clock)
        server = Server(
            world.config,
            world.issuance,
            issue_serving=world.own.issue_serving,
            # TLS goes on with what it had, as for a connection of before.
            anchors_pem=(folder / "roots.pem").read_bytes,
            metrics=metrics,
            clock=world.clock,
            problems=dict,
            admin_address="127.0.0.1:0",
        )
        server.start()
        yield SecondPort(world, server, metrics)
        server.drain(0)


@pytest.fixture
def connected(port: SecondPort) -> Callable[[], str]:
    key = new_key()
    issued: Issued = port.world.issue(pem=csr(key=key))
    chain = (issued.leaf_pem + "".join(issued.chain_pem)).encode()
    ask = port.connect(chain, key)
    assert ask() == "OK"
    return ask


def test_a_connection_does_not_outlive_its_trust_anchor(
    port: SecondPort, connected: Callable[[], str]
) -> None:
    before, closed = port.world.snapshot, port.closed
    port.world.snapshot = replace(
        before, bundle=TrustBundle([new_root("other").certificate])
    )
    try:
        told = connected()
    finally:
        port.world.snapshot = before
    assert told.startswith("UNAUTHENTICATED certificate.chain: ")
    await_true(lambda: port.closed == closed + 1)
    assert connected() == "OK"


def test_a_connection_does_not_outlive_its_certificate(
    port: SecondPort, connected: Callable[[], str]
) -> None:
    now, closed = port.world.clock.now, port.closed
    port.world.clock.now = now + HOUR + timedelta(seconds=1)
    try:
        told = connected()
    finally:
        port.world.clock.now = now
    assert told.startswith("UNAUTHENTICATED certificate.expired: ")
    await_true(lambda: port.closed == closed + 1)


def test_a_renewal_does_not_outlive_the_proof_by_a_token(
    port: SecondPort, connected: Callable[[], str]
) -> None:
    now, closed = port.world.clock.now, port.closed
    port.world.clock.now = now + timedelta(minutes=30, seconds=1)
    try:
        told = connected()
    finally:
        port.world.clock.now = now
    assert told.startswith("PERMISSION_DENIED renewal.age: ")
    assert connected() == "OK"
    assert port.closed == closed, "the certificate itself is good"


def cases(world: World) -> dict[str, tuple[Authority, Key]]:
    ours = world.authorities["a"]
    excluded = x509.NameConstraints(None, [x509.UniformResourceIdentifier("example")])
    loose: Any = ours.above[-1].issue_ca("loose", constraints=excluded, path_length=0)
    return {
        "certificate.key": (ours, new_key("rsa1024")),
        "certificate.constraints": (loose, new_key()),
        "renewal.unknown": (ours, new_key()),
    }


@pytest.mark.parametrize(
    "rule", ["certificate.key", "certificate.constraints", "renewal.unknown"]
)
def test_what_tls_takes_is_held_to_our_own_rules(port: SecondPort, rule: str) -> None:
    told = port.forged(*cases(port.world)[rule])()
    assert told.startswith(f"UNAUTHENTICATED {rule}: ")
