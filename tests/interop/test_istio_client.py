"""Istio's own CA client (Go) asks the bridge, as istio-agent does."""

import itertools
import re
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tests.support.clients.istio_go import Answer, ask
from tests.support.harness.real_process import SERVER_NAME, Bridge

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-istio-client")]

_WEB = "spiffe://corp.example/ns/shop/sa/web"
_ELEMENT = re.compile(
    r"(?:-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+?"
    r"-----END CERTIFICATE-----\n)+"
)


def _ask(bridge: Bridge, token: str, folder: Path, *arguments: str | Path) -> Answer:
    file = folder / "istio-token"
    file.write_text(token)
    return ask(
        bridge.address,
        bridge.roots,
        *("-server-name", SERVER_NAME, "-token", file, "-identity", _WEB),
        *arguments,
    )


def _good(bridge: Bridge, folder: Path, *arguments: str | Path) -> Answer:
    answer = _ask(bridge, bridge.token("shop", "web"), folder, *arguments)
    assert answer.code == "OK", answer.error
    return answer


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


# Of each policy, what the client offers in its extension supported_groups: P-256;
# P-256 and P-384; X25519MLKEM768.
_POLICIES = {
    "fips-140-2": "000a0004 00020017",
    "fips-140-3": "000a0006 000400170018",
    "pqc": "000a0004 000211ec",
}


@pytest.mark.parametrize("policy", _POLICIES)
def test_a_client_under_a_compliance_policy_is_served(
    bridge: Bridge, tmp_path: Path, policy: str
) -> None:
    token = tmp_path / "istio-token"
    token.write_text(bridge.token("shop", "web"))
    arguments = ("-server-name", SERVER_NAME, "-token", token)
    answer = ask(bridge.address, bridge.roots, *arguments, compliance=policy)
    assert answer.code == "OK", answer.error
    # And the policy is at work: this is what such a client offers.
    hellos: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_take_hellos, args=(listener, hellos))
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        refused = ask(address, bridge.roots, *arguments, compliance=policy)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert refused.code == "Unavailable"
    assert hellos
    assert all(bytes.fromhex(_POLICIES[policy]) in hello for hello in hellos)


def _take_hellos(listener: socket.socket, hellos: list[bytes]) -> None:
    with suppress(OSError):  # the listener is shut down
        while True:
            peer, _ = listener.accept()
            with peer:
                hellos += filter(None, [peer.recv(16 * 1024)])


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
@pytest.mark.parametrize("csr", ["rsa2048", "p256"])
def test_reply_is_leaf_then_each_intermediate_then_the_root_bundle(
    bridge: Bridge, tmp_path: Path, csr: str, algorithm: str
) -> None:
    token = bridge.token("shop", "web", algorithm=algorithm)
    answer = _ask(bridge, token, tmp_path, "-csr", csr)
    assert answer.code == "OK", answer.error
    assert all(_ELEMENT.fullmatch(element) for element in answer.chain)
    *path, roots = [
        x509.load_pem_x509_certificates(element.encode()) for element in answer.chain
    ]
    assert [len(element) for element in path] == [1, 1, 1]
    assert roots == x509.load_pem_x509_certificates(bridge.roots.read_bytes())
    certificates = [element[0] for element in path] + roots
    for below, above in itertools.pairwise(certificates):
        below.verify_directly_issued_by(above)
    key = load_pem_private_key(answer.key.encode(), password=None).public_key()
    assert _spki(certificates[0]) == key.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


def test_openssl_accepts_the_chain(bridge: Bridge, tmp_path: Path) -> None:
    answer = _good(bridge, tmp_path)
    (tmp_path / "leaf.pem").write_text(answer.chain[0])
    (tmp_path / "between.pem").write_text("".join(answer.chain[1:-1]))
    (tmp_path / "roots.pem").write_text(answer.chain[-1])
    for purpose in ("sslserver", "sslclient"):
        done = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", purpose),
                *("-CAfile", "roots.pem", "-untrusted", "between.pem", "leaf.pem"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "leaf.pem: OK\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["-ttl", "86401"], "InvalidArgument", id="ttl above the maximum"),
        pytest.param(["-cluster", "elsewhere"], "Unauthenticated", id="other cluster"),
    ],
)
def test_refusal_of_a_request_is_final_and_on_record(
    bridge: Bridge,
    tmp_path: Path,
    arguments: list[str],
    code: str,
) -> None:
    before = bridge.metric("meshca_requests_total")
    rows = len(bridge.rows(kind="refused"))
    answer = _ask(bridge, bridge.token("shop", "web"), tmp_path, *arguments)
    assert answer.code == code, answer.error
    assert answer.chain == []
    # Istio's client asks up to five times where a status says that this may help.
    assert bridge.metric("meshca_requests_total") - before == 1
    assert bridge.await_rows(rows + 1, kind="refused")[-1]["rule"]


def test_istios_own_metrics_count_what_its_client_got(
    bridge: Bridge, tmp_path: Path
) -> None:
    names = ("citadel_server_csr_count", "citadel_server_success_cert_issuance_count")
    before = [bridge.metric(name) for name in names]
    _good(bridge, tmp_path)
    assert [bridge.metric(name) for name in names] == [count + 1 for count in before]
