"""Each certificate of a cluster is for what its part does, with kubeadm's names."""

from ipaddress import ip_address

import pytest
from cryptography import x509

from bridge.hierarchy.kubernetes_pki.profiles import MASTERS, PROFILES, leaves_of
from bridge.hierarchy.schema.certificates import LONGEST_NODE_NAME
from tests.support.parts.cluster_pki import cluster

PLANNED = {leaf.title: leaf for leaf in leaves_of(cluster())}
S, C = "serverAuth", "clientAuth"
TABLE = {
    "apiserver": ("CN=kube-apiserver", "kubernetes", S),
    "apiserver-kubelet-client": (
        "CN=kube-apiserver-kubelet-client,O=kubeadm:cluster-admins",
        "kubernetes",
        C,
    ),
    "apiserver-etcd-client": ("CN=kube-apiserver-etcd-client", "etcd", C),
    "etcd-server": ("CN=cp-1", "etcd", S + C),
    "etcd-peer": ("CN=cp-1", "etcd", S + C),
    "etcd-healthcheck-client": ("CN=kube-etcd-healthcheck-client", "etcd", C),
    "front-proxy-client": ("CN=front-proxy-client", "front-proxy", C),
    "admin": ("CN=kubernetes-admin,O=kubeadm:cluster-admins", "kubernetes", C),
    "super-admin": ("CN=kubernetes-super-admin,O=system:masters", "kubernetes", C),
    "controller-manager": ("CN=system:kube-controller-manager", "kubernetes", C),
    "scheduler": ("CN=system:kube-scheduler", "kubernetes", C),
    "kubelet": ("CN=system:node:cp-1,O=system:nodes", "kubernetes", C),
    "kubelet-server": ("CN=system:node:cp-1,O=system:nodes", "kubernetes", S),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_certificate_has_the_subject_and_the_usage_of_its_part(name: str) -> None:
    leaf = PLANNED[f"cp-1/{name}"]
    usages = "".join(oid._name for oid in leaf.profile.usages)
    found = (leaf.subject.rfc4514_string(), leaf.profile.ca, usages)
    assert found == TABLE[name]


def test_the_table_is_of_every_profile() -> None:
    assert {*TABLE} == {profile.name for profile in PROFILES}


def test_a_worker_gets_what_its_kubelet_needs_and_no_more() -> None:
    worker = [title for title in PLANNED if title.startswith("worker-1/")]
    assert worker == ["worker-1/kubelet", "worker-1/kubelet-server"]


def test_one_node_alone_gets_the_administrator_that_no_rule_limits() -> None:
    nodes = {f"cp-{number}": {"ip": [f"10.0.0.{number}"]} for number in (1, 2, 3)}
    leaves = [*leaves_of(cluster(control_planes=nodes))]
    masters = [leaf.title for leaf in leaves if leaf.profile.organisation == MASTERS]
    assert masters == ["cp-1/super-admin"]
    second = {leaf.profile.name for leaf in leaves if leaf.node == "cp-2"}
    assert second == TABLE.keys() - {"super-admin"}


LOCAL = ["localhost", ip_address("127.0.0.1"), ip_address("::1")]
OWN = ["cp-1.corp.example", ip_address("10.0.0.11")]
NAMES = {
    "apiserver": [
        "cp-1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "api.corp.example",
        ip_address("10.96.0.1"),
        *OWN,
    ],
    "etcd-server": ["cp-1", *LOCAL, *OWN],
    "etcd-peer": ["cp-1", *LOCAL, *OWN],
    "kubelet-server": ["cp-1", *OWN],
}


@pytest.mark.parametrize("name", TABLE)
def test_a_server_has_all_its_names_and_addresses_and_a_client_none(name: str) -> None:
    found = [one.value for one in PLANNED[f"cp-1/{name}"].names]
    assert found == NAMES.get(name, [])


def test_a_name_that_two_rules_give_stands_there_once() -> None:
    given = cluster(endpoint="https://10.0.0.11:6443")
    names = next(iter(leaves_of(given))).names
    assert names.count(x509.IPAddress(ip_address("10.0.0.11"))) == 1


def test_the_longest_name_of_a_node_is_a_common_name() -> None:
    name = "w" * LONGEST_NODE_NAME
    titles = [leaf.title for leaf in leaves_of(cluster(workers={name: {}}))]
    assert f"{name}/kubelet" in titles
