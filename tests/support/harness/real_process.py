"""The bridge as its users start it: `meshca serve -c FILE`, in a process of its own.

`Bridge` writes everything that the process needs into one folder (a hierarchy, the keys
of a cluster's tokens, the configuration) and serves until the block ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.dataplanes.planes import DataPlane
from bridge.errors import LedgerError
from bridge.hierarchy.export import write
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.queries import Query
from bridge.spiffe import TrustDomain
from bridge.x509.algorithm import KeyAlgorithm
from tests.support.harness import processes
from tests.support.harness.configuration import merge
from tests.support.harness.journals import journaled
from tests.support.parts import netports, prometheus
from tests.support.parts.pki import Authority, Key, new_key
from tests.support.parts.tokens import TokenIssuer

MESHCA = Path(sys.executable).parent / "meshca"
"""The command, as the installation put it beside the interpreter."""
SERVER_NAME = "meshca.istio-system.svc"
PEER_SERVER_NAME = "istiod.istio-system.svc"
"""What `caload` and an istio-agent that believes in `localhost` expect."""
_READY_SECONDS = 30.0
_STOP_SECONDS = 30.0
_ROW_SECONDS = 20.0
_WHOLE_SECONDS = 5.0
_SILENT = "it does not answer"
_UP = "meshca_worker_up"


class Bridge:
    """One served bridge. A context manager: ready inside, and gone in order after.

    Args:
        folder: New; for the configuration and the state.
        overrides: Merged into the configuration; a mapping into a mapping, anything
            else in place of what was there.
        issuers: Sign the tokens of the cluster `Kubernetes`; by default one with an
            RSA key and one with an ECDSA key.
        trust_domain: The one trust domain.
        ca_key: Of each tier of the hierarchy.
        data_plane: Whose proxies the hierarchy is for.
        prefix: Put before the command, such as `taskset -c 0`.
        fronts: Which there are.
        awaits: The page that answers 200 when the block may begin.
        command: The `meshca` that serves.
    """

    def __init__(  # noqa: PLR0913 - what differs between tests, each by name
        self,
        folder: Path,
        *,
        overrides: Mapping[str, Any] | None = None,
        issuers: Sequence[TokenIssuer] = (),
        trust_domain: str = "corp.example",
        ca_key: KeyAlgorithm = "p256",
        data_plane: DataPlane = DataPlane.SIDECAR,
        prefix: Sequence[str] = (),
        fronts: Sequence[str] = ("istio",),
        awaits: str = "/readyz",
        command: Path = MESHCA,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.trust_domain = trust_domain
        self._issuers = issuers or (TokenIssuer(), TokenIssuer(algorithm="ES256"))
        self.address = netports.address()
        self.mtls_address = netports.address()
        self.linkerd_address = netports.address()
        self.admin = netports.address()
        self.configuration = folder / "bridge.yaml"
        self.ready_seconds = 0.0
        """From the start of the process to the first good answer of /readyz."""
        self._prefix = prefix
        self._fronts = fronts
        self._awaits = awaits
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._write(ca_key, data_plane, overrides or {})

    @property
    def roots(self) -> Path:
        """The trust anchors, as PEM."""
        return self.folder / "hierarchy/roots.pem"

    @property
    def chain(self) -> Path:
        """The issuing CA and the intermediates, as PEM."""
        return self.folder / "hierarchy/chain.pem"

    @property
    def stolen_ca(self) -> Authority:
        """The issuing CA as a thief of its key has it: signs what the bridge won't."""
        certificate, *above = x509.load_pem_x509_certificates(self.chain.read_bytes())
        above += x509.load_pem_x509_certificates(self.roots.read_bytes())
        file = self.folder / "hierarchy/issuing.key"
        key = load_pem_private_key(file.read_bytes(), password=None)
        # The keys above it were not stolen: these stand in for them and fit nothing.
        tiers = tuple(Authority(one, new_key()) for one in above)
        return Authority(certificate, cast("Key", key), tiers)

    @property
    def pid(self) -> int:
        """The parent process."""
        if self._process is None:
            raise RuntimeError("the bridge is not running")
        return self._process.pid

    @property
    def worker(self) -> int:
        """The only worker process."""
        (found,) = processes.workers(self.pid)
        return found

    @property
    def feeders(self) -> list[int]:
        """The processes that feed its archive."""
        return processes.feeders(self.pid)

    @property
    def watched(self) -> dict[str, int]:
        """Its processes by name, as `caload -watch` wants them."""
        children = processes.descendants(self.pid)
        return {
            "server": self.pid,
            **{f"child{number}": pid for number, pid in enumerate(children)},
        }

    def token(
        self,
        namespace: str = "shop",
        account: str = "web",
        *,
        algorithm: str = "RS256",
        audiences: Sequence[str] = ("istio-ca",),
    ) -> str:
        """Sign a token of the cluster `Kubernetes`, for an hour."""
        (issuer,) = [one for one in self._issuers if one.algorithm == algorithm]
        now = datetime.now(UTC)
        return issuer.token(namespace, account, audiences=audiences, now=now)

    def __enter__(self) -> Self:
        command: list[str | Path] = [*self._prefix, self._command, "serve"]
        command += ["-c", self.configuration]
        started = time.monotonic()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log
            )
        try:
            self._await_ready(started + _READY_SECONDS)
        except BaseException:
            self._kill()
            raise
        self.ready_seconds = time.monotonic() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # The test's own failure is what matters; this only cleans up after it.
            self._kill()
            return
        self.stop()

    def stop(self) -> None:
        """Ask the process to finish, as Kubernetes does, and wait for it.

        Raises:
            RuntimeError: It does not finish in time, or not with status 0.
        """
        if self._process is None:
            return
        self._process.terminate()
        try:
            status = self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            raise RuntimeError(f"still there after SIGTERM:\n{self.log()}") from None
        self._process = None
        if status != 0:
            raise RuntimeError(f"exit status {status} after SIGTERM:\n{self.log()}")

    def signal(self, number: int) -> None:
        """Send a signal and wait for the process to end; nobody asks for its status."""
        if self._process is None:
            raise RuntimeError("the bridge is not running")
        self._process.send_signal(number)
        self._process.wait(timeout=_STOP_SECONDS)
        self._process = None

    def kill(self) -> None:
        """End the parent and its workers at once, as a node that dies does."""
        workers = processes.workers(self.pid)
        self.signal(signal.SIGKILL)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        processes.await_gone(workers, _STOP_SECONDS)

    def log(self) -> str:
        """Return the end of what the process wrote."""
        return (self.folder / "log").read_text("utf-8", errors="replace")[-8000:]

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page of the admin address.

        A worker that is too busy for a second does not answer, for its parent. Where
        no other one does, it is asked again.
        """
        until = time.monotonic() + _WHOLE_SECONDS
        while True:
            status, body = self._got(path)
            is_silent = status != 200 and _SILENT in body
            if not is_silent or time.monotonic() > until:
                return status, body

    def _got(self, path: str) -> tuple[int, str]:
        try:
            url = f"http://{self.admin}{path}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, /, **labels: str) -> float:
        """Return the sum of the samples `name` that carry `labels`; 0 without any.

        The page is asked for again while it is without a worker, unless `name` tells
        of that.
        """
        until = time.monotonic() + _WHOLE_SECONDS
        while True:
            page = self.get("/metrics")[1]
            is_whole = name == _UP or all(up for _, up in prometheus.samples(page, _UP))
            if is_whole or time.monotonic() > until:
                return prometheus.total(page, name, **labels)

    def rows(self, **fields: object) -> list[dict[str, Any]]:
        """Return the rows of the journals in which `fields` have these values."""
        rows = journaled(self.folder / "journal")
        return [row for row in rows if fields.items() <= row.items()]

    def await_rows(self, count: int, **fields: object) -> list[dict[str, Any]]:
        """Return what `rows` does, once there are `count`: an outcome may follow late.

        Raises:
            LookupError: There are fewer, after a while, or more.
        """
        deadline = time.monotonic() + _ROW_SECONDS
        while len(found := self.rows(**fields)) < count:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if len(found) != count:
            raise LookupError(f"{len(found)} rows, expected {count}: {found}")
        return found

    def await_archived(self, serial: int) -> None:
        """Wait until the archive has a certificate: then it can be renewed."""
        until = time.monotonic() + _STOP_SECONDS
        while not self._is_archived(serial):
            if time.monotonic() > until:
                raise LookupError(f"the archive has no certificate {serial:x}")
            time.sleep(0.05)

    def _is_archived(self, serial: int) -> bool:
        url = f"sqlite:///{self.folder / 'archive.db'}"
        try:
            archive = Archive.open(url, make=False)
        except LedgerError:  # the feeder has not begun
            return False
        with contextlib.closing(archive):
            return bool([*archive.search(Query(serial=f"{serial:x}"))])

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `meshca` command on the same configuration."""
        return subprocess.run(
            [MESHCA, *arguments, "-c", self.configuration],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _write(
        self, ca_key: KeyAlgorithm, plane: DataPlane, overrides: Mapping[str, Any]
    ) -> None:
        domains = (TrustDomain(self.trust_domain),)
        planes = frozenset({plane})
        hierarchy = make(
            ThrowawaySpec(trust_domains=domains, key=ca_key, data_planes=planes)
        )
        write(hierarchy, self.folder / "hierarchy")
        keys = {"keys": [issuer.jwk() for issuer in self._issuers]}
        (self.folder / "jwks.json").write_text(json.dumps(keys))
        tree = merge(self._defaults(), overrides)
        self.configuration.write_text(yaml.safe_dump(tree, sort_keys=False))

    def _defaults(self) -> dict[str, Any]:
        fronts = {
            "istio": {
                "listen": self.address,
                "mtls_listen": self.mtls_address,
                "mtls_identities": [{"namespaces": ["shop"]}],
                "audiences": ["istio-ca"],
                "tls": {"dns_names": [SERVER_NAME, PEER_SERVER_NAME]},
            },
            "linkerd": {
                "listen": self.linkerd_address,
                "audiences": ["identity.l5d.io"],
            },
        }
        return {
            "trust_domain": self.trust_domain,
            "fronts": {name: fronts[name] for name in self._fronts},
            "clusters": [
                {
                    "name": "Kubernetes",
                    "tokens": {
                        "verify": "jwks",
                        "file": "jwks.json",
                        "issuer": self._issuers[0].issuer,
                    },
                    "namespaces": ["*"],
                }
            ],
            "issuing_cas": {
                "file-1": {
                    "plugin": "file",
                    "chain": "hierarchy/chain.pem",
                    "options": {"key": "hierarchy/issuing.key"},
                }
            },
            "trust_anchors": "hierarchy/roots.pem",
            "issuance": {"issuing_cas": ["file-1"]},
            "ledger": {
                "journal": "journal/",
                "archive": "sqlite:///archive.db",
                "heads": {"sink": "heads.jsonl", "interval": "1s"},
            },
            "admin": {"listen": self.admin},
        }

    def _await_ready(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"the bridge did not start:\n{self.log()}")
            with contextlib.suppress(OSError):
                if self.get(self._awaits)[0] == 200:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"the bridge did not get ready:\n{self.log()}")

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=_STOP_SECONDS)
            self._process = None
