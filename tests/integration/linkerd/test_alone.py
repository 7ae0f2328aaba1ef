"""Linkerd's front without Istio's: other configurations, and what their rows say."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge.dataplanes.planes import DataPlane
from bridge.hierarchy.export import write
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.server.linkerd import METHOD, SERVICE
from bridge.spiffe import TrustDomain
from bridge.system.clock import system_clock
from tests.support.clients.istio_raw import MAIN, MAIN_ECDSA, MOST_WAIT_SECONDS
from tests.support.clients.linkerd_raw import Certify, channel, new_csr, token
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true
from tests.support.parts import netports
from tests.vectors.generate_linkerd import IDENTITY

PROXIES = 1000
ISSUERS = (MAIN, MAIN_ECDSA)


def alone(folder: Path, awaits: str = "/readyz", **overrides: Any) -> Bridge:
    return Bridge(
        folder / "served",
        data_plane=DataPlane.LINKERD,
        fronts=("linkerd",),
        issuers=ISSUERS,
        overrides=overrides,
        awaits=awaits,
    )


def linkerd(**changed: Any) -> Mapping[str, Any]:
    return {"linkerd": changed}


def test_a_bridge_for_linkerd_alone_is_ready_and_issues(tmp_path: Path) -> None:
    health = netports.address()
    admin = {"listen": netports.address(), "grpc_listen": health}
    bridge = alone(tmp_path, admin=admin)
    bridge.admin = admin["listen"]
    with bridge, Certify(bridge) as certify, grpc.insecure_channel(health) as channel:
        assert certify.ask().names == [x509.DNSName(IDENTITY)]
        assert bridge.get("/ping") == (200, "pong\n")
        assert bridge.get("/ready") == (200, "ok\n")
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            asked = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(asked, timeout=MOST_WAIT_SECONDS).status == 1
        # What is counted under Istio's names is Istio's.
        assert bridge.metric("citadel_server_csr_count") == 0
        assert bridge.metric("meshca_requests_total", front="linkerd", code="OK") == 1
        assert bridge.metric("grpc_server_handled_total", grpc_code="OK") == 1
        assert bridge.metric("issuer_cert_ttl_seconds") > 0
        shown = bridge.run("check")
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "DNS b.a.serviceaccount.identity.linkerd.corp.example" in shown.stdout


def test_workers_serve_it_behind_one_admin_address(tmp_path: Path) -> None:
    with alone(tmp_path, workers=2) as bridge:
        for _ in range(4):  # each connection goes to one of them
            with Certify(bridge) as certify:
                assert certify.ask().names == [x509.DNSName(IDENTITY)]
        assert bridge.get("/ping") == (200, "pong\n")
        assert bridge.get("/ready") == (200, "ok\n")
        assert bridge.metric("meshca_requests_total", front="linkerd", code="OK") == 4


def test_row_1_nobody_gets_anything_before_an_issuing_ca_has_proven_itself(
    tmp_path: Path,
) -> None:
    # The chain does not permit this mesh's names, which its probe finds out.
    fronts = linkerd(trust_domain="other.example")
    every = {"refusals_per_second": 100}  # by default a second call has no row
    with ExitStack() as stack:
        bridge = alone(tmp_path, "/ping", fronts=fronts, ledger=every)
        stack.enter_context(bridge)
        # The parent answers before its worker listens.
        await_true(lambda: "issuing CAs" in bridge.get("/readyz")[1])
        certify = stack.enter_context(Certify(bridge))
        for call in (certify.ask, partial(certify.send, b"")):  # before all else
            answer = call()
            assert answer.code == "UNAVAILABLE"
            assert answer.text == "cert issuer not ready yet"
            row = certify.new_outcome()
            assert (row["kind"], row["rule"]) == ("failed", "linkerd.ready")
        assert bridge.get("/ready") == (500, "not ready\n")
        status, body = bridge.get("/readyz")
        assert status == 503
        assert "issuing CAs" in body


def test_row_6_a_chain_that_ends_too_soon(tmp_path: Path) -> None:
    bridge = alone(tmp_path, "/ping")  # it can issue nothing, so it is not ready
    shutil.rmtree(bridge.folder / "hierarchy")
    spec = ThrowawaySpec(
        trust_domains=(TrustDomain("corp.example"),),
        issuing_ttl=timedelta(days=8),
    )
    # It begins five minutes before it is made.
    age = spec.issuing_ttl - timedelta(minutes=6, seconds=55)
    write(make(spec, clock=lambda: system_clock() - age), bridge.folder / "hierarchy")
    with ExitStack() as stack:
        stack.enter_context(bridge)
        await_true(lambda: "can issue nothing" in bridge.get("/readyz")[1])
        certify = stack.enter_context(Certify(bridge))
        # Before the names in the CSR are looked at (row 7), and after it is read.
        answer = certify.ask(csr=new_csr())
        assert answer.code == "UNAVAILABLE"
        assert answer.text == (
            "issuer.expiring: the issuing CA's chain expires too soon for a useful "
            "certificate"
        )
        row = certify.new_outcome()
        assert (row["kind"], row["rule"]) == ("failed", "issuer.expiring")
        assert certify.ask(csr=b"no CSR").code == "INVALID_ARGUMENT"


def test_row_15_the_keys_of_the_cluster_cannot_be_had(tmp_path: Path) -> None:
    nowhere = {"verify": "jwks", "url": "https://127.0.0.1:1/", "issuer": MAIN.issuer}
    clusters = [{"name": "Kubernetes", "tokens": nowhere}]
    with ExitStack() as stack:
        # A bridge without them is not ready, and its parent answers before its worker.
        bridge = stack.enter_context(alone(tmp_path, "/ping", clusters=clusters))
        await_true(lambda: "token keys" in bridge.get("/readyz")[1])
        certify = stack.enter_context(Certify(bridge))
        answer = certify.ask()
        assert answer.code == "INTERNAL"
        assert answer.text.startswith(f"error validating token for {IDENTITY}: ")
        assert "127.0.0.1" not in answer.text
        row = certify.new_outcome()
        assert (row["kind"], row["rule"]) == ("failed", "linkerd.review")
        assert row["status"] == "INTERNAL"


@pytest.mark.parametrize("connections", [1, 200])
def test_a_thousand_proxies_at_once_get_their_certificate_at_the_first_try(
    tmp_path: Path, connections: int
) -> None:
    # Through the sidecar they come on one connection, without it each on its own.
    request = CertifyRequest(
        identity=IDENTITY,
        token=token().encode(),
        certificate_signing_request=new_csr(IDENTITY),
    ).SerializeToString()
    with alone(tmp_path) as bridge, ExitStack() as stack:
        own = [stack.enter_context(channel(bridge)) for _ in range(connections)]
        calls = [each.unary_unary(METHOD) for each in own]
        # A proxy sets no deadline, and comes back only after 10 s if it is refused.
        waiting = [
            call.future(request, wait_for_ready=True)
            for call in islice(cycle(calls), PROXIES)
        ]
        replies = [CertifyResponse.FromString(one.result()) for one in waiting]
        serials = {
            x509.load_der_x509_certificate(reply.leaf_certificate).serial_number
            for reply in replies
        }
        assert len(serials) == PROXIES
        assert bridge.metric("meshca_shed_total") == 0
