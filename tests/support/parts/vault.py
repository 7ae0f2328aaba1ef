"""OpenBao and HashiCorp Vault: a real server on loopback, and its HTTP API for set-up.

A server is initialised and unsealed by this module, so that a test can seal it, kill it
and start it again with the same store, an earlier one or an empty one.
"""

import contextlib
import http.client
import ipaddress
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

from cryptography import x509

from tests.support.parts import install, netports
from tests.support.parts.pki import bundle, key_pem, new_key, new_root, write_private

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.02
_UNSEALED, _NO_STORE = 200, 501
_WATCH = 'read -r _; kill -KILL "$1"'
"""Waits for the end of its standard input, which is the end of this process."""


@dataclass(frozen=True, slots=True)
class Product:
    """A program that serves the API."""

    name: str
    binary: Callable[[], Path]
    configuration: Mapping[str, object]
    """What only this program knows."""
    role: Mapping[str, object]
    """The fields of a PKI role that only this program knows."""

    def __str__(self) -> str:
        return self.name


OPENBAO = Product(
    "openbao",
    install.openbao_binary,
    configuration={"unsafe_allow_api_audit_creation": True},
    role={"not_after_bound": "ttl-limited"},
)

VAULT = Product(
    "vault", install.vault_binary, configuration={"disable_mlock": True}, role={}
)
PRODUCTS = (OPENBAO, VAULT)


class AnswerError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, errors: list[str]) -> None:
        super().__init__(f"{status}: {'; '.join(errors)}")
        self.status = status
        self.errors = errors


@dataclass(frozen=True, slots=True)
class API:
    """Calls with one token. Each call has a connection of its own."""

    url: str
    token: str = ""
    ca_file: Path | None = None
    namespace: str = ""

    def get(self, path: str) -> dict[str, Any]:
        """Read; return the `data` of the answer."""
        return self.call("GET", path)

    def list(self, path: str) -> dict[str, Any]:
        """List; return the `data` of the answer."""
        return self.call("LIST", path)

    def post(self, path: str, **fields: object) -> dict[str, Any]:
        """Write; return the `data` of the answer, or `auth` if it is a login."""
        return self.call("POST", path, fields)

    def delete(self, path: str) -> None:
        """Delete."""
        self.call("DELETE", path)

    def call(
        self, method: str, path: str, fields: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """Call; return `data`, `auth`, or the whole answer if it has neither.

        Raises:
            AnswerError: The status is 400 or above.
        """
        status, answer = self.ask(method, path, fields)
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise AnswerError(status, list(map(str, answer.get("errors") or [])))
        found = answer.get("data") or answer.get("auth")
        return found if isinstance(found, dict) else answer

    def ask(
        self,
        method: str,
        path: str,
        fields: Mapping[str, object] | None = None,
        **more: str,
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON of the answer, whatever they are.

        Args:
            method: In upper case.
            path: After `/v1/`.
            fields: The body, as JSON.
            more: Headers.
        """
        headers = {"X-Vault-Request": "true", "X-Vault-Token": self.token, **more}
        if self.namespace:
            headers["X-Vault-Namespace"] = self.namespace
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        body = None if fields is None else json.dumps(fields)
        with contextlib.closing(self._connection()) as connection:
            connection.request(method, f"/v1/{quote(path, '/?=&')}", body, headers)
            answer = connection.getresponse()
            text = answer.read()
        return answer.status, json.loads(text) if text.strip() else {}

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        if self.ca_file is None:
            return http.client.HTTPConnection(
                parts.hostname, parts.port, timeout=_ANSWER_SECONDS
            )
        context = ssl.create_default_context(cafile=str(self.ca_file))
        return http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=_ANSWER_SECONDS, context=context
        )


class Server:
    """One server. A context manager: ready inside, and gone after.

    It ends with this process, however this process ends.

    Args:
        folder: New; for its configuration, store, log and certificate.
        product: Which program.
        storage: `raft` keeps what was written over a restart; `inmem` is ready sooner.
        tls: Whether it listens with TLS; `ca_file` then has its CA.
        configuration: More of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        product: Product = OPENBAO,
        *,
        storage: Literal["raft", "inmem"] = "raft",
        tls: bool = False,
        configuration: Mapping[str, object] | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.product = product
        self.port = netports.reserve()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self.ca_file = folder / "ca.pem" if tls else None
        self.root_token = ""
        """Of the store that it has now."""
        self._raft = storage == "raft"
        self._store = folder / "store"
        self._secrets = folder / "secrets.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        if self.ca_file is not None:
            write_certificate(folder, self.ca_file)
        self._configure(configuration or {})

    @property
    def api(self) -> API:
        """The API with the root token."""
        return self.api_with(self.root_token)

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    def api_with(self, token: str, namespace: str = "") -> API:
        """Return the API with another token, or for another namespace."""
        return API(self.url, token, self.ca_file, namespace)

    def log(self) -> str:
        """Return what it has logged."""
        return (self.folder / "log").read_text("utf-8", errors="replace")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._end(signal.SIGKILL)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)

    def start(self, *, unseal: bool = True) -> None:
        """Start the process; initialise a new store. It is ready on return.

        Args:
            unseal: Whether to unseal it, too.
        """
        self._store.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.product.binary(), "server", "-config=server.json"],
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, "watcher", str(self._process.pid)],
            stdin=subprocess.PIPE,
        )
        if self._await(lambda status: status > 0) == _NO_STORE:
            self._initialise()
        secrets = json.loads(self._secrets.read_bytes())
        self.root_token = secrets["root_token"]
        if unseal:
            self.unseal()

    def stop(self) -> None:
        """End the process in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._end(signal.SIGKILL)

    def restart(self, *, store: Path | None = None, empty: bool = False) -> None:
        """End the process and start it again.

        Args:
            store: What `save_store` returned: tokens made since are unknown to it.
            empty: Whether to give it a new store, with another root token.
        """
        self.stop()
        if store is not None or empty or not self._raft:
            shutil.rmtree(self._store)
            self._secrets.unlink()
        if store is not None:
            shutil.copytree(store / "store", self._store)
            shutil.copy2(store / "secrets.json", self._secrets)
        self.start()

    def save_store(self) -> Path:
        """Return a copy of the store as it is now. The server is restarted."""
        assert self._raft, "only raft has files"
        self.stop()
        number = len(list(self.folder.glob("saved-*")))
        saved = self.folder / f"saved-{number}"
        shutil.copytree(self._store, saved / "store")
        shutil.copy2(self._secrets, saved)
        self.start()
        return saved

    def seal(self) -> None:
        """Seal it."""
        self.api.post("sys/seal")

    def unseal(self) -> None:
        """Unseal it; it is active on return."""
        (key,) = json.loads(self._secrets.read_bytes())["keys_base64"]
        self.api_with("").post("sys/unseal", key=key)
        self._await(lambda status: status == _UNSEALED)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Stop the process inside the block: it accepts and does not answer."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is taken by each of its threads in turn.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _configure(self, more: Mapping[str, object]) -> None:
        cluster = netports.address()
        listener: dict[str, object] = {
            "address": f"127.0.0.1:{self.port}",
            "cluster_address": cluster,
            "tls_disable": self.ca_file is None,
        }
        if self.ca_file is not None:
            listener |= {"tls_cert_file": "server.pem", "tls_key_file": "server.key"}
        # One node need not wait long for the heartbeat of a leader that is not there.
        raft = {"path": "store", "node_id": "one", "performance_multiplier": "1"}
        content: dict[str, object] = {
            "storage": {"raft": raft} if self._raft else {"inmem": {}},
            "listener": [{"tcp": listener}],
            "api_addr": self.url,
            "cluster_addr": f"https://{cluster}",
            "ui": False,
            "log_level": "info",
        }
        content |= self.product.configuration
        content |= more
        (self.folder / "server.json").write_text(json.dumps(content, indent=2))

    def _initialise(self) -> None:
        _, answer = self.api_with("").ask(
            "PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1}
        )
        write_private(self._secrets, json.dumps(answer).encode())

    def _await(self, good: Callable[[int], bool]) -> int:
        """Wait for a status of the health page; 0 while nobody listens."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                status, _ = self.api_with("").ask("GET", "sys/health")
            except OSError:
                status = 0
            if good(status):
                return status
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"{self.product} did not get ready:\n{self.log()[-4000:]}")

    def _end(self, number: signal.Signals) -> None:
        watcher, self._watcher = self._watcher, None
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_SECONDS)
        if watcher is not None and watcher.stdin is not None:
            # It must not see the end of its input: the process ID is free again.
            watcher.kill()
            watcher.wait(_STOP_SECONDS)
            watcher.stdin.close()


def _environment() -> dict[str, str]:
    """Return this process's, without what the programs would take from it."""
    ours = ("VAULT_", "BAO_")
    return {
        name: text for name, text in os.environ.items() if not name.startswith(ours)
    }


def write_certificate(folder: Path, ca_file: Path) -> None:
    """Write a CA, and `server.pem` and `server.key` under it, for loopback."""
    now = datetime.now(UTC)
    root = new_root("CA of a server", not_before=now - timedelta(hours=1))
    key = new_key()
    leaf = root.issue_leaf(
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("localhost"),
        key=key,
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=30),
    )
    ca_file.write_bytes(root.pem)
    (folder / "server.pem").write_bytes(bundle(leaf))
    write_private(folder / "server.key", key_pem(key))
