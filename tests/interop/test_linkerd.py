"""Linkerd's published API asks, and what linkerd2-proxy is made of takes the answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bridge.dataplanes.planes import DataPlane
from bridge.hierarchy.throwaway import ThrowawaySpec, Tier, make
from bridge.spiffe import TrustDomain
from bridge.x509.algorithm import KeyAlgorithm
from tests.support.clients.linkerd_go import Answer, ask_bridge, name_of
from tests.support.harness.real_process import Bridge
from tests.support.parts.pki import (
    Authority,
    bundle,
    key_pem,
    new_key,
    new_root,
    write_private,
)
from tests.support.parts.proxies import Proxy, verifiers

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-linkerd")]

_KEYS: tuple[KeyAlgorithm, ...] = (
    "p256",
    "p384",
    "p521",
    "rsa2048",
    "rsa4096",
    "ed25519",
)
_WEB, _API = name_of("web"), name_of("api")
_DNS = x509.DNSName
with_each_verifier = pytest.mark.parametrize("verifier", sorted(verifiers()))


@dataclass(frozen=True, slots=True)
class Mesh:
    """Two proxies that a bridge gave their certificates."""

    roots: bytes
    web: Answer
    api: Answer

    def proxy(self, account: str) -> Proxy:
        return Proxy.of(self.web if account == "web" else self.api, self.roots)


def _mesh(bridge: Bridge, folder: Path, roots: bytes) -> Mesh:
    web, api = (ask_bridge(bridge, folder, account) for account in ("web", "api"))
    assert (web.code, api.code) == ("OK", "OK"), (web.error, api.error)
    return Mesh(roots, web, api)


@pytest.fixture(scope="module", params=_KEYS)
def mesh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mesh:
    folder = tmp_path_factory.mktemp(request.param)
    with Bridge(folder / "served", ca_key=request.param, fronts=["linkerd"]) as bridge:
        return _mesh(bridge, folder, bridge.roots.read_bytes())


@with_each_verifier
def test_proxy_takes_what_each_kind_of_issuing_key_signed(
    mesh: Mesh, verifier: str
) -> None:
    judge = verifiers()[verifier]
    assert judge.refusal(mesh.proxy("web"), _WEB) == ""
    assert judge.refusal(mesh.proxy("api"), _API) == ""


@with_each_verifier
def test_two_proxies_hold_mutual_tls(mesh: Mesh, verifier: str) -> None:
    judge = verifiers()[verifier]
    web, api = mesh.proxy("web"), mesh.proxy("api")
    outcome = judge.handshake(server=api, client=web, name=_API)
    assert (outcome.refusal, outcome.peer) == ("", _WEB)
    assert outcome.version == "TLSv1.3"
    back = judge.handshake(server=web, client=api, name=_WEB)
    assert (back.refusal, back.peer) == ("", _API)


def _served(
    folder: Path, ca: Authority, more: Mapping[str, Any] | None = None
) -> Bridge:
    """Serve with this issuing CA in place of a throwaway one."""
    files = {
        "chain": folder / "ca-chain.pem",
        "key": write_private(folder / "ca.key", ca.key_pem()),
        "roots": folder / "ca-roots.pem",
    }
    files["chain"].write_bytes(bundle(*ca.chain))
    files["roots"].write_bytes(bundle(ca.root))
    place = {
        "issuing_cas": {
            "file-1": {
                "chain": str(files["chain"]),
                "options": {"key": str(files["key"])},
            }
        },
        "trust_anchors": str(files["roots"]),
    }
    overrides = {**place, **(more or {})}
    return Bridge(folder / "served", overrides=overrides, fronts=["linkerd"])


def _root(**change: Any) -> Authority:
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    return new_root("Root", **{"not_before": start, **change})


def _permitted(*names: x509.GeneralName) -> x509.NameConstraints:
    return x509.NameConstraints(list(names), None)


def _direct() -> Authority:
    return _root().issue_ca("Issuing CA", path_length=0)


def _regional() -> Authority:
    return _root().issue_ca("Regional CA").issue_ca("Issuing CA", path_length=0)


def _long() -> Authority:
    ca = _root()
    for number in range(6):
        ca = ca.issue_ca(f"CA {number}")
    return ca


def _constrained_issuing() -> Authority:
    permitted = _permitted(_DNS("identity.linkerd.corp.example"))
    return _root().issue_ca("Issuing CA", constraints=permitted)


def _constrained_regional() -> Authority:
    both = _permitted(_DNS("corp.example"), _DNS(".corp.example"))
    return _root().issue_ca("Regional CA", constraints=both).issue_ca("Issuing CA")


def _constrained_to_uris() -> Authority:
    uris = _permitted(x509.UniformResourceIdentifier("corp.example"))
    return _root().issue_ca("Issuing CA", constraints=uris)


def _excluding() -> Authority:
    constraints = x509.NameConstraints(None, [_DNS("other.example")])
    return _root().issue_ca("Issuing CA", constraints=constraints)


def _under_rsa() -> Authority:
    # As linkerd2's own test of a corporate root (test/integration/rsa-ca) has it.
    return _root(key=new_key("rsa2048")).issue_ca("Issuing CA")


def _mixed() -> Authority:
    root = _root(key=new_key("p521"))
    regional = root.issue_ca("Regional CA", key=new_key("rsa3072"))
    return regional.issue_ca("Issuing CA", key=new_key("ed25519"))


def _throwaway() -> Authority:
    planes = frozenset({DataPlane.LINKERD})
    domains = (TrustDomain("corp.example"),)
    made = make(ThrowawaySpec(trust_domains=domains, data_planes=planes))
    root, regional = (_authority(tier) for tier in (made.root, made.intermediate))
    return _authority(made.issuing, regional, root)


def _authority(tier: Tier, *above: Authority) -> Authority:
    assert tier.key is not None
    return Authority(tier.certificate, tier.key, above)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(_direct, id="issuing CA under the root"),
        pytest.param(_regional, id="regional CA between"),
        pytest.param(_long, id="six CAs below the root"),
        pytest.param(_constrained_issuing, id="issuing CA held to the names of pods"),
        pytest.param(_constrained_regional, id="regional CA held to a domain"),
        pytest.param(_constrained_to_uris, id="URI constraint, which no DNS name has"),
        pytest.param(_excluding, id="another domain excluded"),
        pytest.param(_under_rsa, id="P-256 under an RSA root"),
        pytest.param(_mixed, id="Ed25519 under RSA under P-521"),
        pytest.param(_throwaway, id="hierarchy throwaway --data-plane linkerd"),
    ],
)
def test_proxies_speak_under_chains_of_each_shape(tmp_path: Path, shape: Any) -> None:
    ca = shape()
    with _served(tmp_path, ca) as bridge:
        mesh = _mesh(bridge, tmp_path, bundle(ca.root))
    for judge in verifiers().values():
        assert judge.refusal(mesh.proxy("web"), _WEB) == ""
        outcome = judge.handshake(mesh.proxy("api"), mesh.proxy("web"), _API)
        assert (outcome.refusal, outcome.peer) == ("", _WEB)


def test_name_that_rustls_would_refuse_is_refused_by_the_bridge(
    tmp_path: Path,
) -> None:
    excluded = x509.NameConstraints(None, [_DNS(_API)])
    ca = _root().issue_ca("Issuing CA", constraints=excluded)
    with _served(tmp_path, ca) as bridge:
        web = ask_bridge(bridge, tmp_path, "web")
        intents = len(bridge.rows(kind="intent"))
        api = ask_bridge(bridge, tmp_path, "api")
        assert len(bridge.rows(kind="intent")) == intents
    assert web.code == "OK", web.error
    assert (api.code, api.leaf) == ("FailedPrecondition", b""), api.error
    for judge in verifiers().values():
        assert judge.refusal(Proxy.of(web, bundle(ca.root)), _WEB) == ""
    forged = _forged(ca, _API)
    for judge in verifiers().values():
        assert "NameConstraintViolation" in judge.refusal(forged, _API)


def _forged(ca: Authority, name: str) -> Proxy:
    """Sign with the bridge's own key what the bridge would not have."""
    key = new_key()
    start = datetime.now(UTC) - timedelta(minutes=2)
    leaf = ca.issue_leaf(_DNS(name), key=key, not_before=start)
    return Proxy(bundle(ca.root), bundle(leaf, *ca.chain), key_pem(key))


def test_name_of_dns_comes_before_the_spiffe_id(tmp_path: Path) -> None:
    # A server takes the first DNS or URI name for its client's identity.
    front = {"fronts": {"linkerd": {"spiffe_uri": True}}}
    ca = _regional()
    with _served(tmp_path, ca, front) as bridge:
        mesh = _mesh(bridge, tmp_path, bundle(ca.root))
    found = mesh.web.certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    spiffe = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web")
    assert list(found.value) == [_DNS(_WEB), spiffe]
    for judge in verifiers().values():
        outcome = judge.handshake(mesh.proxy("api"), mesh.proxy("web"), _API)
        assert (outcome.refusal, outcome.peer) == ("", _WEB)
