"""What Vault holds and permits is taken away and put back: nobody restarts the bridge.

All rows have one server and one bridge, one after the other.
"""

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography import x509

from tests.integration.vault_faults.support import (
    REFUSED,
    Ground,
    ground,
    on_each_product,
)
from tests.support.harness.vault import ROLE
from tests.support.parts.vault import Product, Server

pytestmark = on_each_product("vault-rights")


_MINUTE = 70.0
"""The role is looked at each minute."""


@pytest.fixture(scope="module")
def shared(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("bridge")
    with (
        Server(folder / "server", vault_product) as server,
        ground(folder / "b", server) as made,
    ):
        yield made


@pytest.mark.parametrize("front", ["istio", "linkerd"])
def test_an_engine_that_is_moved_away_is_used_once_it_is_back(
    shared: Ground, front: str
) -> None:
    bridge, api = shared.bridge, shared.server.api
    engine = (bridge.pki if front == "istio" else bridge.transit).mount
    away = f"away-{engine}"
    shared.survive(
        f"mount gone ({engine.partition('-')[0]})",
        lambda: move(shared.server, engine, away),
        lambda: move(shared.server, away, engine),
        front=front,
        allowed=REFUSED,
    )
    assert api.get("sys/mounts")


def test_an_issuer_that_may_not_sign_is_used_once_it_may(shared: Ground) -> None:
    pki = shared.bridge.pki
    shared.survive(
        "issuer read-only",
        lambda: pki.change_issuer(usage="read-only"),
        lambda: pki.change_issuer(usage="read-only,issuing-certificates,crl-signing"),
        front="istio",
        allowed=REFUSED,
    )


def test_another_default_issuer_changes_nothing(shared: Ground) -> None:
    bridge = shared.bridge
    hierarchy, chain = bridge.folder / "hierarchy", bridge.folder / "other.pem"
    other = bridge.pki.add_issuer(hierarchy, chain)
    shared.is_unmoved("default issuer switched", lambda: bridge.pki.set_default(other))
    bridge.pki.set_default(bridge.pki.issuer)


def test_a_widened_role_signs_for_nobody_until_it_is_put_back(shared: Ground) -> None:
    bridge = shared.bridge
    shared.survive(
        "role widened",
        lambda: bridge.pki.write_role(**ROLE, allow_any_name=True),
        lambda: bridge.pki.write_role(**ROLE),
        front="istio",
        allowed=REFUSED,
        patience=_MINUTE,
    )
    assert not bridge.rows(kind="stopped")


def test_added_aia_urls_are_no_mis_issuance(shared: Ground) -> None:
    bridge = shared.bridge
    shared.survive(
        "AIA URL added",
        lambda: bridge.pki.write_urls("http://ca.example/issuing.crt"),
        bridge.pki.write_urls,
        front="istio",
        allowed=REFUSED,
    )
    assert not bridge.rows(kind="stopped")
    # Calls that were signed before it was found: the certificates are on record.
    signed = [row for row in bridge.rows(kind="unknown") if row["rule"] == "vault.role"]
    leaves = [
        x509.load_der_x509_certificate(b64decode(row["certificate"])) for row in signed
    ]
    assert leaves
    aia = x509.AuthorityInformationAccess.oid
    assert all(leaf.extensions.get_extension_for_oid(aia) for leaf in leaves)


def test_a_rotated_key_changes_nothing(shared: Ground) -> None:
    shared.is_unmoved("key rotated (Transit)", shared.bridge.transit.rotate)


def test_a_version_that_may_not_sign_is_used_once_it_may(shared: Ground) -> None:
    transit = shared.bridge.transit
    transit.rotate()
    shared.survive(
        "pinned version not permitted (min_encryption_version)",
        lambda: transit.configure(min_encryption_version=2),
        lambda: transit.configure(min_encryption_version=0),
        front="linkerd",
        allowed=REFUSED,
    )


def test_a_deleted_issuer_is_replaced_by_a_reload(shared: Ground) -> None:
    # An issuer that is imported again has another ID, which the options name.
    bridge, pki = shared.bridge, shared.bridge.pki

    def end() -> None:
        chain = pki.chain.read_text("ascii")
        path = f"{pki.mount}/issuers/import/cert"
        mapping = shared.server.api.post(path, pem_bundle=chain)["mapping"]
        (issuer,) = (one for one, key in mapping.items() if key)
        again = replace(pki, issuer=issuer)
        again.write_role(**ROLE)
        bridge.permit(again.rules | bridge.transit.rules)
        bridge.change(issuing_cas__pki__options__issuer=issuer)
        bridge.hang_up()

    # A reload replaces the workers, and gRPC's core cancels a call that arrives while
    # the old one stops (docs/faults.md): at most the one that a client has out.
    began = shared.survive(
        "issuer deleted",
        pki.delete_issuer,
        end,
        front="istio",
        allowed=REFUSED | {"CANCELLED"},
    )
    assert shared.callers.codes(began)["CANCELLED"] <= 6


def move(server: Server, engine: str, to: str) -> None:
    server.api.call("POST", "sys/remount", {"from": engine, "to": to})
