"""The port where a client certificate is the credential, asked by Istio's own client.

istio-agent on a virtual machine renews like this (`PROV_CERT`): it shows the
certificate that it has, and no token.
"""

from pathlib import Path

import pytest
from cryptography import x509

from bridge.x509.algorithm import KeyAlgorithm
from tests.support.clients.istio_go import Answer, ask
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.parts.pki import (
    bundle,
    write_private,
)

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-certificate")]

_VM = "spiffe://corp.example/ns/shop/sa/vm"


def _show(bridge: Bridge, chain: Path, key: Path, *arguments: str | Path) -> Answer:
    return ask(
        bridge.mtls_address,
        bridge.roots,
        *("-server-name", SERVER_NAME, "-cert", chain, "-key", key, *arguments),
    )


def _first(bridge: Bridge, folder: Path) -> tuple[Path, Path]:
    """Get the first certificate with a token, as a machine is set up."""
    token = folder / "token"
    token.write_text(bridge.token("shop", "vm"))
    options = ("-server-name", SERVER_NAME, "-token", token)
    answer = ask(bridge.address, bridge.roots, *options)
    assert answer.code == "OK", answer.error
    chain = folder / "cert-chain.pem"
    chain.write_text("".join(answer.chain[:-1]))
    bridge.await_archived(answer.leaf.serial_number)
    return chain, write_private(folder / "key.pem", answer.key.encode())


@pytest.mark.parametrize("cluster", ["Kubernetes", "of-no-registry", ""])
def test_machine_renews_with_its_certificate_whatever_cluster_it_names(
    bridge: Bridge, tmp_path: Path, cluster: str
) -> None:
    chain, key = _first(bridge, tmp_path)
    before = len(bridge.rows(kind="intent", credential="certificate"))
    answer = _show(bridge, chain, key, "-cluster", cluster)
    assert answer.code == "OK", answer.error
    names = answer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.UniformResourceIdentifier(_VM)]
    assert answer.chain[1:] == _pem_elements(bridge)
    rows = bridge.await_rows(before + 1, kind="intent", credential="certificate")
    assert rows[-1]["caller"] == _VM
    assert int(rows[-1]["serial"], 16) == answer.leaf.serial_number


@pytest.mark.parametrize("key", ["p521", "rsa4096", "ed25519"])
def test_certificate_under_each_kind_of_ca_key_gets_in(
    tmp_path: Path, key: KeyAlgorithm
) -> None:
    with Bridge(tmp_path / "served", ca_key=key) as bridge:
        chain, own_key = _first(bridge, tmp_path)
        answer = _show(bridge, chain, own_key)
    assert answer.code == "OK", answer.error
    assert answer.chain[1:] == _pem_elements(bridge)


def _pem_elements(bridge: Bridge) -> list[str]:
    between = x509.load_pem_x509_certificates(bridge.chain.read_bytes())
    roots = x509.load_pem_x509_certificates(bridge.roots.read_bytes())
    return [bundle(one).decode() for one in between] + [bundle(*roots).decode()]
