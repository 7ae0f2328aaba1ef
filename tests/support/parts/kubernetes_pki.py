"""A control plane of Kubernetes that runs on exported certificates, on loopback.

Its folder is what `component_files` describes: etcd and the API server are started with
the arguments of their `options`, and take no connection without a client certificate.
"""

import base64
import contextlib
import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography import x509

from bridge.cli.demo_setup.backends import running
from bridge.system.files import write_new
from tests.support.parts import install, netports
from tests.support.parts.pki import Key, bundle, key_pem

_START_SECONDS = 120.0
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Client:
    """A client certificate with its key, and what it trusts."""

    certificates: bytes
    """The client's own first; then what is between it and a trust anchor."""
    key: bytes = field(repr=False)
    anchors: bytes

    @classmethod
    def of_kubeconfig(cls, path: Path) -> Self:
        found = yaml.safe_load(path.read_text("utf-8"))
        cluster, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
        parts = (
            user["client-certificate-data"],
            user["client-key-data"],
            cluster["certificate-authority-data"],
        )
        return cls(*map(base64.b64decode, parts))

    @classmethod
    def of(
        cls,
        certificates: Sequence[x509.Certificate],
        key: Key,
        anchors: bytes,
    ) -> Self:
        return cls(bundle(*certificates), key_pem(key), anchors)

    def context(self, folder: Path) -> ssl.SSLContext:
        """Return a context of this client, by way of files in a new folder."""
        names = ("client.pem", "client.key", "anchors.pem")
        contents = (self.certificates, self.key, self.anchors)
        if not folder.exists():
            write_new(folder, dict(zip(names, contents, strict=True)))
        certificate, key, anchors = (str(folder / name) for name in names)
        context = ssl.create_default_context(cafile=anchors)
        # An intermediate is the anchor, as it is for every program in Go.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_cert_chain(certificate, key)
        return context


class ControlPlane:
    """An etcd member and an API server. A context manager: ready inside.

    Args:
        folder: The folder of one node, as `component_files` makes it.
        port: Where the API server listens.
        admin: Who is asked whether it is ready.
        more: More arguments of the API server.
    """

    def __init__(
        self, folder: Path, port: int, admin: Client, more: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.port = port
        self.admin = admin
        self.etcd_port = netports.reserve()
        self._more = more
        self._parts = contextlib.ExitStack()
        self._contexts: dict[Client, ssl.SSLContext] = {}

    def __enter__(self) -> Self:
        etcd, server = install.kube_apiserver_commands()
        with contextlib.ExitStack() as parts:
            self._run(parts, "etcd", etcd, etcd_options(self.etcd_port))
            self._run(parts, "kube-apiserver", server, self._server_options())
            await_true(self._is_ready, self._log)
            self._parts = parts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    @contextlib.contextmanager
    def etcd_alone(self) -> Iterator[Self]:
        """Run etcd without an API server."""
        etcd, _ = install.kube_apiserver_commands()
        with contextlib.ExitStack() as parts:
            self._run(parts, "etcd", etcd, etcd_options(self.etcd_port))
            await_true(self._is_etcd_ready, self._log)
            yield self

    def call(
        self,
        client: Client | None,
        method: str = "GET",
        path: str = "/api/v1/namespaces",
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Ask the API server; return the status and the answer."""
        return self._call(self.port, client, method, path, body, headers or {})

    def read_etcd(self, client: Client | None) -> int:
        """Read a key of etcd; return the status. Raises OSError as the handshake."""
        key = {"key": base64.b64encode(b"/registry").decode()}
        return self._call(self.etcd_port, client, "POST", "/v3/kv/range", key, {})[0]

    def _call(
        self,
        port: int,
        client: Client | None,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        headers: Mapping[str, str],
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=_ANSWER_SECONDS, context=self._context(client)
        )
        kind = "merge-patch+json" if method == "PATCH" else "json"
        sent = {"Content-Type": f"application/{kind}", **headers}
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body or {}), sent)
            answer = connection.getresponse()
            text = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else {"text": text.decode()}

    def _context(self, client: Client | None) -> ssl.SSLContext:
        if client is None:
            context = ssl.create_default_context(cadata=self.admin.anchors.decode())
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        if client not in self._contexts:
            folder = self.folder / f"client-{len(self._contexts)}"
            self._contexts[client] = client.context(folder)
        return self._contexts[client]

    def _run(
        self,
        parts: contextlib.ExitStack,
        component: str,
        command: Sequence[str],
        more: Sequence[str],
    ) -> None:
        folder = self.folder / component
        options = (folder / "options").read_text("utf-8").split()
        log = folder / "log"
        parts.enter_context(running([*command, *options, *more], os.environ, log))

    def _server_options(self) -> Sequence[str]:
        return (
            f"--etcd-servers=https://127.0.0.1:{self.etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            *self._more,
        )

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.call(self.admin, path="/readyz")[0] == http.HTTPStatus.OK
        return False

    def _is_etcd_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.read_etcd(self.admin) == http.HTTPStatus.OK
        return False

    def _log(self) -> str:
        logs = sorted(self.folder.glob("*/log"))
        return "\n".join(one.read_text("utf-8", "replace")[-4000:] for one in logs)


def etcd_options(port: int) -> Sequence[str]:
    """Return the arguments of an etcd member besides those of its certificates."""
    peer = netports.address()
    return (
        "--data-dir=store",
        "--unsafe-no-fsync",
        f"--listen-client-urls=https://127.0.0.1:{port}",
        f"--advertise-client-urls=https://127.0.0.1:{port}",
        f"--listen-peer-urls=https://{peer}",
        f"--initial-advertise-peer-urls=https://{peer}",
        f"--initial-cluster=default=https://{peer}",
    )


def await_true(condition: Callable[[], bool], told: Callable[[], str]) -> None:
    """Wait until a condition holds; the error has what `told` returns."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"it did not come about:\n{told()}")
