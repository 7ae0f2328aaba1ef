"""`certificates` of the hierarchy file: what is refused, with the way out."""

import re
from ipaddress import ip_address
from typing import Any

import pytest

from bridge.errors import ConfigError
from tests.support.parts.cluster_pki import CLUSTER, FILE, cluster
from tests.support.parts.hierarchy_file import ca, loaded

C = "certificates.prod"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({f"{C}.etcd": "x"}, f"{C}.etcd: unknown key"),
    "no such CA": (
        {f"{C}.etcd_ca": "us-etcd"},
        f"{C}.etcd_ca: expected a CA of purpose etcd: prod-etcd (found 'us-etcd')",
    ),
    "the root takes clients": (
        {f"{C}.kubernetes_ca": "root"},
        f"{C}.kubernetes_ca: expected a CA of purpose kubernetes: prod-kubernetes",
    ),
    "a mesh takes clients": (
        {f"{C}.front_proxy_ca": "prod"},
        f"{C}.front_proxy_ca: expected a CA of purpose front-proxy",
    ),
    "one CA for two purposes": (
        {f"{C}.etcd_ca": "prod-kubernetes"},
        f"{C}: expected three CAs: under one in common each client",
    ),
    "one CA for two clusters": (
        {
            "cas.e2": ca("e2", "root", purpose="etcd"),
            "cas.f2": ca("f2", "root", purpose="front-proxy"),
            "certificates.second": {**CLUSTER, "etcd_ca": "e2", "front_proxy_ca": "f2"},
        },
        (
            "certificates.second.kubernetes_ca: expected a CA of its own: under one in "
            "common each administrator of prod is one of second too"
        ),
    ),
    "no control plane": (
        {f"{C}.control_planes": {}},
        f"{C}: expected at least one node in control_planes",
    ),
    "a control plane without address": (
        {f"{C}.control_planes": {"cp-1": {}}},
        f"{C}: expected control_planes.cp-1.ip: the address that its API server",
    ),
    "a node of two roles": (
        {f"{C}.workers": {"cp-1": {}}},
        f"{C}: expected cp-1 once: a node has one role",
    ),
    "a node that is no name": (
        {f"{C}.workers": {"Worker_1": {}}},
        "expected the name of a node as Kubernetes has it",
    ),
    "a node that is too long for a common name": (
        {f"{C}.workers": {"w" * 53: {}}},
        "expected at most 52 characters: a kubelet is the user system:node:NAME",
    ),
    "a cluster domain that is no name": (
        {f"{C}.dns_domain": "Cluster.local"},
        f"{C}.dns_domain: expected a DNS name in lower case such as cluster.local",
    ),
    "an address that is none": (
        {f"{C}.workers": {"w": {"ip": ["10.0.0.256"]}}},
        f"{C}.workers.w.ip[0]: expected an IP address such as",
    ),
    "an endpoint in the clear": (
        {f"{C}.endpoint": "http://api.corp.example"},
        f"{C}.endpoint: expected",
    ),
    "an endpoint with a path": (
        {f"{C}.endpoint": "https://api.corp.example:6443/x"},
        f"{C}.endpoint: expected a URL such as",
    ),
    "an endpoint without host": (
        {f"{C}.endpoint": "https://:6443"},
        f"{C}.endpoint: expected a URL such as",
    ),
    "an endpoint whose port is none": (
        {f"{C}.endpoint": "https://api.corp.example:70000"},
        f"{C}.endpoint: expected a URL such as",
    ),
    "a range with host bits": (
        {f"{C}.service_range": "10.96.0.1/12"},
        f"{C}.service_range: expected a range such as",
    ),
    "a range of one address": (
        {f"{C}.service_range": "10.96.0.1/32"},
        f"{C}.service_range: expected a range such as",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cluster_is_refused_by_the_path_of_the_key(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(message)):
        loaded({**FILE, **changes})


def test_a_good_cluster_is_read() -> None:
    found = loaded(FILE).file.certificates["prod"]
    assert found.first_service_address == ip_address("10.96.0.1")
    assert found.endpoint_host == "api.corp.example"


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("https://10.0.0.1:6443", ip_address("10.0.0.1")),
        ("https://[fd00::1]:6443", ip_address("fd00::1")),
        ("https://api.corp.example", "api.corp.example"),
    ],
)
def test_an_endpoint_is_a_name_or_an_address(endpoint: str, host: object) -> None:
    assert cluster(endpoint=endpoint).endpoint_host == host
