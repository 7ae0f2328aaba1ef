"""A key server on loopback: HTTPS, its answers settable, its requests counted."""

import ipaddress
import json
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

JWKS_PATH = "/openid/v1/jwks"
DISCOVERY_PATH = "/.well-known/openid-configuration"


class KeyServer:
    """Serves JWK Sets as an API server does. A context manager.

    Args:
        folder: For the server's certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "keyserver-ca.pem"
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        """From path to status, headers and body; anything else is a 404."""
        self.requests: list[str] = []
        """The paths that were asked for."""
        self.bearer = ""
        """The bearer token that a request has to show; empty: none."""
        self.gate = threading.Event()
        """While it is clear, no answer leaves."""
        self.gate.set()
        self.asked = threading.Semaphore(0)
        """Released once for each request, before the gate."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = False
        self._server.socket = _tls(folder, self.ca_file).wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    @property
    def jwks_url(self) -> str:
        return self.url + JWKS_PATH

    def show(self, document: object, path: str = JWKS_PATH) -> None:
        """Answer with `document` in JSON."""
        self.answers[path] = (200, {}, json.dumps(document).encode())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(server: KeyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            server.requests.append(self.path)
            server.asked.release()
            server.gate.wait(10)
            status, headers, body = server.answers.get(self.path, (404, {}, b""))
            shown = self.headers.get("Authorization", "")
            if server.bearer and shown != f"Bearer {server.bearer}":
                # As an API server: anonymous callers are known, and have no right.
                status, headers, body = (401 if shown else 403), {}, b""
            try:
                self.send_response(status)
                for name, value in (
                    {"Content-Length": str(len(body))} | headers
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True  # the client has gone

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True  # a handshake that the client refused

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


def _tls(folder: Path, ca_file: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "key server")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file = folder / "keyserver.key"
    key_file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    return context
