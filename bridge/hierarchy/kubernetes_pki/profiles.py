"""Which certificates a Kubernetes cluster needs: one table, and what it is for a node.

Source:
    Kubernetes, "PKI certificates and requirements"; kubeadm 1.35,
    cmd/kubeadm/app/phases/certs/certlist.go and phases/kubeconfig/kubeconfig.go.
"""

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bridge.hierarchy.schema.certificates import (
    ClusterCA,
    ClusterPKIEntry,
    IPAddress,
)

ADMINS = "kubeadm:cluster-admins"
"""The group of administrators, which a ClusterRoleBinding of that name makes so."""
MASTERS = "system:masters"
"""The group that no rule of the cluster limits, and no binding has to name."""
NODES = "system:nodes"

_SERVER = ExtendedKeyUsageOID.SERVER_AUTH
_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

Names = Iterator[str | IPAddress]


def _api_server(cluster: ClusterPKIEntry, node: str) -> Names:
    yield node
    service = "kubernetes.default.svc"
    yield from ("kubernetes", "kubernetes.default", service)
    yield f"{service}.{cluster.dns_domain}"
    yield cluster.endpoint_host
    yield cluster.first_service_address
    yield from _own(cluster, node)


def _etcd(cluster: ClusterPKIEntry, node: str) -> Names:
    yield from (node, "localhost")
    yield ipaddress.ip_address("127.0.0.1")
    yield ipaddress.ip_address("::1")
    yield from _own(cluster, node)


def _kubelet(cluster: ClusterPKIEntry, node: str) -> Names:
    yield node
    yield from _own(cluster, node)


def _own(cluster: ClusterPKIEntry, node: str) -> Names:
    found = (cluster.control_planes | cluster.workers)[node]
    yield from found.dns
    yield from found.addresses()


def _none(_cluster: ClusterPKIEntry, _node: str) -> Names:
    yield from ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentProfile:
    """One kind of certificate."""

    name: str
    """As kubeadm calls it."""
    ca: ClusterCA
    common_name: str
    """The user name of a client. `{node}` is the name of the node."""
    organisation: str = ""
    """The group of a client."""
    usages: tuple[ObjectIdentifier, ...]
    names: Callable[[ClusterPKIEntry, str], Names] = _none
    """The subject alternative names of a node's certificate."""
    on: Literal["first", "control planes", "all"] = "control planes"
    """Which nodes need it; `first` is the first control plane of the file."""


PROFILES = (
    ComponentProfile(
        name="apiserver",
        ca="kubernetes",
        common_name="kube-apiserver",
        usages=(_SERVER,),
        names=_api_server,
    ),
    ComponentProfile(
        name="apiserver-kubelet-client",
        ca="kubernetes",
        common_name="kube-apiserver-kubelet-client",
        organisation=ADMINS,
        usages=(_CLIENT,),
    ),
    ComponentProfile(
        name="apiserver-etcd-client",
        ca="etcd",
        common_name="kube-apiserver-etcd-client",
        usages=(_CLIENT,),
    ),
    # etcd asks its own server as a client, with the server's certificate.
    ComponentProfile(
        name="etcd-server",
        ca="etcd",
        common_name="{node}",
        usages=(_SERVER, _CLIENT),
        names=_etcd,
    ),
    ComponentProfile(
        name="etcd-peer",
        ca="etcd",
        common_name="{node}",
        usages=(_SERVER, _CLIENT),
        names=_etcd,
    ),
    ComponentProfile(
        name="etcd-healthcheck-client",
        ca="etcd",
        common_name="kube-etcd-healthcheck-client",
        usages=(_CLIENT,),
    ),
    ComponentProfile(
        name="front-proxy-client",
        ca="front-proxy",
        common_name="front-proxy-client",
        usages=(_CLIENT,),
    ),
    ComponentProfile(
        name="admin",
        ca="kubernetes",
        common_name="kubernetes-admin",
        organisation=ADMINS,
        usages=(_CLIENT,),
    ),
    ComponentProfile(
        name="super-admin",
        ca="kubernetes",
        common_name="kubernetes-super-admin",
        organisation=MASTERS,
        usages=(_CLIENT,),
        on="first",
    ),
    ComponentProfile(
        name="controller-manager",
        ca="kubernetes",
        common_name="system:kube-controller-manager",
        usages=(_CLIENT,),
    ),
    ComponentProfile(
        name="scheduler",
        ca="kubernetes",
        common_name="system:kube-scheduler",
        usages=(_CLIENT,),
    ),
    ComponentProfile(
        name="kubelet",
        ca="kubernetes",
        common_name="system:node:{node}",
        organisation=NODES,
        usages=(_CLIENT,),
        on="all",
    ),
    ComponentProfile(
        name="kubelet-server",
        ca="kubernetes",
        common_name="system:node:{node}",
        organisation=NODES,
        usages=(_SERVER,),
        names=_kubelet,
        on="all",
    ),
)
"""All kinds. Each node has keys of its own: no file has to travel between nodes but the
key that signs the tokens of service accounts."""


@dataclass(frozen=True, slots=True)
class PlannedLeaf:
    """One certificate of one node, before it is signed."""

    node: str
    profile: ComponentProfile
    subject: x509.Name
    names: tuple[x509.GeneralName, ...]

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.node}/{self.profile.name}"


def leaves_of(cluster: ClusterPKIEntry) -> Iterator[PlannedLeaf]:
    """Yield every certificate of a cluster, node by node."""
    nodes = {
        "first": [next(iter(cluster.control_planes))],
        "control planes": [*cluster.control_planes],
        "all": [*cluster.control_planes, *cluster.workers],
    }
    for node in nodes["all"]:
        for profile in PROFILES:
            if node in nodes[profile.on]:
                yield _planned(cluster, node, profile)


def _planned(
    cluster: ClusterPKIEntry, node: str, profile: ComponentProfile
) -> PlannedLeaf:
    parts = [
        (NameOID.ORGANIZATION_NAME, profile.organisation),
        (NameOID.COMMON_NAME, profile.common_name.format(node=node)),
    ]
    subject = [x509.NameAttribute(oid, text) for oid, text in parts if text]
    names = dict.fromkeys(profile.names(cluster, node))
    return PlannedLeaf(
        node,
        profile,
        x509.Name(subject),
        tuple(
            x509.DNSName(one) if isinstance(one, str) else x509.IPAddress(one)
            for one in names
        ),
    )
