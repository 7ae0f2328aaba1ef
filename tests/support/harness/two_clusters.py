"""Two clusters on real API servers, and a bridge for both.

The bridge has the rights of `deploy/kubernetes` at each of them, and no others.
"""

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from tests.support.parts.kubernetes import (
    DEPLOY,
    APIServer,
    kubeconfig,
    remote_secret,
)
from tests.support.parts.pki import write_private

ISSUER = "https://kubernetes.default.svc"
"""Of both clusters, as it is of most: only their keys tell the tokens apart."""
HOME, FAR = "home", "far"
SILENT = "silent"
"""A second entry for the API server of `FAR`, which names no namespaces."""
ALIASES = {HOME: "main", FAR: "arn:aws:eks:eu-west-1:1:cluster/far"}
BY_SECRET = ("remote secret", "bound by remote secret")
WAYS = ("kubeconfig", "bound by kubeconfig", *BY_SECRET)
"""How the bridge gets at the API server of `FAR`, and whether it has a watch there."""
SECRETS = "/api/v1/namespaces/istio-system/secrets"
NAMESPACES: Mapping[str, tuple[str, ...]] = {
    "istio-system": ("ztunnel",),
    "pay": ("api",),
    "shop": ("web", "api", "only-far"),
}
_IN_POD = """
set -e
files=$1
shift
mount -t tmpfs pod /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
cp "$files"/* /run/secrets/kubernetes.io/serviceaccount
exec "$@"
"""
AUDIENCES = {"istio": "istio-ca", "linkerd": "identity.l5d.io"}


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod of one of the clusters, with its token."""

    token: str
    pod: str
    uid: str


class TwoClusters:
    """A context manager: both API servers answer inside, and are gone after.

    Args:
        folder: For their files, and those of the bridge's credentials.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers = {name: APIServer(folder / name) for name in (HOME, FAR)}
        self._servers = contextlib.ExitStack()
        self._pods = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as servers:
            for server in self.servers.values():
                servers.enter_context(server)
                _populate(server)
            self.home.apply(DEPLOY / "home.yaml")
            self.home.apply(DEPLOY / "remote-secrets.yaml")
            self.far.apply(DEPLOY / "remote.yaml")
            self._servers = servers.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()

    @property
    def home(self) -> APIServer:
        """That of the first cluster, which has the remote secrets."""
        return self.servers[HOME]

    @property
    def far(self) -> APIServer:
        """That of the other cluster."""
        return self.servers[FAR]

    def workload(
        self,
        cluster: str,
        account: str = "web",
        namespace: str = "shop",
        *,
        front: str = "istio",
        node: str = "node-1",
    ) -> Workload:
        """Make a pod, and return it with a token as the kubelet gets it for a pod."""
        self._pods += 1
        server, name = self.servers[cluster], f"{account}-{self._pods}"
        pod = server.new_pod(namespace, account, name, node)
        token = server.token(namespace, account, AUDIENCES[front], bound_to=pod)
        return Workload(token, name, str(pod["metadata"]["uid"]))

    def own_token(self, cluster: str, bound_to: Mapping[str, Any] | None = None) -> str:
        """Return a token of the bridge's own account in a cluster."""
        account = "meshca-bridge" if cluster == HOME else "meshca-bridge-remote"
        return self.servers[cluster].token("meshca", account, bound_to=bound_to)

    def by_kubeconfig(
        self, cluster: str, user: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """Write a kubeconfig with two contexts; return the keys that name the one.

        Args:
            cluster: Whose API server.
            user: What is shown to it; by default a new token of the bridge's account.
        """
        server, shown = (
            self.servers[cluster],
            user or {"token": self.own_token(cluster)},
        )
        tree = yaml.safe_load(kubeconfig(server, cluster, ""))
        tree["users"] = [{"name": cluster, "user": shown}]
        # The current context shows what nobody accepts.
        tree["users"].append({"name": "nobody", "user": {"token": "nobody"}})
        other = {"cluster": cluster, "user": "nobody"}
        tree["contexts"].append({"name": "nobody", "context": other})
        tree["current-context"] = "nobody"
        path = self.folder / f"{cluster}.kubeconfig"
        write_private(path, yaml.safe_dump(tree).encode())
        return {"kubeconfig": str(path), "context": cluster}

    def put_secret(self, content: bytes, name: str = FAR) -> None:
        """Write the remote secret of a cluster, as istioctl makes it."""
        secret = remote_secret(name, content)
        status, answer = self.home.call("POST", SECRETS, secret)
        if status == 409:
            path = f"{SECRETS}/istio-remote-secret-{name}"
            status, answer = self.home.call("PUT", path, secret)
        assert status in {200, 201}, answer

    def delete_secret(self, name: str = FAR) -> None:
        """Delete the remote secret of a cluster."""
        path = f"{SECRETS}/istio-remote-secret-{name}"
        status, answer = self.home.call("DELETE", path)
        assert status in {200, 404}, answer

    def remote_kubeconfig(self, token: str = "") -> bytes:
        """Return a kubeconfig for `FAR`, by default with a new token of the bridge."""
        return kubeconfig(self.far, FAR, token or self.own_token(FAR))

    def in_pod(self, cluster: str) -> list[str]:
        """Return what is put before a command that runs in a pod of the cluster.

        The pod's files are in a file system that no other process sees.
        """
        server, files = self.servers[cluster], self.folder / f"{cluster}-pod"
        files.mkdir()
        shutil.copy(server.ca_file, files / "ca.crt")
        write_private(files / "token", self.own_token(cluster).encode())
        return [
            *("env", "KUBERNETES_SERVICE_HOST=127.0.0.1"),
            f"KUBERNETES_SERVICE_PORT_HTTPS={server.port}",
            *("unshare", "--map-root-user", "--mount"),
            *("sh", "-c", _IN_POD, "sh", str(files)),
        ]

    def overrides(
        self, way: str, *, linkerd: str = FAR, in_pod: bool = False
    ) -> dict[str, Any]:
        """Return what a bridge for both clusters has in its configuration.

        Args:
            way: One of `WAYS`.
            linkerd: The cluster of Linkerd's callers.
            in_pod: Whether the bridge runs in a pod of `HOME`.
        """
        soon = {"timeout": "1s"}
        bound = {"verify": "bound", "issuer": ISSUER} | soon
        review = {"verify": "token_review"} | soon
        verify = bound if way.startswith("bound") else review
        home = {} if in_pod else self.by_kubeconfig(HOME)
        far = self.by_kubeconfig(FAR)
        tokens = {"remote_secret": True} if way in BY_SECRET else far
        made: dict[str, Any] = {
            "clusters": [
                # The first one: each of its namespaces is allowed by default.
                {"name": HOME, "aliases": [ALIASES[HOME]], "tokens": verify | home},
                {
                    "name": FAR,
                    "aliases": [ALIASES[FAR]],
                    "namespaces": ["shop"],
                    "tokens": verify | tokens,
                },
                {"name": SILENT, "tokens": review | far},
            ],
            "fronts": {"linkerd": {"cluster": linkerd}},
            # Fewer than the callers of a test: one that is lost would be missed.
            "limits": {"threads": 8},
            # Every refusal gets its row, also those of callers that nobody knows.
            "ledger": {"refusals_per_second": 100_000, "excess_per_second": 100_000},
        }
        if way in BY_SECRET:
            made["remote_secrets"] = home | {"namespace": "istio-system"} | soon
        return made


def _populate(server: APIServer) -> None:
    for namespace, accounts in NAMESPACES.items():
        server.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
        for name in accounts:
            path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
            server.post(path, {"metadata": {"name": name}})
