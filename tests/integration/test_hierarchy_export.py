"""A real OpenBao takes what is exported for it, and knows the whole chain then."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from bridge.hierarchy.export.shapes import SHAPES, ExportedCA, ShapeOptions
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spiffe import TrustDomain
from bridge.x509.algorithm import CAPublicKey
from tests.support.parts.pki import Authority, new_root
from tests.support.parts.vault import Server

pytestmark = pytest.mark.xdist_group("hierarchy-export")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("export") / "server"
    with Server(folder, storage="inmem") as running:
        yield running


def mounted(server: Server, name: str) -> str:
    """Mount a PKI engine."""
    server.api.post(f"sys/mounts/{name}", type="pki")
    return name


def region() -> Authority:
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    return new_root(not_before=start).issue_ca("eu", path_length=1)


def body(ca: ExportedCA, file: str) -> dict[str, str]:
    files = SHAPES["vault-import"].files(ca, ShapeOptions())
    found: dict[str, str] = json.loads(files[file])
    return found


def chain_of_default(server: Server, mount: str) -> list[x509.Certificate]:
    found = server.api.get(f"{mount}/issuer/default")["ca_chain"]
    return [x509.load_pem_x509_certificate(one.encode()) for one in found]


def test_a_bundle_brings_the_key_and_the_whole_chain(server: Server) -> None:
    mount = mounted(server, "imported")
    above = region()
    ca = above.issue_ca("prod", path_length=0)
    path = (ca.certificate, above.certificate, above.root)
    exported = ExportedCA(name="prod", chain=path[:2], anchor=path[2], key=ca.key)
    sent = body(exported, "import-bundle.json")
    answer = server.api.post(f"{mount}/issuers/import/bundle", **sent)
    assert len(answer["imported_issuers"]) == len(path)
    assert len(answer["imported_keys"]) == 1
    named = {one: key for one, key in answer["mapping"].items() if key}
    server.api.post(f"{mount}/config/issuers", default=next(iter(named)))
    assert chain_of_default(server, mount) == [*path]


def test_a_key_that_stays_gets_its_certificate_and_the_whole_chain(
    server: Server,
) -> None:
    mount = mounted(server, "signed")
    made = server.api.post(
        f"{mount}/intermediate/generate/internal", common_name="prod", key_type="ec"
    )
    csr = x509.load_pem_x509_csr(made["csr"].encode())
    key = csr.public_key()
    assert isinstance(key, CAPublicKey)
    spec = ThrowawaySpec(trust_domains=(TrustDomain("corp.example"),))
    tiers = make(spec, issuing_key=key)
    path = tuple(
        tier.certificate for tier in (tiers.issuing, tiers.intermediate, tiers.root)
    )
    exported = ExportedCA(name="prod", chain=path[:2], anchor=path[2])
    sent = body(exported, "set-signed.json")
    server.api.post(f"{mount}/intermediate/set-signed", **sent)
    assert chain_of_default(server, mount) == [*path]
