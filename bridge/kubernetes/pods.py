"""Which pods there are, and where they run: what node authorization asks for.

Source:
    Kubernetes API, v1 Pod, field selectors, and meta.k8s.io/v1
    PartialObjectMetadataList.
"""

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.kubernetes.api import METADATA_LIST, APIServer, Query, unreadable
from bridge.resilience.budget import Budget

_UNENDED = ("status.phase!=Failed", "status.phase!=Succeeded")


@dataclass(frozen=True, slots=True)
class FoundPod:
    """A pod as its API server has it."""

    uid: str
    service_account: str
    node: str
    """The name of the node; empty until the pod is on one."""


class LivePods:
    """Tells what pods a cluster has. Asks its API server each time, keeps nothing.

    Args:
        server: The API server of the pods' cluster.
    """

    def __init__(self, server: APIServer) -> None:
        self._server = server

    def pod(self, namespace: str, name: str, budget: Budget) -> FoundPod | None:
        """Return the pod with this name; None if there is none.

        Raises:
            ReviewError: It cannot be told now.
        """
        found = self._server.get(f"{_path(namespace)}/{_quoted(name)}", {}, budget)
        if found is None:
            return None
        metadata, spec = found.get("metadata"), found.get("spec")
        if found.get("kind") != "Pod" or not (
            isinstance(metadata, dict) and isinstance(spec, dict)
        ):
            raise unreadable("expected a Pod")
        if (metadata.get("namespace"), metadata.get("name")) != (namespace, name):
            raise unreadable("expected the pod that was asked for")
        # A pod has no node until the scheduler has chosen one.
        uid, node = metadata.get("uid"), spec.get("nodeName", "")
        account = spec.get("serviceAccountName")
        if not (
            isinstance(uid, str) and isinstance(account, str) and isinstance(node, str)
        ):
            raise unreadable("expected a Pod with a UID and an account")
        return FoundPod(uid, account, node)

    def has_pod_on(
        self, node: str, namespace: str, service_account: str, budget: Budget
    ) -> bool:
        """Return whether a pod of this account is on a node, and has not ended.

        A pod with phase Failed or Succeeded has ended. One that is being terminated
        has not.

        Raises:
            ReviewError: It cannot be told now.
        """
        selector = (
            f"spec.nodeName={node}",
            f"spec.serviceAccountName={service_account}",
            *_UNENDED,
        )
        query: Query = {"fieldSelector": ",".join(selector), "limit": 1}
        found = _items(
            self._server.get(_path(namespace), query, budget, accept=METADATA_LIST)
        )
        for one in found:
            metadata = one.get("metadata") if isinstance(one, dict) else None
            if not isinstance(metadata, dict) or metadata.get("namespace") != namespace:
                raise unreadable(f"expected metadata of pods in {namespace}")
        return bool(found)


def _items(found: Mapping[str, Any] | None) -> list[Any]:
    # A namespace that does not exist has an empty list, and no status 404.
    if found is None or found.get("kind") != "PartialObjectMetadataList":
        raise unreadable("expected a PartialObjectMetadataList")
    # The API server writes an empty list of metadata as null.
    items = found.get("items", "")
    if not isinstance(items, list | None):
        raise unreadable("expected a list of metadata")
    return items or []


def _path(namespace: str) -> str:
    return f"/api/v1/namespaces/{_quoted(namespace)}/pods"


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
