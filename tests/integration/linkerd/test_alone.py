"""Linkerd's front without Istio's: other configurations, and what their rows say."""

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
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
from tests.support.clients.istio_raw import MAIN, MAIN_ECDSA, MOST_WAIT_SECONDS
from tests.support.clients.linkerd_raw import SUFFIX, Certify, channel, new_csr, token
from tests.support.harness.real_process import MESHCA, Bridge
from tests.support.harness.workers import await_true
from tests.support.parts import netports
from tests.support.parts.pki import bundle, new_root
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


CLUSTER = {
    "name": "Kubernetes",
    "tokens": {"verify": "jwks", "file": "jwks.json", "issuer": MAIN.issuer},
}


def put(bridge: Bridge, constraints: x509.NameConstraints) -> None:
    """Put another chain in the place of the bridge's own."""
    began = datetime.now(UTC) - timedelta(days=1)
    intermediate = new_root(not_before=began).issue_ca("region", path_length=1)
    issuing = intermediate.issue_ca("issuing", path_length=0, constraints=constraints)
    bridge.chain.write_bytes(bundle(*issuing.chain))
    bridge.roots.write_bytes(bundle(issuing.root))
    (bridge.folder / "hierarchy/issuing.key").write_bytes(issuing.key_pem())


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


def test_the_command_gets_a_certificate_as_a_proxy_would(tmp_path: Path) -> None:
    with alone(tmp_path) as bridge:
        shown = bridge.folder / "token"
        command: list[str | Path] = [MESHCA, "request", "--front", "linkerd"]
        command += ["--address", bridge.linkerd_address, "--roots", bridge.roots]
        command += ["--token-file", shown, "--identity", IDENTITY]
        for held, status, text in (
            (token(), 0, f"leaf {IDENTITY}"),
            (token(account="other"), 1, "requested identity did not match provided"),
        ):
            shown.write_text(held)
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == status, done.stderr
            assert text in done.stdout + done.stderr


def test_the_demo_shows_both_meshes() -> None:
    done = subprocess.run(
        [MESHCA, "demo"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        "leaf spiffe://corp.example/ns/shop/sa/web",
        "leaf web.shop.serviceaccount.identity.linkerd.corp.example",
        "constraint.permitted",
        "requested identity did not match provided token",
        "every check passed",
    ):
        assert text in done.stdout


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
    with ExitStack() as stack:
        bridge = stack.enter_context(alone(tmp_path, "/ping", fronts=fronts))
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
    bridge = alone(tmp_path)
    shutil.rmtree(bridge.folder / "hierarchy")
    spec = ThrowawaySpec(
        trust_domains=(TrustDomain("corp.example"),),
        issuing_ttl=timedelta(minutes=6, seconds=55),  # 5 minutes are past
    )
    write(make(spec), bridge.folder / "hierarchy")
    with bridge, Certify(bridge) as certify:
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
    with alone(tmp_path, clusters=clusters) as bridge, Certify(bridge) as certify:
        answer = certify.ask()
        assert answer.code == "INTERNAL"
        assert answer.text.startswith(f"error validating token for {IDENTITY}: ")
        assert "127.0.0.1" not in answer.text
        row = certify.new_outcome()
        assert (row["kind"], row["rule"]) == ("failed", "linkerd.review")
        assert row["status"] == "INTERNAL"


def test_names_are_held_to_the_dns_constraints_of_the_chain(tmp_path: Path) -> None:
    # Row 17, where the built-in signs what every proxy refuses.
    secret = f"secret{SUFFIX}"
    excluded = x509.NameConstraints(None, [x509.DNSName(secret)])
    bridge = alone(tmp_path, clusters=[{**CLUSTER, "namespaces": ["*"]}])
    put(bridge, excluded)
    with bridge, Certify(bridge) as certify:
        identity = f"web.{secret}"
        answer = certify.ask(
            identity=identity, csr=new_csr(identity), credential=token("secret")
        )
        assert answer.code == "FAILED_PRECONDITION"
        assert answer.text.startswith("constraint.excluded: ")
        row = certify.new_outcome()
        assert (row["kind"], row["rule"]) == ("refused", "constraint.excluded")
        assert row["caller"] == "spiffe://corp.example/ns/secret/sa/web"
        assert not bridge.rows(kind="intent", front="linkerd")
        assert certify.ask().names == [x509.DNSName(IDENTITY)]


def test_a_reload_changes_what_linkerds_callers_are_held_to(tmp_path: Path) -> None:
    with alone(tmp_path) as bridge, Certify(bridge) as certify:
        assert certify.ask().code == "OK"
        text = bridge.configuration.read_text()
        bridge.configuration.write_text(text.replace("identity.l5d.io", "another"))
        await_true(lambda: bridge.metric("meshca_config_generation") == 2)
        # The worker of the old configuration may serve its connections for a moment.
        await_true(lambda: certify.ask().code == "FAILED_PRECONDITION")
        await_true(lambda: bridge.rows(rule="token.audience"))
        assert certify.ask(credential=token(audiences=["another"])).code == "OK"


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
