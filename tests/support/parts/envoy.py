"""Envoy as it stands beside a workload, with a static configuration.

Two kinds: `server` terminates mutual TLS and answers with a fixed page that names the
peer it saw; `client` opens mutual TLS for whoever connects to it in the clear.
"""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.parts import install

_START_SECONDS = 20.0
TYPES = "type.googleapis.com/envoy.extensions"
TLS = f"{TYPES}.transport_sockets.tls.v3"
_NETWORK = f"{TYPES}.filters.network"
_REFUSAL = re.compile(r"default_validator\.cc:\d+\] verify cert failed: (.*)")
PEER_HEADER = "x-peer"
"""The response header in which a server says which URI SAN its peer showed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a workload was given: files in PEM."""

    chain: Path
    """Leaf first, then what is between it and the trust anchor."""
    key: Path


class Envoy:
    """One Envoy process. A context manager: it is ready inside, and gone after.

    Args:
        folder: Empty; for its configuration and log.
        listener: The one listener, as Envoy's configuration wants it.
        clusters: The upstreams.
        watched: The file of more upstreams; one that Envoy rejects stops no other.
    """

    def __init__(
        self,
        folder: Path,
        listener: dict[str, Any],
        clusters: tuple[dict[str, Any], ...] = (),
        watched: Path | None = None,
    ) -> None:
        folder.mkdir()
        self._folder = folder
        self._configuration = {
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": _address(0)},
            "static_resources": {"listeners": [listener], "clusters": list(clusters)},
        }
        if watched is not None:
            source = {"path_config_source": {"path": str(watched)}}
            self._configuration["dynamic_resources"] = {
                "cds_config": {**source, "resource_api_version": "V3"}
            }
        self._process: subprocess.Popen[bytes] | None = None
        self._admin = ""

    def __enter__(self) -> Self:
        (self._folder / "envoy.json").write_text(json.dumps(self._configuration))
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(install.envoy_binary(), "--config-path", "envoy.json"),
                    # Without an own base ID two Envoys share memory and fight over it.
                    *("--use-dynamic-base-id", "--concurrency", "1"),
                    *("--admin-address-path", "admin", "--log-level", "warn"),
                    # Only the connection says why a handshake failed.
                    *("--component-log-level", "connection:debug"),
                    *("--drain-time-s", "1", "--parent-shutdown-time-s", "1"),
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        try:
            self._await_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def port(self) -> int:
        """The port of the listener on 127.0.0.1."""
        listeners = json.loads(self._get("/listeners?format=json"))
        address = listeners["listener_statuses"][0]["local_address"]
        return int(address["socket_address"]["port_value"])

    def refusals(self) -> list[str]:
        """Return why it refused each peer that it refused, oldest first."""
        return _REFUSAL.findall(self.log())

    def statistics(self, prefix: str) -> dict[str, int]:
        """Return the counters whose names start with `prefix`, without it."""
        lines = self._get(f"/stats?filter=^{prefix}").decode().splitlines()
        pairs = (line.removeprefix(prefix).split(": ") for line in lines)
        return {name: int(value) for name, value in pairs if value.isdigit()}

    def log(self) -> str:
        """Return what it has logged."""
        return (self._folder / "log").read_text("utf-8", errors="replace")

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._alive():
            try:
                if self._get("/ready").strip() == b"LIVE":
                    return
            except (OSError, ValueError):
                pass  # not yet: no file, or nobody listens, or it is still loading
            time.sleep(0.05)
        raise RuntimeError(f"Envoy did not get ready:\n{self.log()[-4000:]}")

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _get(self, path: str) -> bytes:
        self._admin = (self._folder / "admin").read_text()
        url = f"http://{self._admin}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bytes(answer.read())

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)


def server(
    folder: Path,
    identity: Identity,
    roots: Path,
    *,
    peer: str = "",
    crls: Path | None = None,
) -> Envoy:
    """Build an Envoy that wants a client certificate and answers over HTTP.

    Args:
        folder: New; for its files.
        identity: What it shows.
        roots: The trust anchors that a client's chain must end at.
        peer: The SPIFFE ID that a client must show; any one under `roots` if empty.
        crls: Revocation lists, as istio-agent gives them to Envoy.
    """
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "hello\n"}},
    }
    header = {"key": PEER_HEADER, "value": "%DOWNSTREAM_PEER_URI_SAN%"}
    manager = {
        "@type": f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "server",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
            "response_headers_to_add": [{"header": header}],
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    tls = {
        "@type": f"{TLS}.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _tls(identity, roots, peer, crls),
    }
    chain = {
        "filters": [{"name": "http", "typed_config": manager}],
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    return Envoy(folder, _listener(chain))


def client(
    folder: Path, identity: Identity, roots: Path, *, upstream: int, peer: str
) -> Envoy:
    """Build an Envoy that carries what it gets to `upstream` over mutual TLS.

    Args:
        folder: New; for its files.
        identity: What it shows.
        roots: The trust anchors that the server's chain must end at.
        upstream: The server's port on 127.0.0.1.
        peer: The SPIFFE ID that the server must show.
    """
    proxy = {
        "@type": f"{_NETWORK}.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "client",
        "cluster": "upstream",
        "max_connect_attempts": 1,
    }
    tls = {
        "@type": f"{TLS}.UpstreamTlsContext",
        "common_tls_context": _tls(identity, roots, peer),
    }
    endpoint = {"endpoint": {"address": _address(upstream)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    chain = {"filters": [{"name": "tcp", "typed_config": proxy}]}
    return Envoy(folder, _listener(chain), (cluster,))


def fetch(port: int) -> tuple[str, str]:
    """Ask for a page through the Envoy at `port`.

    Returns:
        The page, and the peer that the server says it saw.

    Raises:
        OSError: The connection was refused or cut, as by a failed handshake.
    """
    url = f"http://127.0.0.1:{port}/"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode(), answer.headers[PEER_HEADER]
    except urllib.error.URLError as error:
        raise ConnectionError(str(error.reason)) from error


def _tls(
    identity: Identity, roots: Path, peer: str, crls: Path | None = None
) -> dict[str, Any]:
    validation: dict[str, Any] = {"trusted_ca": {"filename": str(roots)}}
    if crls is not None:
        validation["crl"] = {"filename": str(crls)}
    if peer:
        validation["match_typed_subject_alt_names"] = [
            {"san_type": "URI", "matcher": {"exact": peer}}
        ]
    pair = {
        "certificate_chain": {"filename": str(identity.chain)},
        "private_key": {"filename": str(identity.key)},
    }
    return {"tls_certificates": [pair], "validation_context": validation}


def _listener(chain: dict[str, Any]) -> dict[str, Any]:
    return {"name": "listener", "address": _address(0), "filter_chains": [chain]}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
