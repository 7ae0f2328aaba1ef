"""The backends `vault-pki` and `vault-transit` under the conformance tests.

Each kind of key is made inside a real server, of each product that there is.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.spi import Latch, PluginContext
from bridge.testing import Backend, IssuingCAConformance
from bridge_vault import VaultPKICA, VaultTransitCA
from tests.support.parts import vault_mounts
from tests.support.parts.vault import Product, Server
from tests.support.parts.vault_mounts import PKI, AppRole, Transit

KINDS = ("p256", "p384", "rsa2048", "ed25519")
NO_SECRECY = (
    "the serving process logs in by itself, so SecretID and token are in its memory"
)


@dataclass(frozen=True)
class Part:
    """A server, and the login of the issuing CA under test."""

    server: Server
    approle: AppRole

    @contextmanager
    def away(self) -> Iterator[None]:
        self.server.stop()
        try:
            yield
        finally:
            self.server.start()

    def restart(self) -> None:
        """Have tokens be gone, as after a restart with another store of tokens."""
        self.server.restart()
        self.server.api.post(f"sys/leases/revoke-prefix/auth/{self.approle.mount}")


@contextmanager
def key_made_anew(transit: Transit, kind: str) -> Iterator[None]:
    """Have another key under the same name, and the right one in another mount."""
    api, aside = transit.server.api, f"{transit.mount}-set-aside"
    api.post("sys/remount", **{"from": transit.mount, "to": aside})
    _await_mount(transit.server, aside)
    api.post(f"sys/mounts/{transit.mount}", type="transit")
    path = f"{transit.mount}/keys/{transit.key}"
    api.post(path, type=vault_mounts.TRANSIT_KEYS[kind])
    try:
        yield
    finally:
        vault_mounts.unmount(transit)
        api.post("sys/remount", **{"from": aside, "to": transit.mount})
        _await_mount(transit.server, transit.mount)


@contextmanager
def version_withdrawn(transit: Transit) -> Iterator[None]:
    """Have the key sign with a later version alone."""
    transit.rotate()
    transit.configure(min_encryption_version=2)
    try:
        yield
    finally:
        transit.configure(min_encryption_version=0)


def _await_mount(server: Server, mount: str) -> None:
    while f"{mount}/" not in server.api.get("sys/mounts"):
        pass


@pytest.fixture(scope="module")
def server(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that these tests harm, one after the other."""
    folder = tmp_path_factory.mktemp("harmed") / "server"
    with Server(folder, vault_product) as found:
        yield found


@pytest.fixture(scope="module")
def hierarchy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vault_mounts.write_hierarchy(tmp_path_factory.mktemp("pki") / "hierarchy")


def _part(server: Server, rules: Mapping[str, tuple[str, ...]]) -> Part:
    return Part(server, AppRole.make(server, vault_mounts.write_policy(server, rules)))


def _secrets(folder: Path) -> dict[str, bytes]:
    return {"SecretID": (folder / "secret_id").read_bytes().strip()}


def _context(folder: Path, chain: Path) -> PluginContext:
    latch = Latch(folder / "latch.json")
    return PluginContext(name="seoul-vault", base=folder, chain=chain, latch=latch)


@pytest.mark.xdist_group("vault-conformance")
@pytest.mark.parametrize("kind", KINDS)
class TestVaultPKICA(IssuingCAConformance):
    @pytest.fixture
    def backend(
        self, server: Server, hierarchy: Path, tmp_path: Path, kind: str
    ) -> Backend:
        pki = PKI.make(server, hierarchy, tmp_path / "chain.pem", kind)
        part = _part(server, pki.rules)
        return Backend(
            factory=VaultPKICA,
            options=pki.options(part.approle.login(tmp_path / "secret_id")),
            context=_context(tmp_path, pki.chain),
            backdate=timedelta(minutes=1),
            secrets=_secrets(tmp_path),
            stall=server.stalled,
            away=part.away,
            restart=part.restart,
            cannot={
                "other_key": "an issuer is named by its ID, which has one key for ever",
                "other_version": "an issuer of the PKI engine has no versions",
                "memory": NO_SECRECY,
            },
        )


@pytest.mark.xdist_group("vault-conformance")
@pytest.mark.parametrize("kind", KINDS)
class TestVaultTransitCA(IssuingCAConformance):
    @pytest.fixture
    def backend(
        self, server: Server, hierarchy: Path, tmp_path: Path, kind: str
    ) -> Backend:
        transit = Transit.make(server, hierarchy, tmp_path / "chain.pem", kind)
        part = _part(server, transit.rules)
        return Backend(
            factory=VaultTransitCA,
            options=transit.options(part.approle.login(tmp_path / "secret_id")),
            context=_context(tmp_path, transit.chain),
            secrets=_secrets(tmp_path),
            stall=server.stalled,
            away=part.away,
            restart=part.restart,
            other_key=lambda: key_made_anew(transit, kind),
            other_version=lambda: version_withdrawn(transit),
            cannot={"memory": NO_SECRECY},
        )
