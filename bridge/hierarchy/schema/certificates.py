"""`certificates` of the hierarchy file: the clusters whose own PKI hangs below it.

A cluster is described by its nodes and addresses. Which certificates its parts need is
known from that: see `bridge.hierarchy.kubernetes_pki.profiles`.
"""

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from bridge.config.types import Different, Hosts, Label, Section
from bridge.dns_names import is_host

ClusterCA = Literal["kubernetes", "etcd", "front-proxy"]
"""One of the three CAs of a cluster, by the purpose that the file gives it."""
LONGEST_NODE_NAME = 52
"""Characters: with `system:node:` in front it is a common name (RFC 5280, A.1)."""
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError('expected an IP address such as "10.0.0.11"') from None


def _service_range(value: str) -> str:
    try:
        found = ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f'expected a range such as "10.96.0.0/12": {error}') from None
    if found.num_addresses < 2:  # noqa: PLR2004 - the network's own address, and one
        raise ValueError('expected a range such as "10.96.0.0/12", not one address')
    return value


def _endpoint(value: str) -> str:
    expected = ValueError('expected a URL such as "https://api.prod.corp.example:6443"')
    try:
        found = urlsplit(value)
        bare = f"https://{found.netloc}"
        host, _ = found.hostname or "", found.port
    except ValueError:
        raise expected from None
    if value != bare or "@" in value or not (is_host(host) or _is_address(host)):
        raise expected
    return value


def _is_address(value: str) -> bool:
    try:
        _address(value)
    except ValueError:
        return False
    return True


def _node(value: str) -> str:
    if not is_host(value):
        raise ValueError(
            "expected the name of a node as Kubernetes has it: a DNS name in lower "
            "case such as cp-1"
        )
    if len(value) > LONGEST_NODE_NAME:
        raise ValueError(
            f"expected at most {LONGEST_NODE_NAME} characters: a kubelet is the user "
            "system:node:NAME, and a common name has at most 64; set a shorter "
            "hostname-override of the kubelet"
        )
    return value


def _domain(value: str) -> str:
    if not is_host(value):
        raise ValueError("expected a DNS name in lower case such as cluster.local")
    return value


_Addresses = Annotated[
    tuple[Annotated[str, AfterValidator(_address)], ...],
    Field(strict=False),
    Different,
]
_NodeName = Annotated[str, AfterValidator(_node)]
_Days = Annotated[int, Field(ge=1, le=3660)]


class NodeEntry(Section):
    """One node: the names and addresses that others call it by, besides its name."""

    dns: Hosts = ()
    """Names besides the node's own."""
    ip: _Addresses = ()
    """Addresses. A node of a control plane has one at least."""

    def addresses(self) -> Iterator[IPAddress]:
        """Yield its addresses, in order."""
        return map(ipaddress.ip_address, self.ip)


class ClusterPKIEntry(Section):
    """`certificates.<cluster>`: the PKI of one Kubernetes cluster."""

    kubernetes_ca: Label
    """The CA, of purpose `kubernetes`, of the API server and its clients."""
    etcd_ca: Label
    """The CA, of purpose `etcd`, of etcd's members and clients."""
    front_proxy_ca: Label
    """The CA, of purpose `front-proxy`, of who may tell an aggregated API server which
    user asks."""
    endpoint: Annotated[str, AfterValidator(_endpoint)]
    """Where all nodes and users find the API servers, such as
    `https://api.prod.corp.example:6443`."""
    local_port: Annotated[int, Field(ge=1, le=65535)] = 6443
    """Where each API server itself listens: kubeadm's `bindPort`."""
    service_range: Annotated[str, AfterValidator(_service_range)] = "10.96.0.0/12"
    """The addresses of Services. The first one is the API server's."""
    dns_domain: Annotated[str, AfterValidator(_domain)] = "cluster.local"
    """The domain of Services."""
    control_planes: dict[_NodeName, NodeEntry]
    """The nodes with an API server and an etcd member. Each needs its address."""
    workers: dict[_NodeName, NodeEntry] = Field(default_factory=dict)
    days: _Days = 365
    """Lifetime of each certificate, at most to the end of its CA's."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if len({self.kubernetes_ca, self.etcd_ca, self.front_proxy_ca}) < 3:  # noqa: PLR2004
            raise ValueError(
                "expected three CAs: under one in common each client of the API "
                "server, such as a kubelet, could read etcd or speak for any user"
            )
        if not self.control_planes:
            raise ValueError("expected at least one node in control_planes")
        for name in sorted(self.control_planes.keys() & self.workers.keys()):
            raise ValueError(f"expected {name} once: a node has one role")
        for name, node in self.control_planes.items():
            if not node.ip:
                raise ValueError(
                    f"expected control_planes.{name}.ip: the address that its API "
                    "server and etcd are called at"
                )
        return self

    def cas(self) -> Iterator[tuple[ClusterCA, str, str]]:
        """Yield the purpose, the key and the name in the file of each of its CAs."""
        yield "kubernetes", "kubernetes_ca", self.kubernetes_ca
        yield "etcd", "etcd_ca", self.etcd_ca
        yield "front-proxy", "front_proxy_ca", self.front_proxy_ca

    @property
    def first_service_address(self) -> IPAddress:
        """The address of the Service `kubernetes`."""
        return ipaddress.ip_network(self.service_range)[1]

    @property
    def endpoint_host(self) -> str | IPAddress:
        """The host of `endpoint`, as a name or as an address."""
        host = urlsplit(self.endpoint).hostname or ""
        try:
            return ipaddress.ip_address(host)
        except ValueError:
            return host
