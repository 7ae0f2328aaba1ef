"""The PKI of a Kubernetes cluster for tests: in a hierarchy file, and its CAs."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from bridge.hierarchy.kubernetes_pki.issue import LeafIssuer
from bridge.hierarchy.schema import ClusterCA, ClusterPKIEntry
from bridge.x509.algorithm import algorithm_of, signature_of
from tests.support.parts.hierarchy_file import ca
from tests.support.parts.pki import Authority, new_root

CLUSTER: Mapping[str, Any] = {
    "kubernetes_ca": "prod-kubernetes",
    "etcd_ca": "prod-etcd",
    "front_proxy_ca": "prod-front-proxy",
    "endpoint": "https://api.corp.example:6443",
    "control_planes": {"cp-1": {"ip": ["10.0.0.11"], "dns": ["cp-1.corp.example"]}},
    "workers": {"worker-1": {"ip": ["10.0.0.21"]}},
}
FILE: Mapping[str, Any] = {
    "cas.prod-kubernetes": ca("kubernetes", "root", purpose="kubernetes"),
    "cas.prod-etcd": ca("etcd", "root", purpose="etcd"),
    "cas.prod-front-proxy": ca("front-proxy", "root", purpose="front-proxy"),
    "certificates.prod": CLUSTER,
}
"""What `hierarchy_file.changed` adds to a good file."""


def cluster(**changes: object) -> ClusterPKIEntry:
    return ClusterPKIEntry.model_validate({**CLUSTER, **changes})


def issuer_of(authority: Authority) -> LeafIssuer:
    """Return a CA as one that signs leaves."""
    algorithm = algorithm_of(authority.key.public_key())
    path = (authority.certificate, *(one.certificate for one in authority.above))
    return LeafIssuer(path, lambda tbs: signature_of(authority.key, algorithm, tbs))


def new_issuers(now: datetime) -> dict[ClusterCA, LeafIssuer]:
    """Make the three CAs of a cluster under one root."""
    root = new_root("corp root", not_before=now - timedelta(days=1))
    return {
        "kubernetes": issuer_of(root.issue_ca("kubernetes", path_length=0)),
        "etcd": issuer_of(root.issue_ca("etcd", path_length=0)),
        "front-proxy": issuer_of(root.issue_ca("front proxy", path_length=0)),
    }
