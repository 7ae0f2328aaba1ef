"""What is exported of a ceremony's folder, and what is refused."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from cryptography import x509

from bridge.errors import ConfigError
from bridge.hierarchy.export.shapes import ShapeOptions
from bridge.hierarchy.export.source import (
    ClusterExport,
    ca_files,
    cluster_files,
    read_key,
)
from bridge.hierarchy.keys import LocalKey
from bridge.hierarchy.schema import Loaded
from bridge.spi import Signer
from tests.support.parts.cluster_pki import FILE
from tests.support.parts.hierarchy_file import NOW, loaded
from tests.support.parts.pki import key_pem, new_key, new_root, write_private

CAS = {"root": new_root("root", not_before=NOW)}
CAS["eu"] = CAS["root"].issue_ca("eu", path_length=1)
CAS["prod"] = CAS["eu"].issue_ca("prod", path_length=0)
for purpose in ("kubernetes", "etcd", "front-proxy"):
    CAS[f"prod-{purpose}"] = CAS["root"].issue_ca(purpose, path_length=0)


def certificate(name: str) -> x509.Certificate:
    return CAS[name].certificate


def nobody(what: str) -> str:
    raise AssertionError(f"asked for {what}")


def exported(
    name: str,
    shape: str,
    file: Loaded,
    secret: Callable[[str], str] = nobody,
    crls: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, bytes]:
    return ca_files(
        *(file, name, shape, ShapeOptions()),
        certificates=certificate,
        secret=secret,
        crls={**crls}.get,
    )


def in_folder(folder: Path, **changes: Any) -> Loaded:
    """Return the hierarchy file of a folder that has the key of `prod`."""
    (folder / "keys").mkdir()
    write_private(folder / "keys/prod.key", CAS["prod"].key_pem())
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return loaded({**FILE, **given}, folder / "hierarchy.yaml")


@pytest.mark.parametrize(
    ("anchor", "chain"),
    [("root", ["prod", "eu"]), ("eu", ["prod"]), ("prod", ["prod"])],
)
def test_a_chain_ends_below_the_anchor_of_the_plan(
    anchor: str, chain: list[str]
) -> None:
    file = loaded({"cas.prod.anchor": anchor})
    found = exported("prod", "pem", file)
    assert found["anchor.pem"] == CAS[anchor].pem
    assert found["chain.pem"] == b"".join(CAS[one].pem for one in chain)


def test_a_key_in_a_file_is_handed_out(tmp_path: Path) -> None:
    found = exported("prod", "istio-cacerts", in_folder(tmp_path))
    assert found["cacerts/ca-key.pem"] == CAS["prod"].key_pem()


def test_an_encrypted_key_is_read_with_its_passphrase(tmp_path: Path) -> None:
    file = in_folder(tmp_path)
    path = tmp_path / "keys/prod.key"
    write_private(path, CAS["prod"].key_pem(b"sesame"))
    found = exported("prod", "tls", file, lambda _: "sesame")
    assert found["tls/tls.key"] == CAS["prod"].key_pem()
    with pytest.raises(ConfigError, match="expected a private key in PEM"):
        read_key(path, lambda _: "open")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("us", "pem", "us: expected a name under cas: root, eu, prod"),
        ("root", "tls", "it has the purpose none, it signs CAs"),
        ("eu", "vault-import", "only that of an issuing CA of a mesh may leave"),
        ("prod-kubernetes", "ca-issuer", "it has the purpose kubernetes"),
        ("prod-etcd", "istio-cacerts", "it has the purpose etcd"),
    ],
)
def test_no_key_but_that_of_a_mesh_is_handed_out(
    tmp_path: Path, name: str, shape: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        exported(name, shape, in_folder(tmp_path))


def test_another_key_than_that_of_the_certificate_is_refused(tmp_path: Path) -> None:
    file = in_folder(tmp_path)
    write_private(tmp_path / "keys/prod.key", key_pem(new_key()))
    with pytest.raises(ConfigError, match="its key is not that of its certificate"):
        exported("prod", "tls", file)


def test_a_key_elsewhere_leaves_the_shapes_without_one(tmp_path: Path) -> None:
    csr = {"backend": "csr", "path": "prod.csr", "algorithm": "p256"}
    file = in_folder(tmp_path, cas__prod__key=csr)
    with pytest.raises(ConfigError, match="which is not in a file"):
        exported("prod", "tls", file)
    assert [*exported("prod", "vault-import", file)] == ["set-signed.json"]


@contextmanager
def keys(name: str) -> Iterator[Signer]:
    yield LocalKey(CAS[name].key)


def issued(file: Loaded, cluster: str = "prod", **more: Any) -> dict[str, bytes]:
    return cluster_files(
        file,
        ClusterExport(cluster=cluster, layout="kubeadm", **more),
        certificates=certificate,
        keys=keys,
        clock=lambda: NOW,
    )


def test_a_cluster_gets_the_files_of_all_its_nodes() -> None:
    found = issued(loaded(FILE))
    assert {name.partition("/")[0] for name in found} == {"cp-1", "worker-1"}
    assert found["cp-1/pki/ca.crt"] == CAS["prod-kubernetes"].pem
    assert found["cp-1/pki/etcd/ca.crt"] == CAS["prod-etcd"].pem
    assert found["cp-1/pki/front-proxy-ca.crt"] == CAS["prod-front-proxy"].pem


def test_one_node_is_issued_for_alone() -> None:
    found = issued(loaded(FILE), nodes=("worker-1",))
    assert {name.partition("/")[0] for name in found} == {"worker-1"}
    own = {"cp-1": {"ip": ["10.0.0.11"]}, "cp-2": {"ip": ["10.0.0.12"]}}
    second = issued(
        loaded({**FILE, "certificates.prod.control_planes": own}), nodes=("cp-2",)
    )
    assert {name.partition("/")[0] for name in second} == {"cp-2"}
    assert "cp-2/super-admin.conf" not in second
    with pytest.raises(ConfigError, match="w9: expected a name under its nodes: cp-1"):
        issued(loaded(FILE), nodes=("w9",))


def test_tokens_of_a_running_cluster_stay_good() -> None:
    old = new_key()
    found = issued(loaded(FILE), account_key=old)
    assert found["cp-1/pki/sa.key"] == key_pem(old)
    assert issued(loaded(FILE))["cp-1/pki/sa.key"] != key_pem(old)


@pytest.mark.parametrize("ca", ["prod-kubernetes", "prod-etcd", "prod-front-proxy"])
def test_the_common_root_takes_no_clients(ca: str) -> None:
    file = loaded({**FILE, f"cas.{ca}.anchor": "root"})
    message = rf"cas\.{ca}\.anchor: expected none \(found root\).*O=system:masters"
    with pytest.raises(ConfigError, match=message):
        issued(file)


def test_an_unknown_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match="us: expected a name under certificates"):
        issued(loaded(FILE), "us")


CRLS = {name: f"CRL of {name}\n".encode() for name in ("root", "eu", "prod")}


def test_istio_is_given_the_crl_of_each_ca_of_the_path(tmp_path: Path) -> None:
    file = in_folder(tmp_path)
    found = exported("prod", "istio-crl", file, crls=CRLS)
    content = CRLS["prod"] + CRLS["eu"] + CRLS["root"]
    assert found["ca-crl.pem"] == content
    manifest = yaml.safe_load(found["configmap.yaml"])
    assert manifest["metadata"] == {"name": "istio-ca-crl"}
    assert manifest["data"] == {"ca-crl.pem": content.decode()}
    folder = exported("prod", "istio-cacerts", file, crls=CRLS)
    assert folder["cacerts/ca-crl.pem"] == content


@pytest.mark.parametrize(
    ("changes", "missing", "says"),
    [
        ({}, "eu", "prod: no CRL that is not overdue of eu, and Envoy refuses every"),
        ({"cas__prod__anchor": "eu"}, "root", "prod: its anchor eu is not the root"),
    ],
    ids=["one without", "a regional anchor"],
)
def test_crls_that_shut_every_peer_out_are_not_handed_out(
    tmp_path: Path, changes: dict[str, Any], missing: str, says: str
) -> None:
    file = in_folder(tmp_path, **changes)
    crls = {name: data for name, data in CRLS.items() if name != missing}
    with pytest.raises(ConfigError, match=says):
        exported("prod", "istio-crl", file, crls=crls)
    assert "cacerts/ca-crl.pem" not in exported(
        "prod", "istio-cacerts", file, crls=crls
    )
