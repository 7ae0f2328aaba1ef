"""A server in this process, with an issuance that does what a test tells it to."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import grpc
import yaml
from cryptography import x509

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from bridge.config import BridgeConfig, parse
from bridge.errors import BridgeError
from bridge.issuance.call import Call, Issued
from bridge.metrics.instruments import Metrics
from bridge.server.istio import METHOD, IstioListener
from bridge.server.server import Server
from bridge.server.serving_certificate import ServingCertificate
from bridge.system.clock import Clock, system_clock
from bridge.x509.key_pair import KeyPair
from tests.support.parts.pki import bundle, key_pem, new_key, new_root

SERVER_NAME = "meshca.istio-system.svc"
_ANY = "127.0.0.1:0"
_ISSUED_TLS = f"{{dns_names: [{SERVER_NAME}]}}"
WAIT_SECONDS = 30.0
"""Longer than anything takes that a test waits for."""


def eventually(condition: Callable[[], bool]) -> None:
    # Of what the other side of a connection does there is no event to wait for.
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def silence(over: threading.Event) -> Iterator[bytes]:
    """Send no message on a stream until `over` is set."""
    over.wait(2 * WAIT_SECONDS)
    yield from ()


class ListenerCA:
    """A root that issues certificates for listeners and for clients."""

    def __init__(self, name: str = "listener root") -> None:
        self._root = new_root(name, not_before=_now() - timedelta(days=30))
        self.pem = self._root.pem
        self.issued = 0

    def issue(
        self, names: Sequence[x509.GeneralName], ttl: timedelta, now: datetime
    ) -> KeyPair:
        key, begin = new_key(), now - timedelta(minutes=2)
        leaf = self._root.issue_leaf(
            *names, key=key, not_before=begin, not_after=now + ttl
        )
        self.issued += 1
        return KeyPair(
            certificate_chain_pem=bundle(leaf),
            private_key_pem=key_pem(key),
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
        )

    def issue_serving(self, dns_names: Sequence[str], ttl: timedelta) -> KeyPair:
        return self.issue([x509.DNSName(name) for name in dns_names], ttl, _now())

    def issue_client(self, *uris: str) -> KeyPair:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return self.issue(names, timedelta(hours=1), _now())


ISSUED = Issued(
    leaf=b"leaf",
    chain=(b"issuing", b"regional"),
    chain_pem=("issuing\n", "regional\n"),
    anchors_pem="root\n",
    valid_until=datetime(2100, 1, 1, tzinfo=UTC),
)


class ScriptedIssuance:
    """Keeps the calls it got, and answers or fails as `does` says."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.refused: list[BridgeError] = []
        self.does: Callable[[Call], Issued] = lambda _call: ISSUED

    def issue(self, call: Call) -> Issued:
        self.calls.append(call)
        return self.does(call)

    def refuse(self, error: BridgeError, *, front: str) -> None:
        assert front in {"istio", "linkerd"}
        self.refused.append(error)

    def fails(self, error: BaseException) -> None:
        def fail(_call: Call) -> Issued:
            raise error

        self.does = fail


class Held:
    """Work that begins, tells so, and ends when the test says."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, _call: Call) -> Issued:
        self.began.release()
        assert self.release.wait(WAIT_SECONDS)
        return ISSUED


def linkerd_server(
    folder: Path, issuance: ScriptedIssuance, metrics: Metrics
) -> Server:
    """Make a server with Linkerd's front alone; nothing is issued for itself."""

    def none(*_: object) -> KeyPair:
        raise AssertionError("it needs no serving certificate")

    text = _CONFIG.format(
        listen=_ANY,
        mtls_listen=_ANY,
        limits="{threads: 2}",
        tls="{}",
        fronts="",
        grpc_listen="",
    )
    tree = yaml.safe_load(text)
    tree["fronts"] = {"linkerd": {"listen": _ANY, "cluster": "second"}}
    tree["clusters"] += [{**tree["clusters"][0], "name": "second"}]
    return Server(
        parse(yaml.safe_dump(tree), folder / "bridge.yaml"),
        issuance,  # type: ignore[arg-type]
        issue_serving=none,
        anchors_pem=bytes,
        metrics=metrics,
        clock=system_clock,
        problems=dict,
    )


def istio_config(  # noqa: PLR0913 - what differs between the tests, each by name
    folder: Path,
    *,
    listen: str = _ANY,
    mtls_listen: str = _ANY,
    limits: str = "{threads: 2}",
    tls: str = _ISSUED_TLS,
    fronts: str = "",
    has_health: bool = False,
) -> BridgeConfig:
    """Return a configuration with Istio's front; the values are in YAML."""
    text = _CONFIG.format(
        listen=listen,
        mtls_listen=mtls_listen,
        limits=limits,
        tls=tls,
        fronts=fronts,
        grpc_listen=f', grpc_listen: "{_ANY}"' if has_health else "",
    )
    return parse(text, folder / "bridge.yaml")


class Served:
    """A server with its scripted issuance, and clients for it. A context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock = system_clock,
        issue_serving: Callable[[Sequence[str], timedelta], KeyPair] | None = None,
        anchors_pem: Callable[[], bytes] | None = None,
        **configured: Any,
    ) -> None:
        """Make it; `configured` is as `istio_config` wants it."""
        self.ca = ListenerCA()
        self.issuance = ScriptedIssuance()
        self.metrics = Metrics()
        self.problems: dict[str, str] = {}
        self.config = istio_config(folder, **configured)
        self.server = Server(
            self.config,
            self.issuance,  # type: ignore[arg-type]
            issue_serving=issue_serving or self.ca.issue_serving,
            anchors_pem=anchors_pem or (lambda: self.ca.pem),
            metrics=self.metrics,
            clock=clock,
            problems=lambda: self.problems,
        )
        self._channels: list[Any] = []

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()
        self.server.drain(0)

    @property
    def listener(self) -> IstioListener:
        """Of Istio's front."""
        listener, *_ = self.server._listeners
        assert isinstance(listener, IstioListener)
        return listener

    @property
    def serving(self) -> ServingCertificate:
        """The listener's certificate."""
        return self.listener.serving

    def channel(self, client: KeyPair | None = None) -> Any:
        """Connect: to the token port, or with a certificate to the other one."""
        server = self.server
        address = server.mtls_address if client else server.istio_address
        credentials = grpc.ssl_channel_credentials(
            self.ca.pem,
            client.private_key_pem if client else None,
            client.certificate_chain_pem if client else None,
        )
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", 16 * 1024 * 1024),
        ]
        channel = grpc.secure_channel(address, credentials, options)
        self._channels.append(channel)
        return channel

    def connected(self, front: str) -> socket.socket:
        """Connect to the token port or to Linkerd's, and do what precedes HTTP/2."""
        is_istio = front == "istio"
        server = self.server
        address = server.istio_address if is_istio else server.linkerd_address
        host, _, port = address.rpartition(":")
        made = socket.create_connection((host, int(port)), WAIT_SECONDS)
        if not is_istio:
            return made
        context = ssl.create_default_context(cadata=self.ca.pem.decode())
        context.set_alpn_protocols(["h2"])
        return context.wrap_socket(made, server_hostname=SERVER_NAME)

    def raw(self, client: KeyPair | None = None) -> Any:
        """Return a call that takes and gives bytes."""
        return self.channel(client).unary_unary(METHOD)

    def health_channel(self) -> Any:
        """Connect to gRPC health."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(self.server.health_address, options)
        self._channels.append(channel)
        return channel

    def stub(self, client: KeyPair | None = None) -> Any:
        """Return a call that takes and gives messages."""
        return self.channel(client).unary_unary(
            METHOD,
            request_serializer=IstioCertificateRequest.SerializeToString,
            response_deserializer=IstioCertificateResponse.FromString,
        )

    def counted(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """Return the value of a metric; 0 if there is none."""
        return self.metrics.registry.get_sample_value(name, dict(labels or {})) or 0.0


def _now() -> datetime:
    return datetime.now(UTC)


_CONFIG = """
trust_domain: corp.example
fronts:
  istio:
    listen: "{listen}"
    mtls_listen: "{mtls_listen}"
    tls: {tls}
  {fronts}
clusters:
  - name: Kubernetes
    tokens: {{verify: jwks, file: jwks.json, issuer: "https://issuer.example"}}
issuing_cas:
  seoul-1: {{plugin: file, chain: chain.pem}}
trust_anchors: roots.pem
issuance: {{issuing_cas: [seoul-1]}}
limits: {limits}
ledger: {{journal: journal, archive: "sqlite:///a.db", heads: {{sink: heads.jsonl}}}}
admin: {{listen: "127.0.0.1:0"{grpc_listen}}}
"""
