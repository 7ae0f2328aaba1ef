"""Asks Envoy for its verdict on many chains: one process, an upstream for each chain.

Envoy shows the chain itself too: what it cannot load as its own, no sidecar can.
"""

import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.interop.planes.verifiers import Verdicts, showing
from tests.support.parts.envoy import TLS, TYPES, Envoy

_HEADER = "x-chain"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_REJECTED = re.compile(r"(?:cluster\(s\) |, )([a-z0-9-]+): (.*?)(?=, [a-z0-9-]+: |$)")
_SECONDS = 20.0


def ask_boringssl(names: list[str], folder: Path) -> Verdicts:
    """Ask Envoy, which verifies as a client and loads each chain as its own."""
    watched = folder / "clusters.json"
    with _upstream(folder) as port:
        clusters = [_cluster(name, folder, port) for name in names]
        watched.write_text(json.dumps({"resources": clusters}))
        with Envoy(folder / "envoy", _listener(), watched=watched) as envoy:
            rejected = _rejected(envoy, watched)
            return {
                name: rejected.get(name) or _asked(envoy.port, name) for name in names
            }


def _rejected(envoy: Envoy, watched: Path) -> Verdicts:
    # Envoy is live before it has read the file of clusters.
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        statistics = envoy.statistics("cluster_manager.cds.update_")
        if statistics["success"] or statistics["rejected"]:
            break
        time.sleep(0.05)
    else:
        raise RuntimeError(f"Envoy has not read {watched}:\n{envoy.log()[-4000:]}")
    return dict(_REJECTED.findall(envoy.log()))


def _asked(port: int, name: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/", headers={_HEADER: name}
    )
    try:
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode() or str(error)


@contextmanager
def _upstream(folder: Path) -> Iterator[int]:
    """Serve every chain at one port, each by the name that the client asks for."""

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = showing(str(name), folder, ssl.PROTOCOL_TLS_SERVER)

    first = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    first.sni_callback = choose
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serve = threading.Thread(target=_serve, args=(listening, first), daemon=True)
        serve.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        serve.join(timeout=10)


def _serve(listening: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            plain, _ = listening.accept()
        except OSError:
            return
        try:
            with plain, context.wrap_socket(plain, server_side=True) as connection:
                connection.settimeout(10)
                connection.recv(4096)
                connection.sendall(_ANSWER)
        except OSError:
            continue  # the client did not want the certificate


def _cluster(name: str, folder: Path, port: int) -> dict[str, Any]:
    def file(kind: str) -> dict[str, str]:
        return {"filename": str(folder / f"{name}.{kind}")}

    pair = {"certificate_chain": file("chain"), "private_key": file("key")}
    tls = {
        "@type": f"{TLS}.UpstreamTlsContext",
        "sni": name,
        "common_tls_context": {
            "tls_certificates": [pair],
            "validation_context": {"trusted_ca": file("roots")},
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        "transport_socket": {"name": "tls", "typed_config": tls},
    }


def _listener() -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster_header": _HEADER}}
    router = {"@type": f"{TYPES}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "asking",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]
        },
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    filters = [{"name": "http", "typed_config": manager}]
    return {
        "name": "asking",
        "address": address,
        "filter_chains": [{"filters": filters}],
    }
