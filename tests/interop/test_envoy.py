"""Two Envoys speak mutual TLS with what the bridge issued through an intermediate."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from bridge.x509.algorithm import KeyAlgorithm
from tests.support.clients.istio_go import ask
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.parts import envoy
from tests.support.parts.envoy import Identity
from tests.support.parts.pki import (
    Authority,
    bundle,
    key_pem,
    new_chain,
    new_key,
    write_private,
)

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-envoy")]

_WEB = "spiffe://corp.example/ns/shop/sa/web"
_API = "spiffe://corp.example/ns/shop/sa/api"


def _issued(bridge: Bridge, folder: Path, account: str, csr: str = "p256") -> Identity:
    """Let Istio's client get a certificate; keep it as istio-agent would."""
    token = folder / f"{account}.token"
    token.write_text(bridge.token("shop", account))
    answer = ask(
        bridge.address,
        bridge.roots,
        *("-server-name", SERVER_NAME, "-token", token, "-csr", csr),
    )
    assert answer.code == "OK", answer.error
    chain = folder / f"{account}.pem"
    chain.write_text("".join(answer.chain[:-1]))
    key = write_private(folder / f"{account}.key", answer.key.encode())
    return Identity(chain=chain, key=key)


def _forged(folder: Path, issuer: Authority, *names: x509.GeneralName) -> Identity:
    """Sign a leaf that the bridge would never have signed."""
    key = new_key()
    leaf = issuer.issue_leaf(
        *names, key=key, not_before=datetime.now(UTC) - timedelta(minutes=2)
    )
    chain = folder / "forged.pem"
    chain.write_bytes(bundle(leaf, *issuer.chain))
    return Identity(chain=chain, key=write_private(folder / "forged.key", key_pem(key)))


@pytest.fixture(scope="module")
def identities(
    bridge: Bridge, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("identities")
    return {name: _issued(bridge, folder, name) for name in ("web", "api")}


@pytest.mark.parametrize("key", ["p256", "p384", "p521", "rsa4096", "ed25519"])
def test_envoy_verifies_chains_of_each_kind_of_ca_key(
    tmp_path: Path, key: KeyAlgorithm
) -> None:
    with Bridge(tmp_path / "served", ca_key=key) as bridge:
        web = _issued(bridge, tmp_path, "web", "rsa2048")
        api = _issued(bridge, tmp_path, "api")
        roots = bridge.roots
    with (
        envoy.server(tmp_path / "server", api, roots, peer=_WEB) as server,
        envoy.client(
            tmp_path / "client", web, roots, upstream=server.port, peer=_API
        ) as client,
    ):
        assert envoy.fetch(client.port) == ("hello\n", _WEB)


def _refusals(
    bridge: Bridge,
    folder: Path,
    *,
    client: Identity,
    server: Identity,
    expects: tuple[str, str] = (_WEB, _API),
) -> tuple[list[str], list[str]]:
    """Let `client` talk to `server`, which must fail; say who refused, and why."""
    with (
        envoy.server(
            folder / "server", server, bridge.roots, peer=expects[0]
        ) as serving,
        envoy.client(
            folder / "client",
            client,
            bridge.roots,
            upstream=serving.port,
            peer=expects[1],
        ) as asking,
    ):
        with pytest.raises(OSError, match=r"reset|closed|without response"):
            envoy.fetch(asking.port)
        return asking.refusals(), serving.refusals()


def test_client_from_another_root_is_refused(
    bridge: Bridge, identities: dict[str, Identity], tmp_path: Path
) -> None:
    foreign = new_chain(not_before=datetime.now(UTC) - timedelta(days=1))
    stranger = _forged(tmp_path, foreign, x509.UniformResourceIdentifier(_WEB))
    by_client, by_server = _refusals(
        bridge, tmp_path, client=stranger, server=identities["api"]
    )
    assert by_client == []
    (reason,) = by_server
    assert "unable to get local issuer certificate" in reason


def test_other_identity_of_the_same_mesh_is_refused(
    bridge: Bridge, identities: dict[str, Identity], tmp_path: Path
) -> None:
    by_client, _ = _refusals(
        bridge,
        tmp_path,
        client=identities["web"],
        server=identities["api"],
        expects=(_WEB, "spiffe://corp.example/ns/bank/sa/vault"),
    )
    (reason,) = by_client
    assert "SAN matcher" in reason


def test_leaf_alone_is_refused_so_the_intermediates_matter(
    bridge: Bridge, identities: dict[str, Identity], tmp_path: Path
) -> None:
    whole = x509.load_pem_x509_certificates(identities["web"].chain.read_bytes())
    alone = tmp_path / "alone.pem"
    alone.write_bytes(bundle(whole[0]))
    _, by_server = _refusals(
        bridge,
        tmp_path,
        client=Identity(chain=alone, key=identities["web"].key),
        server=identities["api"],
    )
    (reason,) = by_server
    assert "unable to get local issuer certificate" in reason


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(
            [x509.UniformResourceIdentifier("spiffe://evil.example/ns/shop/sa/web")],
            id="URI of another trust domain",
        ),
        pytest.param(
            [x509.UniformResourceIdentifier(_WEB), x509.DNSName("www.evil.example")],
            id="DNS name outside, beside a good URI",
        ),
    ],
)
def test_leaf_outside_the_constraints_is_refused_by_envoy_itself(
    bridge: Bridge,
    identities: dict[str, Identity],
    tmp_path: Path,
    names: list[x509.GeneralName],
) -> None:
    # With the stolen issuing key, and any peer under the roots welcome: what is left
    # is what BoringSSL makes of the name constraints above the leaf.
    _, by_server = _refusals(
        bridge,
        tmp_path,
        client=_forged(tmp_path, bridge.stolen_ca, *names),
        server=identities["api"],
        expects=("", _API),
    )
    (reason,) = by_server
    assert "permitted subtree violation" in reason
