"""The files of a cluster's nodes: which there are, and whom they trust."""

import base64

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.hierarchy.kubernetes_pki.issue import issue_all
from bridge.hierarchy.kubernetes_pki.layouts import component_files, kubeadm_files
from bridge.x509.algorithm import new_key
from tests.support.parts.cluster_pki import cluster, new_issuers
from tests.support.parts.pki import NOW

CLUSTER = cluster()
ISSUERS = new_issuers(NOW)
LEAVES = issue_all(CLUSTER, ISSUERS, clock=lambda: NOW)
ACCOUNTS = new_key("p256")
KUBEADM = kubeadm_files(CLUSTER, ISSUERS, LEAVES, ACCOUNTS)
COMPONENTS = component_files(CLUSTER, ISSUERS, LEAVES, ACCOUNTS)
LAYOUTS = {"kubeadm": KUBEADM, "components": COMPONENTS}
PAIRS = (
    "apiserver",
    "apiserver-etcd-client",
    "apiserver-kubelet-client",
    "etcd/healthcheck-client",
    "etcd/peer",
    "etcd/server",
    "front-proxy-client",
    "kubelet",
)


def test_kubeadm_gets_every_file_that_it_looks_for_and_no_key_of_a_ca() -> None:
    own = {name.removeprefix("cp-1/") for name in KUBEADM if name.startswith("cp-1/")}
    assert own == {
        *(f"pki/{name}.{end}" for name in PAIRS for end in ("crt", "key")),
        *("pki/ca.crt", "pki/etcd/ca.crt", "pki/front-proxy-ca.crt"),
        *("pki/sa.key", "pki/sa.pub"),
        *("admin.conf", "super-admin.conf", "kubelet.conf"),
        *("controller-manager.conf", "scheduler.conf"),
    }
    worker = {name for name in KUBEADM if name.startswith("worker-1/")}
    assert worker == {
        "worker-1/kubelet.conf",
        "worker-1/pki/ca.crt",
        "worker-1/pki/kubelet.crt",
        "worker-1/pki/kubelet.key",
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_file_holds_the_common_root(layout: str) -> None:
    root = ISSUERS["kubernetes"].chain[-1]
    for name, content in LAYOUTS[layout].items():
        if name.endswith(".crt"):
            assert root not in x509.load_pem_x509_certificates(content), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_certificate_has_its_key_beside_it(layout: str) -> None:
    files = LAYOUTS[layout]
    pairs = [name for name in files if name.removesuffix(".crt") + ".key" in files]
    pairs = [name for name in pairs if name.endswith(".crt")]
    assert len(pairs) == len(PAIRS) + 1
    for name in pairs:
        certificate = x509.load_pem_x509_certificate(files[name])
        key = load_pem_private_key(files[name.removesuffix(".crt") + ".key"], None)
        assert key.public_key() == certificate.public_key(), name


@pytest.mark.parametrize(
    ("name", "server"),
    [
        ("admin.conf", "https://api.corp.example:6443"),
        ("super-admin.conf", "https://api.corp.example:6443"),
        ("kubelet.conf", "https://api.corp.example:6443"),
        ("controller-manager.conf", "https://10.0.0.11:6443"),
        ("scheduler.conf", "https://10.0.0.11:6443"),
    ],
)
def test_a_kubeconfig_has_its_server_its_anchor_and_its_key(
    name: str, server: str
) -> None:
    found = yaml.safe_load(KUBEADM[f"cp-1/{name}"])
    context = found["contexts"][0]
    assert found["current-context"] == context["name"]
    cluster_, user = found["clusters"][0], found["users"][0]
    assert context["context"] == {"cluster": cluster_["name"], "user": user["name"]}
    assert cluster_["cluster"]["server"] == server
    anchor = base64.b64decode(cluster_["cluster"]["certificate-authority-data"])
    assert x509.load_pem_x509_certificates(anchor) == [
        ISSUERS["kubernetes"].certificate
    ]
    certificate = base64.b64decode(user["user"]["client-certificate-data"])
    key = base64.b64decode(user["user"]["client-key-data"])
    found_key = load_pem_private_key(key, None).public_key()
    assert x509.load_pem_x509_certificate(certificate).public_key() == found_key


def test_a_local_address_of_ipv6_stands_in_brackets() -> None:
    given = cluster(control_planes={"cp-1": {"ip": ["fd00::11"]}})
    files = kubeadm_files(given, ISSUERS, LEAVES[:13], ACCOUNTS)
    found = yaml.safe_load(files["cp-1/scheduler.conf"])
    assert found["clusters"][0]["cluster"]["server"] == "https://[fd00::11]:6443"


def test_each_option_names_a_file_of_its_own_folder() -> None:
    options = [name for name in COMPONENTS if name.endswith("/options")]
    assert len(options) == 6
    for name in options:
        folder = name.removesuffix("options")
        for line in COMPONENTS[name].decode().splitlines():
            key, _, value = line.partition("=")
            if key.endswith(("-file", "-cafile", "-keyfile", "config", "authority")):
                assert folder + value in COMPONENTS, line


@pytest.mark.parametrize(
    ("file", "ca"),
    [
        ("kube-apiserver/client-ca.crt", "kubernetes"),
        ("kube-apiserver/kubelet-ca.crt", "kubernetes"),
        ("kube-apiserver/etcd-ca.crt", "etcd"),
        ("kube-apiserver/front-proxy-ca.crt", "front-proxy"),
        ("kube-controller-manager/root-ca.crt", "kubernetes"),
        ("kubelet/client-ca.crt", "kubernetes"),
        ("etcd/ca.crt", "etcd"),
    ],
)
def test_who_verifies_a_client_trusts_its_ca_alone(file: str, ca: str) -> None:
    found = x509.load_pem_x509_certificates(COMPONENTS[f"cp-1/{file}"])
    assert found == [{str(one): by.certificate for one, by in ISSUERS.items()}[ca]]
