"""The files of a cluster's nodes: as kubeadm expects them, or one folder a component.

Whoever verifies a client trusts the CA that signed it and nothing above it. Under the
common root, every issuing CA of a mesh could sign an administrator of the cluster, as
no name constraint that works in all verifiers limits a subject.

Source:
    kubeadm 1.35, "External CA mode"; cmd/kubeadm/app/phases/certs/certs.go.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.hierarchy.kubernetes_pki.issue import IssuedLeaf, LeafIssuer
from bridge.hierarchy.schema import ClusterCA, ClusterPKIEntry
from bridge.x509.algorithm import CAPrivateKey
from bridge.x509.pem import key_pem, pem_of

_KUBEADM = {
    "apiserver": "pki/apiserver",
    "apiserver-kubelet-client": "pki/apiserver-kubelet-client",
    "apiserver-etcd-client": "pki/apiserver-etcd-client",
    "etcd-server": "pki/etcd/server",
    "etcd-peer": "pki/etcd/peer",
    "etcd-healthcheck-client": "pki/etcd/healthcheck-client",
    "front-proxy-client": "pki/front-proxy-client",
    "kubelet-server": "pki/kubelet",
}
_KUBECONFIGS = {
    "admin": "admin.conf",
    "super-admin": "super-admin.conf",
    "controller-manager": "controller-manager.conf",
    "scheduler": "scheduler.conf",
    "kubelet": "kubelet.conf",
}
_LOCAL = frozenset({"controller-manager", "scheduler"})
"""They ask the API server of their own node."""
_KUBEADM_ANCHORS: Mapping[ClusterCA, str] = {
    "kubernetes": "pki/ca.crt",
    "etcd": "pki/etcd/ca.crt",
    "front-proxy": "pki/front-proxy-ca.crt",
}
_COMPONENTS = {
    "apiserver": "kube-apiserver/server",
    "apiserver-kubelet-client": "kube-apiserver/kubelet-client",
    "apiserver-etcd-client": "kube-apiserver/etcd-client",
    "front-proxy-client": "kube-apiserver/front-proxy-client",
    "etcd-server": "etcd/server",
    "etcd-peer": "etcd/peer",
    "etcd-healthcheck-client": "etcdctl/client",
    "kubelet-server": "kubelet/server",
}
_COMPONENT_KUBECONFIGS = {
    "admin": "kubectl/admin.conf",
    "super-admin": "kubectl/super-admin.conf",
    "controller-manager": "kube-controller-manager/kubeconfig",
    "scheduler": "kube-scheduler/kubeconfig",
    "kubelet": "kubelet/kubeconfig",
}
_COMPONENT_ANCHORS: Mapping[ClusterCA, tuple[str, ...]] = {
    "kubernetes": (
        "kube-apiserver/client-ca.crt",
        "kube-apiserver/kubelet-ca.crt",
        "kube-controller-manager/root-ca.crt",
    ),
    "etcd": ("etcd/ca.crt", "etcdctl/ca.crt", "kube-apiserver/etcd-ca.crt"),
    "front-proxy": ("kube-apiserver/front-proxy-ca.crt",),
}
_OPTIONS = {
    "etcd": (
        "--cert-file=server.crt",
        "--key-file=server.key",
        "--client-cert-auth=true",
        "--trusted-ca-file=ca.crt",
        "--peer-cert-file=peer.crt",
        "--peer-key-file=peer.key",
        "--peer-client-cert-auth=true",
        "--peer-trusted-ca-file=ca.crt",
    ),
    "kube-apiserver": (
        "--anonymous-auth=false",
        "--client-ca-file=client-ca.crt",
        "--tls-cert-file=server.crt",
        "--tls-private-key-file=server.key",
        "--etcd-cafile=etcd-ca.crt",
        "--etcd-certfile=etcd-client.crt",
        "--etcd-keyfile=etcd-client.key",
        "--kubelet-certificate-authority=kubelet-ca.crt",
        "--kubelet-client-certificate=kubelet-client.crt",
        "--kubelet-client-key=kubelet-client.key",
        "--requestheader-client-ca-file=front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--proxy-client-cert-file=front-proxy-client.crt",
        "--proxy-client-key-file=front-proxy-client.key",
        "--service-account-key-file=sa.pub",
        "--service-account-signing-key-file=sa.key",
    ),
    "kube-controller-manager": (
        "--kubeconfig=kubeconfig",
        "--authentication-kubeconfig=kubeconfig",
        "--authorization-kubeconfig=kubeconfig",
        "--root-ca-file=root-ca.crt",
        "--service-account-private-key-file=sa.key",
        "--use-service-account-credentials=true",
    ),
    "kube-scheduler": (
        "--kubeconfig=kubeconfig",
        "--authentication-kubeconfig=kubeconfig",
        "--authorization-kubeconfig=kubeconfig",
    ),
}
_KUBELET_OPTIONS = (
    "--kubeconfig=kubeconfig",
    "--anonymous-auth=false",
    "--authorization-mode=Webhook",
    "--client-ca-file=client-ca.crt",
    "--tls-cert-file=server.crt",
    "--tls-private-key-file=server.key",
)

Files = dict[str, bytes]
"""Contents by their path below the folder of the export."""


def kubeadm_files(
    cluster: ClusterPKIEntry,
    issuers: Mapping[ClusterCA, LeafIssuer],
    leaves: Sequence[IssuedLeaf],
    account_key: CAPrivateKey,
) -> Files:
    """Return a folder for each node, to be its `/etc/kubernetes`.

    No key of a CA is in it: kubeadm takes that for its external CA mode, checks what is
    there, and makes nothing.

    Args:
        cluster: The cluster.
        issuers: Its three CAs; only their certificates are used.
        leaves: What `issue_all` made.
        account_key: Signs the tokens of service accounts; the same on all nodes.
    """
    files: Files = {}
    for node in cluster.control_planes:
        for ca, path in _KUBEADM_ANCHORS.items():
            files[f"{node}/{path}"] = pem_of(issuers[ca].certificate)
        files[f"{node}/pki/sa.key"] = key_pem(account_key)
        files[f"{node}/pki/sa.pub"] = _public_pem(account_key)
    for node in cluster.workers:
        anchor = pem_of(issuers["kubernetes"].certificate)
        files[f"{node}/{_KUBEADM_ANCHORS['kubernetes']}"] = anchor
    return files | _leaf_files(cluster, issuers, leaves, _KUBEADM, _KUBECONFIGS)


def kubeconfig(
    cluster: ClusterPKIEntry, anchor: x509.Certificate, leaf: IssuedLeaf
) -> bytes:
    """Return the kubeconfig of a client, with its key in it.

    Args:
        cluster: Names the API servers.
        anchor: The Kubernetes CA, which the client trusts.
        leaf: The client.
    """
    profile = leaf.planned.profile.name
    server = cluster.endpoint
    if profile in _LOCAL:
        server = _local_url(cluster, leaf.planned.node)
    context = f"{profile}@kubernetes"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "kubernetes",
                "cluster": {
                    "certificate-authority-data": _base64(pem_of(anchor)),
                    "server": server,
                },
            }
        ],
        "users": [
            {
                "name": profile,
                "user": {
                    "client-certificate-data": _base64(pem_of(leaf.certificate)),
                    "client-key-data": _base64(key_pem(leaf.key)),
                },
            }
        ],
        "contexts": [
            {
                "name": context,
                "context": {"cluster": "kubernetes", "user": profile},
            }
        ],
        "current-context": context,
    }
    return yaml.safe_dump(content, sort_keys=False).encode()


def component_files(
    cluster: ClusterPKIEntry,
    issuers: Mapping[ClusterCA, LeafIssuer],
    leaves: Sequence[IssuedLeaf],
    account_key: CAPrivateKey,
) -> Files:
    """Return a folder for each node, and in it one for each component.

    A component's folder has what that component needs and no more, and `options`: its
    arguments for these files, one a line, with paths relative to the folder.

    Args:
        cluster: See `kubeadm_files`, as for the others.
        issuers: See there.
        leaves: See there.
        account_key: See there.
    """
    files: Files = {}
    for node in cluster.control_planes:
        for ca, paths in _COMPONENT_ANCHORS.items():
            for path in paths:
                files[f"{node}/{path}"] = pem_of(issuers[ca].certificate)
        for component, options in _OPTIONS.items():
            files[f"{node}/{component}/options"] = _lines(options)
        for component in ("kube-apiserver", "kube-controller-manager"):
            files[f"{node}/{component}/sa.key"] = key_pem(account_key)
        files[f"{node}/kube-apiserver/sa.pub"] = _public_pem(account_key)
    for node in (*cluster.control_planes, *cluster.workers):
        anchor = pem_of(issuers["kubernetes"].certificate)
        files[f"{node}/kubelet/client-ca.crt"] = anchor
        files[f"{node}/kubelet/options"] = _lines(_KUBELET_OPTIONS)
    return files | _leaf_files(
        cluster, issuers, leaves, _COMPONENTS, _COMPONENT_KUBECONFIGS
    )


def _leaf_files(
    cluster: ClusterPKIEntry,
    issuers: Mapping[ClusterCA, LeafIssuer],
    leaves: Sequence[IssuedLeaf],
    pairs: Mapping[str, str],
    kubeconfigs: Mapping[str, str],
) -> Files:
    files: Files = {}
    for leaf in leaves:
        node, name = leaf.planned.node, leaf.planned.profile.name
        if name in kubeconfigs:
            text = kubeconfig(cluster, issuers["kubernetes"].certificate, leaf)
            files[f"{node}/{kubeconfigs[name]}"] = text
        else:
            files[f"{node}/{pairs[name]}.crt"] = pem_of(leaf.certificate)
            files[f"{node}/{pairs[name]}.key"] = key_pem(leaf.key)
    return files


def _local_url(cluster: ClusterPKIEntry, node: str) -> str:
    address = next(cluster.control_planes[node].addresses())
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    return f"https://{host}:{cluster.local_port}"


def _lines(options: Sequence[str]) -> bytes:
    return "".join(f"{one}\n" for one in options).encode()


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _public_pem(key: CAPrivateKey) -> bytes:
    form = PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(Encoding.PEM, form)
