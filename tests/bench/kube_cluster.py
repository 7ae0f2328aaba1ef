"""The cluster of `make bench-kube`: a real API server, its pods, and their tokens.

Pods and nodes are made through the API, by a few connections at a time. Their tokens
are signed here, with the API server's own key and in its own form: asking it for each
would take minutes. It reviews them as it reviews those that it made.
"""

import itertools
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.bench.load import CLIENT_CORE
from tests.support.harness.processes import descendants
from tests.support.parts.kubernetes import DEPLOY, APIServer
from tests.support.parts.prometheus import samples
from tests.support.parts.tokens import OMIT, TokenIssuer

ISSUER = "https://kubernetes.default.svc"
AUDIENCES = ("istio-ca", "identity.l5d.io")
PEERS = (("istio-system", "istiod"), ("linkerd", "linkerd-identity"))
_ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
_EVENTS = {
    "metadata": {"name": "events"},
    "rules": [
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
    ],
}


class Cluster:
    """An API server with one service account, `shop/web`, and its pods.

    Args:
        server: Ready, and new.
    """

    def __init__(self, server: APIServer) -> None:
        self.server = server
        self._own = server.folder / "bridge-token"
        server.apply(DEPLOY / "home.yaml")
        server.new_account("shop", "web")
        account = server.call("GET", "/api/v1/namespaces/shop/serviceaccounts/web")[1]
        self._account_uid = str(account["metadata"]["uid"])
        self._own.write_text(server.token("meshca", "meshca-bridge"))
        self._make_peers()
        key = load_pem_private_key((server.folder / "accounts.key").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self.issuer = TokenIssuer(ISSUER, key=key)
        """Signs as the API server does."""
        self.pods: list[tuple[str, str, str]] = []
        """Name, UID and node of each."""
        self._nodes: dict[str, str] = {}

    def section(self, verify: str) -> dict[str, object]:
        """Return the section `tokens` of a bridge."""
        found: dict[str, object] = {
            "verify": verify,
            "server": self.server.url,
            "ca_file": str(self.server.ca_file),
            "token_file": str(self._own),
        }
        return found | ({"issuer": ISSUER} if verify == "bound" else {})

    def kubeconfig(self, account: str) -> Path:
        """Return the kubeconfig of one of `PEERS`."""
        return self.server.folder / f"{account}.kubeconfig"

    def populate(self, pods: int, nodes: int) -> None:
        """Make nodes, and pods on them."""
        named = [{"metadata": {"name": f"node-{number}"}} for number in range(nodes)]
        for made in self.server.post_all("/api/v1/nodes", named):
            self._nodes[made["metadata"]["name"]] = made["metadata"]["uid"]
        bodies = [_pod(number, f"node-{number % nodes}") for number in range(pods)]
        self.pods += [
            (one["metadata"]["name"], one["metadata"]["uid"], one["spec"]["nodeName"])
            for one in self.server.post_all("/api/v1/namespaces/shop/pods", bodies)
        ]

    def recorded(self, count: int) -> Iterator[bytes]:
        """Yield events of a watch: one of the pods, under so many names.

        Each has the size and the fields of the pod that the API server answers.
        """
        name, uid, node = self.pods[0]
        _, pod = self.server.call("GET", f"/api/v1/namespaces/shop/pods/{name}")
        text = json.dumps({"type": "ADDED", "object": pod}) + "\n"
        text = text.replace(name, "@name@").replace(uid, "@uid@")
        nodes = sorted(self._nodes)
        for number in range(count):
            one = text.replace("@name@", f"of-stream-{number}")
            one = one.replace("@uid@", str(uuid.UUID(int=number)))
            yield one.replace(node, nodes[number % len(nodes)]).encode()

    def tokens(self, count: int) -> Iterator[str]:
        """Yield distinct tokens, each of one of the pods."""
        now = datetime.now(UTC)
        for name, uid, node in itertools.islice(itertools.cycle(self.pods), count):
            yield self.token(now, (name, uid), node)

    def token(
        self, now: datetime, pod: tuple[str, str], node: str, **changed: Any
    ) -> str:
        """Sign a token of a pod, good for a day, but for what is changed."""
        bound = {
            "namespace": "shop",
            "node": {"name": node, "uid": self._nodes.get(node, str(uuid.uuid4()))},
            "pod": {"name": pod[0], "uid": pod[1]},
            "serviceaccount": {"name": "web", "uid": self._account_uid},
        }
        good: dict[str, Any] = {"audiences": AUDIENCES, "lifetime": 86_400.0}
        claims = {"kubernetes.io": bound} | changed.pop("claims", {})
        return self.issuer.token(now=now, claims=claims, **(good | changed))

    def junk(self) -> dict[str, str]:
        """Return what no API server has to be asked about."""
        now = datetime.now(UTC)
        name, uid, node = self.pods[0]
        good = self.token(now, (name, uid), node)
        return {
            "no token": "junk",
            "long": "x" * 8_000,
            "two parts": good.rpartition(".")[0],
            "another audience": self.token(now, (name, uid), node, audiences=["api"]),
            "expired": self.token(now, (name, uid), node, lifetime=-3600.0),
            "no subject": self.token(now, (name, uid), node, claims={"sub": OMIT}),
        }

    def calls(self) -> Counter[str]:
        """Return how many requests the API server has answered, by resource and verb.

        Watches count when they end. Requests of its own, to itself, are among them.
        """
        found: Counter[str] = Counter()
        for labels, value in samples(self.server.metrics(), "apiserver_request_total"):
            what = labels["resource"] or labels.get("subresource") or "other"
            found[f"{labels['verb']} {what}"] += int(value)
        return found

    def pin(self) -> list[int]:
        """Keep the API server and its store to the client's core; return both."""
        pids = descendants(os.getpid())
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {int(CLIENT_CORE)})
        return pids

    def _make_peers(self) -> None:
        self.server.post(_ROLES, _EVENTS)
        for namespace, name in PEERS:
            self.server.new_account(namespace, name)
            self.server.allow_reviews(namespace, name)
            self._write_kubeconfig(name, self.server.token(namespace, name))
        self.server.bind(*PEERS[1], "events")

    def _write_kubeconfig(self, name: str, token: str) -> None:
        ca_file = str(self.server.ca_file)
        cluster = {"server": self.server.url, "certificate-authority": ca_file}
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "one", "cluster": cluster}],
            "users": [{"name": "one", "user": {"token": token}}],
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            "current-context": "one",
        }
        self.kubeconfig(name).write_text(yaml.safe_dump(tree))


def _pod(number: int, node: str) -> Mapping[str, object]:
    # As a mesh injects it: two containers with their variables, probes and mounts.
    return {
        "metadata": {
            "name": f"web-{number}",
            "labels": {
                "app": "web",
                "pod-template-hash": "7d9c5b8f64",
                "security.istio.io/tlsMode": "istio",
                "service.istio.io/canonical-name": "web",
                "service.istio.io/canonical-revision": "latest",
            },
            "annotations": {
                "kubectl.kubernetes.io/default-container": "web",
                "prometheus.io/port": "15020",
                "prometheus.io/scrape": "true",
                "sidecar.istio.io/status": '{"initContainers":["istio-init"]}',
            },
        },
        "spec": {
            "serviceAccountName": "web",
            "nodeName": node,
            "containers": [
                _container("web", "example.invalid/shop/web:1.4.2", 8080),
                _container("istio-proxy", "example.invalid/istio/proxyv2:1.29", 15021),
            ],
        },
    }


def _container(name: str, image: str, port: int) -> Mapping[str, object]:
    probe = {"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 15}
    field = {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    return {
        "name": name,
        "image": image,
        "ports": [{"containerPort": port, "name": "http"}],
        "env": [
            {"name": "POD_NAME", **field},
            {"name": "LOG_LEVEL", "value": "info"},
            {"name": "CA_ADDR", "value": "istiod.istio-system.svc:15012"},
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "readinessProbe": probe,
        "livenessProbe": probe,
    }


def write_in_two(folder: Path, tokens: Sequence[str]) -> Iterator[Path]:
    """Write tokens into two files, and yield them in turn without end.

    The API server remembers a token that it has checked for 10 s. With two files, no
    run shows it those of the run before.
    """
    half = len(tokens) // 2
    files = [folder / "tokens-0", folder / "tokens-1"]
    for file, some in zip(files, (tokens[:half], tokens[half:]), strict=True):
        file.write_text("".join(f"{token}\n" for token in some))
    return itertools.cycle(files)
