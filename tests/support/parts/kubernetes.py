"""The API server of Kubernetes, with the etcd that it stores in, on loopback."""

import base64
import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from bridge.cli.demo_setup.backends import running
from tests.support.parts import install, netports, prometheus
from tests.support.parts.pki import (
    bundle,
    key_pem,
    new_key,
    new_root,
    write_private,
)
from tests.support.parts.vault import write_certificate

_START_SECONDS = 120.0
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.05
_CONNECTIONS = 8
_ADMIN = "admin-of-a-test"
_RIGHTS = "/apis/rbac.authorization.k8s.io/v1"
DEPLOY = Path(__file__).resolve().parents[3] / "deploy/kubernetes"
"""The rights of a bridge, as its users apply them."""


class APIServer:
    """An API server without nodes. A context manager: ready inside, and gone after.

    Args:
        folder: New; for its store, logs, keys and certificate.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.port = netports.reserve()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca_file = folder / "ca.pem"
        start = datetime.now(UTC) - timedelta(hours=1)
        self._clients = new_root("CA of clients", not_before=start)
        self._parts = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        write_certificate(self.folder, self.ca_file)
        (self.folder / "clients.pem").write_bytes(self._clients.pem)
        write_private(self.folder / "accounts.key", key_pem(new_key("rsa2048")))
        tokens = f"{_ADMIN},admin,admin,system:masters\n"
        write_private(self.folder / "tokens.csv", tokens.encode())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start both; also again, after `kill`."""
        with contextlib.ExitStack() as parts:
            store, peer = netports.address(), netports.address()
            etcd, server = install.kube_apiserver_commands()
            self._run(parts, "etcd", [*etcd, *_etcd_options(store, peer)])
            self._process = self._run(parts, "server", [*server, *self._options(store)])
            self._await_ready()
            self._parts = parts.pop_all()

    def kill(self) -> None:
        """End both at once, by SIGKILL."""
        self._parts.close()

    def pause(self) -> None:
        """Let the API server answer nobody: it takes connections and is silent."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        token: str = _ADMIN,
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer, by default as an administrator."""
        status, kind, text = self._asked(method, path, body, token)
        # Keys are `application/jwk-set+json`.
        return status, json.loads(text) if kind.endswith("json") else {}

    def metrics(self) -> str:
        """Return its metrics, as `prometheus` reads them."""
        _, _, text = self._asked("GET", "/metrics")
        return text.decode()

    def watches(self, resource: str) -> float:
        """Return how many watches of a resource there are, its own included."""
        labels = {"verb": "WATCH", "resource": resource}
        return prometheus.total(
            self.metrics(), "apiserver_longrunning_requests", **labels
        )

    def apply(self, path: Path) -> None:
        """Make what a file of `DEPLOY` has, as `kubectl apply` does."""
        for one in yaml.safe_load_all(path.read_text("utf-8")):
            status, answer = self.call("POST", _collection(one), one)
            assert status in {http.HTTPStatus.CREATED, http.HTTPStatus.CONFLICT}, answer

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Make something; return it as the server has it."""
        status, made = self.call("POST", path, body)
        assert status == http.HTTPStatus.CREATED, made
        return made

    def post_all(
        self, path: str, bodies: Sequence[Mapping[str, object]]
    ) -> list[dict[str, Any]]:
        """Make many things over some connections; return each as the server has it."""
        shares = [bodies[at::_CONNECTIONS] for at in range(_CONNECTIONS)]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            made = pool.map(lambda share: self._posted(path, share), shares)
            return [one for share in made for one in share]

    def new_account(self, namespace: str, name: str) -> None:
        """Make a namespace with a service account."""
        self.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.post(accounts, {"metadata": {"name": name}})

    def allow_reviews(self, namespace: str, name: str) -> None:
        """Let a service account review tokens, as Vault's does."""
        self.bind(namespace, name, "system:auth-delegator")

    def bind(self, namespace: str, name: str, role: str) -> None:
        """Give a service account the rights of a cluster role."""
        account = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        self._bind(account, f"{namespace}-{name}-{role}", role)

    def user(self, name: str, *roles: str) -> tuple[bytes, bytes]:
        """Return a client certificate of a user with these cluster roles, and its key.

        Both are in PEM.
        """
        for role in roles:
            self._bind({"kind": "User", "name": name}, f"{name}-{role}", role)
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        start = datetime.now(UTC) - timedelta(minutes=1)
        # Go reads no certificate whose list of names is empty.
        leaf = self._clients.issue_leaf(
            x509.DNSName(name), key=key, subject=subject, not_before=start
        )
        return bundle(leaf), key_pem(key)

    def _bind(self, subject: Mapping[str, str], name: str, role: str) -> None:
        self.post(
            f"{_RIGHTS}/clusterrolebindings",
            {
                "metadata": {"name": name},
                "subjects": [subject],
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": role,
                },
            },
        )

    def token(
        self,
        namespace: str,
        name: str,
        *audiences: str,
        bound_to: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a token of a service account.

        Args:
            namespace: Of the account.
            name: Of the account.
            audiences: By default the API server itself.
            bound_to: The pod or the secret with which the token ends, as the server
                has it.
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        spec: dict[str, object] = {
            "audiences": list(audiences),
            "expirationSeconds": 3600,
        }
        if bound_to is not None:
            meta = bound_to["metadata"]
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": bound_to["kind"],
                "name": meta["name"],
                "uid": meta["uid"],
            }
        return str(self.post(path, {"spec": spec})["status"]["token"])

    def new_pod(
        self, namespace: str, account: str, name: str, node: str = "node-1"
    ) -> dict[str, Any]:
        """Make a pod that some scheduler has put on a node."""
        spec = {
            "serviceAccountName": account,
            "nodeName": node,
            "containers": [{"name": "a", "image": "example.invalid/a"}],
        }
        pods = f"/api/v1/namespaces/{namespace}/pods"
        return self.post(pods, {"metadata": {"name": name}, "spec": spec})

    def pod_token(
        self, namespace: str, account: str, name: str, node: str = "node-1"
    ) -> str:
        """Make a pod; return a token for Istio's CA as the kubelet gets it for it."""
        pod = self.new_pod(namespace, account, name, node)
        return self.token(namespace, account, "istio-ca", bound_to=pod)

    def delete(self, path: str, grace: int = 0) -> None:
        """Delete an object; a pod is there for seconds more."""
        status, answer = self.call("DELETE", path, {"gracePeriodSeconds": grace})
        assert status == http.HTTPStatus.OK, answer

    def delete_account(self, namespace: str, name: str) -> None:
        """Delete a service account; its tokens are worth nothing after that."""
        self.call("DELETE", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}")

    def _posted(
        self, path: str, bodies: Sequence[Mapping[str, object]]
    ) -> list[dict[str, Any]]:
        with contextlib.closing(self._connection()) as connection:
            made = [_answer(connection, "POST", path, body) for body in bodies]
        for status, _, text in made:
            assert status == http.HTTPStatus.CREATED, text
        return [json.loads(text) for _, _, text in made]

    def _asked(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        token: str = _ADMIN,
    ) -> tuple[int, str, bytes]:
        with contextlib.closing(self._connection()) as connection:
            return _answer(connection, method, path, body, token)

    def _connection(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=_ANSWER_SECONDS, context=context
        )

    def _options(self, store: str) -> Sequence[str]:
        return (
            f"--etcd-servers=http://{store}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            "--client-ca-file=clients.pem",
            "--tls-cert-file=server.pem",
            "--tls-private-key-file=server.key",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=accounts.key",
            "--service-account-signing-key-file=accounts.key",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--cert-dir=certificates",
        )

    def _run(
        self, parts: contextlib.ExitStack, name: str, command: Sequence[str]
    ) -> "subprocess.Popen[bytes]":
        log = self.folder / f"{name}.log"
        return parts.enter_context(running(command, os.environ, log))

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.call("GET", "/readyz")[0] == http.HTTPStatus.OK:
                    return
            time.sleep(_POLL_SECONDS)
        log = (self.folder / "server.log").read_text("utf-8", errors="replace")
        raise RuntimeError(f"the API server did not get ready:\n{log[-4000:]}")


def _answer(
    connection: http.client.HTTPSConnection,
    method: str,
    path: str,
    body: Mapping[str, object] | None,
    token: str = _ADMIN,
) -> tuple[int, str, bytes]:
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
    }
    connection.request(method, path, json.dumps(body or {}), headers)
    answer = connection.getresponse()
    return answer.status, answer.headers.get_content_type(), answer.read()


def kubeconfig(server: APIServer, name: str, token: str) -> bytes:
    """Return a kubeconfig with all content inside, as istioctl writes it.

    Args:
        server: The API server.
        name: Of the cluster, the user and the context.
        token: The user's.
    """
    ca = base64.b64encode(server.ca_file.read_bytes()).decode()
    cluster = {"certificate-authority-data": ca, "server": server.url}
    tree = {
        "apiVersion": "v1",
        "clusters": [{"cluster": cluster, "name": name}],
        "contexts": [{"context": {"cluster": name, "user": name}, "name": name}],
        "current-context": name,
        "kind": "Config",
        "preferences": {},
        "users": [{"name": name, "user": {"token": token}}],
    }
    return yaml.safe_dump(tree).encode()


def remote_secret(cluster: str, content: bytes) -> dict[str, object]:
    """Return the secret in which istiod looks for a kubeconfig of a cluster.

    Source:
        istio.io/istio, istioctl/pkg/multicluster/remote_secret.go,
        createRemoteServiceAccountSecret.
    """
    return {
        "metadata": {
            "name": f"istio-remote-secret-{cluster}",
            "annotations": {"networking.istio.io/cluster": cluster},
            "labels": {"istio/multiCluster": "true"},
        },
        "data": {cluster: base64.b64encode(content).decode()},
    }


def _collection(one: Mapping[str, Any]) -> str:
    version, namespace = one["apiVersion"], one["metadata"].get("namespace")
    group = f"/api/{version}" if version == "v1" else f"/apis/{version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{group}{scope}/{one['kind'].lower()}s"


def _etcd_options(store: str, peer: str) -> Sequence[str]:
    return (
        "--data-dir=store",
        "--unsafe-no-fsync",
        f"--listen-client-urls=http://{store}",
        f"--advertise-client-urls=http://{store}",
        f"--listen-peer-urls=http://{peer}",
        f"--initial-advertise-peer-urls=http://{peer}",
        f"--initial-cluster=default=http://{peer}",
    )
