"""Each shape is what its reader reads, with the chain and the anchor of the plan."""

import base64
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.errors import ConfigError
from bridge.hierarchy.export.shapes import (
    SHAPES,
    ExportedCA,
    Files,
    ShapeOptions,
    VaultIssuer,
)
from bridge.spi import PluginContext
from bridge.system.files import write_new
from bridge_file import FileCA
from tests.support.parts.pki import new_key, new_root

ROOT = new_root()
REGION = ROOT.issue_ca("eu", path_length=2)
TIER = REGION.issue_ca("prod", path_length=1)
ISSUING = TIER.issue_ca("prod-1", path_length=0, key=new_key())
VAULT = VaultIssuer(
    server="https://vault.corp.example:8200",
    path="pki/sign/web",
    role="cert-manager",
    service_account="vault-issuer",
    ca_bundle=ROOT.pem,
)
OPTIONS = ShapeOptions(vault=VAULT)
ANCHORS = {
    "root": ([ISSUING, TIER, REGION], ROOT),
    "regional": ([ISSUING, TIER], REGION),
    "environment": ([ISSUING], TIER),
}


def exported(anchor: str = "root", *, with_key: bool = True) -> ExportedCA:
    below, above = ANCHORS[anchor]
    return ExportedCA(
        name="prod-1",
        chain=tuple(one.certificate for one in below),
        anchor=above.certificate,
        key=ISSUING.key if with_key else None,
    )


def files(shape: str, ca: ExportedCA, options: ShapeOptions = OPTIONS) -> Files:
    return SHAPES[shape].files(ca, options)


def document(shape: str, file: str, options: ShapeOptions = OPTIONS) -> Any:
    return yaml.safe_load(files(shape, exported(), options)[file])


def certificates(data: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(data)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(
    ("shape", "folder", "option"),
    [("istio-cacerts", "cacerts", "cacerts_folder"), ("tls", "tls", "tls_folder")],
)
def test_a_folder_is_what_the_file_backend_reads(
    tmp_path: Path, shape: str, folder: str, option: str, anchor: str
) -> None:
    ca = exported(anchor)
    write_new(tmp_path, files(shape, ca))
    opened = FileCA({option: folder}, PluginContext(name="prod-1", base=tmp_path))
    found = opened.describe()
    assert (found.certificate, *found.intermediates)[: len(ca.chain)] == ca.chain


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(
    ("shape", "file", "kind", "keys"),
    [
        (
            "istio-cacerts",
            "secret.yaml",
            "Opaque",
            ("cert-chain.pem", "ca-key.pem", "root-cert.pem"),
        ),
        (
            "linkerd-issuer",
            "secret.yaml",
            "kubernetes.io/tls",
            ("tls.crt", "tls.key", "ca.crt"),
        ),
        ("tls", "secret.yaml", "kubernetes.io/tls", ("tls.crt", "tls.key", "ca.crt")),
        (
            "ca-issuer",
            "secret.yaml",
            "kubernetes.io/tls",
            ("tls.crt", "tls.key", "ca.crt"),
        ),
    ],
)
def test_a_secret_has_chain_key_and_anchor(
    shape: str, file: str, kind: str, keys: tuple[str, str, str], anchor: str
) -> None:
    ca = exported(anchor)
    found = yaml.safe_load(files(shape, ca)[file])
    chain, key, root = (base64.b64decode(found["data"][name]) for name in keys)
    assert found["type"] == kind
    assert tuple(certificates(chain)) == ca.chain
    assert certificates(root) == [ca.anchor]
    public = load_pem_private_key(key, None).public_key()
    assert public == ca.chain[0].public_key()


NAMES = {
    "istio-cacerts": ("secret.yaml", "cacerts", "istio-system"),
    "linkerd-issuer": ("secret.yaml", "linkerd-identity-issuer", "linkerd"),
    "linkerd-trust-roots": (
        "trust-roots.yaml",
        "linkerd-identity-trust-roots",
        "linkerd",
    ),
    "tls": ("secret.yaml", "prod-1", "cert-manager"),
    "ca-issuer": ("issuer.yaml", "prod-1", "cert-manager"),
    "ca-cluster-issuer": ("secret.yaml", "prod-1", "cert-manager"),
    "vault-issuer": ("issuer.yaml", "prod-1", "cert-manager"),
}


@pytest.mark.parametrize("shape", NAMES)
def test_a_resource_stands_where_its_reader_looks_unless_told(shape: str) -> None:
    file, name, namespace = NAMES[shape]
    metadata = {"name": name, "namespace": namespace}
    assert document(shape, file)["metadata"] == metadata
    elsewhere = ShapeOptions(namespace="mesh", vault=VAULT)
    found = document(shape, file, elsewhere)["metadata"]
    assert found == metadata | {"namespace": "mesh"}


@pytest.mark.parametrize(
    ("shape", "kind"),
    [("ca-issuer", "Issuer"), ("ca-cluster-issuer", "ClusterIssuer")],
)
def test_an_issuer_of_kind_ca_names_its_secret(shape: str, kind: str) -> None:
    found = document(shape, "issuer.yaml")
    assert (found["apiVersion"], found["kind"]) == ("cert-manager.io/v1", kind)
    secret = document(shape, "secret.yaml")["metadata"]["name"]
    assert found["spec"] == {"ca": {"secretName": secret}}
    assert ("namespace" in found["metadata"]) == (kind == "Issuer")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [("vault-issuer", "Issuer"), ("vault-cluster-issuer", "ClusterIssuer")],
)
def test_an_issuer_of_kind_vault_has_path_login_and_ca(shape: str, kind: str) -> None:
    found = document(shape, "issuer.yaml")
    assert (found["apiVersion"], found["kind"]) == ("cert-manager.io/v1", kind)
    spec = found["spec"]["vault"]
    assert base64.b64decode(spec.pop("caBundle")) == ROOT.pem
    assert spec == {
        "server": "https://vault.corp.example:8200",
        "path": "pki/sign/web",
        "auth": {
            "kubernetes": {
                "role": "cert-manager",
                "mountPath": "/v1/auth/kubernetes",
                "serviceAccountRef": {"name": "vault-issuer"},
            }
        },
    }


def test_an_issuer_of_kind_vault_needs_to_know_its_vault() -> None:
    with pytest.raises(ConfigError, match="needs --vault-server, --vault-path"):
        files("vault-issuer", exported(), ShapeOptions())


@pytest.mark.parametrize("anchor", ANCHORS)
def test_a_trust_bundle_is_the_anchor_alone(anchor: str) -> None:
    ca = exported(anchor, with_key=False)
    roots = yaml.safe_load(files("linkerd-trust-roots", ca)["trust-roots.yaml"])
    bundle = yaml.safe_load(files("trust-manager", ca)["bundle.yaml"])
    cluster = yaml.safe_load(
        files("cluster-trust-bundle", ca)["cluster-trust-bundle.yaml"]
    )
    for text in (
        roots["data"]["ca-bundle.crt"],
        bundle["spec"]["sources"][0]["inLine"],
        cluster["spec"]["trustBundle"],
        files("pem", ca)["anchor.pem"].decode(),
    ):
        assert certificates(text.encode()) == [ca.anchor]
    assert bundle["apiVersion"] == "trust.cert-manager.io/v1alpha1"
    assert bundle["kind"] == "Bundle"
    assert bundle["spec"]["target"] == {"configMap": {"key": "ca-bundle.crt"}}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (ShapeOptions(), "istio.io:istiod-ca:root-cert"),
        (
            ShapeOptions(signer="corp.example/mesh", bundle="eu"),
            "corp.example:mesh:eu",
        ),
    ],
)
def test_the_name_of_a_cluster_trust_bundle_begins_with_its_signer(
    options: ShapeOptions, name: str
) -> None:
    shape = "cluster-trust-bundle"
    found = document(shape, f"{shape}.yaml", options)
    assert found["metadata"]["name"] == name
    assert found["spec"]["signerName"] == options.signer


def test_pem_and_der_are_the_same_certificates() -> None:
    ca = exported()
    pem, der = files("pem", ca), files("der", ca)
    assert certificates(pem["prod-1.pem"]) == [ca.chain[0]]
    assert tuple(certificates(pem["chain.pem"])) == ca.chain
    assert [x509.load_der_x509_certificate(one) for one in der.values()] == [
        *ca.chain,
        ca.anchor,
    ]


def test_vault_gets_the_whole_chain_and_the_key_only_if_it_has_none() -> None:
    ca = exported()
    whole = json.loads(files("vault-import", ca)["import-bundle.json"])["pem_bundle"]
    assert tuple(certificates(whole.encode())) == (*ca.chain, ca.anchor)
    key = load_pem_private_key(whole.encode(), None)
    assert key.public_key() == ca.chain[0].public_key()
    signed = files("vault-import", exported(with_key=False))
    assert [*signed] == ["set-signed.json"]
    text = json.loads(signed["set-signed.json"])["certificate"]
    assert text == (ca.chain_pem + ca.anchor_pem).decode()


def certificates_in(content: bytes) -> list[x509.Certificate]:
    """Return what a file holds, in DER or in PEM, as it is or in a text or base64."""
    if content.startswith(b"\x30"):
        return [x509.load_der_x509_certificate(content)]
    text = content.decode()
    for word in re.findall(r"[A-Za-z0-9+/=]{200,}", text):
        with contextlib.suppress(ValueError):
            text += base64.b64decode(word).decode()
    blocks = re.findall(
        r"-----BEGIN CERT.*?-----END CERTIFICATE-----",
        re.sub(r" *(?:\\n|\n) *", "\n", text),
        re.DOTALL,
    )
    return [x509.load_pem_x509_certificate(one.encode()) for one in blocks]


ABOUT_NO_CA = {"vault-issuer", "vault-cluster-issuer", "istio-crl"}
"""Vault has the CA: the issuer only says where Vault is. CRLs are no certificates."""
ANCHOR_ALONE = {"linkerd-trust-roots", "trust-manager", "cluster-trust-bundle"}


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - ABOUT_NO_CA))
def test_a_shape_has_the_anchor_and_nothing_above_it(shape: str, anchor: str) -> None:
    ca = exported(anchor)
    found = {
        one for content in files(shape, ca).values() for one in certificates_in(content)
    }
    below = set() if shape in ANCHOR_ALONE else {*ca.chain}
    assert found == {ca.anchor, *below}


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - {"vault-import"}))
def test_a_key_is_handed_out_only_where_the_shape_says_so(shape: str) -> None:
    ca = exported(with_key=False)
    if SHAPES[shape].wants_key:
        with pytest.raises(ConfigError, match="which is not in a file"):
            files(shape, ca)
    else:
        found = files(shape, exported())
        assert not any(b"PRIVATE KEY" in one for one in found.values())
        assert found == files(shape, ca)
