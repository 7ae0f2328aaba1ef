"""The API server of Kubernetes, with the etcd that it stores in, on loopback."""

import contextlib
import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from bridge.cli.demo_setup.backends import running
from tests.support.parts import install, netports
from tests.support.parts.pki import key_pem, new_key, write_private
from tests.support.parts.vault import write_certificate

_START_SECONDS = 120.0
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.05
_ADMIN = "admin-of-a-test"


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
        self._parts = contextlib.ExitStack()

    def __enter__(self) -> Self:
        write_certificate(self.folder, self.ca_file)
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
            self._run(parts, "server", [*server, *self._options(store)])
            self._await_ready()
            self._parts = parts.pop_all()

    def kill(self) -> None:
        """End both at once, by SIGKILL."""
        self._parts.close()

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        token: str = _ADMIN,
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer, by default as an administrator."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=_ANSWER_SECONDS, context=context
        )
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
        }
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body or {}), headers)
            answer = connection.getresponse()
            text = answer.read()
        # Keys are `application/jwk-set+json`.
        is_json = answer.headers.get_content_type().endswith("json")
        return answer.status, json.loads(text) if is_json else {}

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Make something; return it as the server has it."""
        status, made = self.call("POST", path, body)
        assert status == http.HTTPStatus.CREATED, made
        return made

    def new_account(self, namespace: str, name: str) -> None:
        """Make a namespace with a service account."""
        self.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.post(accounts, {"metadata": {"name": name}})

    def allow_reviews(self, namespace: str, name: str) -> None:
        """Let a service account review tokens, as Vault's does."""
        rights = "rbac.authorization.k8s.io"
        account = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        role = {
            "apiGroup": rights,
            "kind": "ClusterRole",
            "name": "system:auth-delegator",
        }
        self.post(
            f"/apis/{rights}/v1/clusterrolebindings",
            {
                "metadata": {"name": f"{namespace}-{name}"},
                "subjects": [account],
                "roleRef": role,
            },
        )

    def token(self, namespace: str, name: str, *audiences: str) -> str:
        """Return a token of a service account, as a pod of it would get it."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        spec = {"audiences": list(audiences), "expirationSeconds": 3600}
        return str(self.post(path, {"spec": spec})["status"]["token"])

    def delete_account(self, namespace: str, name: str) -> None:
        """Delete a service account; its tokens are worth nothing after that."""
        self.call("DELETE", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}")

    def _options(self, store: str) -> Sequence[str]:
        return (
            f"--etcd-servers=http://{store}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
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
    ) -> None:
        parts.enter_context(running(command, os.environ, self.folder / f"{name}.log"))

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.call("GET", "/readyz")[0] == http.HTTPStatus.OK:
                    return
            time.sleep(_POLL_SECONDS)
        log = (self.folder / "server.log").read_text("utf-8", errors="replace")
        raise RuntimeError(f"the API server did not get ready:\n{log[-4000:]}")


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
