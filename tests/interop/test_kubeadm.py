"""A real kubeadm finds all that it looks for in an export, and makes nothing."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.hierarchy.kubernetes_pki.issue import issue_all
from bridge.hierarchy.kubernetes_pki.layouts import kubeadm_files
from bridge.system.clock import system_clock
from bridge.system.files import write_new
from bridge.x509.algorithm import new_key
from tests.support.parts import install
from tests.support.parts.cluster_pki import cluster, new_issuers
from tests.support.parts.pki import bundle

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("kubernetes-pki")]

_API = "kubeadm.k8s.io/v1beta4"
_SECONDS = 60
CONFS = ("admin", "super-admin", "kubelet", "controller-manager", "scheduler")


class Node:
    """A control-plane node with the folder of an export."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cp-1"
        issuers = new_issuers(datetime.now(UTC).replace(microsecond=0))
        self.root = issuers["kubernetes"].chain[-1]
        leaves = issue_all(cluster(), issuers, clock=system_clock)
        files = kubeadm_files(cluster(), issuers, leaves, new_key("p256"))
        write_new(folder, files)
        self._config = folder / "kubeadm.yaml"
        documents = (
            {
                "kind": "InitConfiguration",
                "localAPIEndpoint": {"advertiseAddress": "10.0.0.11", "bindPort": 6443},
                "nodeRegistration": {"name": "cp-1", "criSocket": "unix:///none.sock"},
            },
            {
                "kind": "ClusterConfiguration",
                "kubernetesVersion": "v1.35.4",
                "controlPlaneEndpoint": "api.corp.example:6443",
                "certificatesDir": str(self.folder / "pki"),
            },
        )
        self._config.write_text(
            "\n---\n".join(json.dumps({"apiVersion": _API, **one}) for one in documents)
        )

    def kubeadm(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*install.kubeadm_command(), *arguments]
        return subprocess.run(
            [*command, "--config", str(self._config)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )

    def init(self) -> "subprocess.CompletedProcess[str]":
        """Run the phase that looks at all certificates, and at the kubeconfigs."""
        into = ("--kubeconfig-dir", str(self.folder))
        return self.kubeadm("init", "phase", "kubeconfig", "all", *into)

    def files(self) -> dict[Path, bytes]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in found}


def test_kubeadm_uses_an_export_as_that_of_an_external_ca(tmp_path: Path) -> None:
    node = Node(tmp_path)
    before = node.files()
    done = node.init()
    assert done.returncode == 0, done.stderr
    for name in CONFS:
        assert f"External CA mode: Using user provided {name}.conf" in done.stdout
    assert node.files() == before


def test_kubeadm_knows_that_the_cas_are_elsewhere(tmp_path: Path) -> None:
    node = Node(tmp_path)
    folder = ("--cert-dir", str(node.folder / "pki"), "-o", "json")
    done = node.kubeadm("certs", "check-expiration", *folder)
    found = json.loads(done.stdout)
    managed = {
        one["name"]: one["externallyManaged"]
        for one in (*found["certificates"], *found["certificateAuthorities"])
        if not one.get("missing")
    }
    assert managed == dict.fromkeys(
        (
            *("apiserver", "apiserver-etcd-client", "apiserver-kubelet-client"),
            *("etcd-healthcheck-client", "etcd-peer", "etcd-server"),
            *("front-proxy-client", "ca", "etcd-ca", "front-proxy-ca"),
        ),
        True,
    )


@pytest.mark.parametrize("anchor", ["pki/ca.crt", "pki/front-proxy-ca.crt"])
def test_kubeadm_refuses_the_common_root_in_place_of_an_anchor(
    tmp_path: Path, anchor: str
) -> None:
    node = Node(tmp_path)
    (node.folder / anchor).write_bytes(bundle(node.root))
    done = node.init()
    assert done.returncode != 0
    assert "is not signed by corresponding CA" in done.stderr
