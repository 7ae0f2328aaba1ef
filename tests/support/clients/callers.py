"""Clients of both fronts that ask without a pause while a test puts faults in place.

Unlike `load.Holders` they keep their connections, say of each call which front it was
for, and are as many at once as a test wants.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge.server import istio, linkerd
from tests.support.clients.linkerd_raw import AUDIENCE, vector
from tests.support.clients.load import new_csr
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.vectors.generate_linkerd import IDENTITY

RETRYABLE = frozenset({"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"})
"""The statuses after which Istio's client asks again, and that are no bug of ours."""
_PATIENCE_SECONDS = 15.0
_REST_SECONDS = 0.05
"""After a refusal, as a client with a backoff waits."""
_OPTIONS = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True, slots=True)
class Result:
    """How one call went."""

    front: str
    code: str
    text: str
    asked: float
    came: float
    """When, by `time.monotonic()`."""
    leaf: bytes = b""
    """DER; empty where `code` is not `OK`."""

    @property
    def seconds(self) -> float:
        """How long the client waited."""
        return self.came - self.asked


class Callers:
    """Some clients of one bridge. A context manager: they ask inside.

    Args:
        bridge: Running, with both fronts.
        each: How many clients each front has.
        pause: In seconds, after each good answer of a client.
    """

    def __init__(self, bridge: Bridge, each: int = 2, pause: float = 0.02) -> None:
        self._bridge = bridge
        self._pause = pause
        self._results: list[Result] = []
        self._news = threading.Condition()
        self._over = threading.Event()
        self._faults: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(front,), daemon=True)
            for front in (_ask_istio, _ask_linkerd)
            for _ in range(each)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._faults:
            raise self._faults[0]

    def results(self, since: float = 0.0, until: float = float("inf")) -> list[Result]:
        """Return the calls that began in this time and have an answer."""
        return [one for one in self._results.copy() if since <= one.asked <= until]

    def codes(self, since: float = 0.0) -> Counter[str]:
        """Return how often calls that began since then ended with which status."""
        return Counter(one.code for one in self.results(since))

    def texts(self, since: float = 0.0) -> Counter[str]:
        """Return how often which status came with which text."""
        shown = (f"{one.front} {one.code} {one.text}" for one in self.results(since))
        return Counter(shown)

    def await_served(self, since: float, timeout: float) -> float:
        """Wait until each front has served a call that began after `since`.

        Returns:
            After how many seconds that was.

        Raises:
            TimeoutError: One has not. The message says what clients see.
        """
        came: dict[str, float] = {}

        def is_served() -> bool:
            for one in self.results(since):
                if one.code == "OK":
                    came.setdefault(one.front, one.came)
            return len(came) == 2 or bool(self._faults)

        with self._news:
            self._news.wait_for(is_served, timeout)
        if len(came) < 2:
            seen = self.texts(since)
            raise TimeoutError(f"served by {sorted(came)} after {timeout} s: {seen}")
        return max(came.values()) - since

    def leaves(self) -> list[bytes]:
        """Return the certificates that the clients hold, in DER."""
        return [one.leaf for one in self._results.copy() if one.leaf]

    def _run(self, front: "Callable[[Bridge], _Client]") -> None:
        try:
            client = front(self._bridge)
            with client.channel:
                while not self._over.is_set():
                    result = client.ask()
                    with self._news:
                        self._results.append(result)
                        self._news.notify_all()
                    good = result.code == "OK"
                    self._over.wait(self._pause if good else _REST_SECONDS)
        except BaseException as error:  # noqa: BLE001 - raised at the end of the block
            with self._news:
                self._faults.append(error)
                self._news.notify_all()


@dataclass(frozen=True, slots=True)
class _Client:
    front: str
    channel: Any
    call: Callable[[], bytes]

    def ask(self) -> Result:
        asked, code, text, leaf = time.monotonic(), "OK", "", b""
        try:
            leaf = self.call()
        except grpc.RpcError as error:
            code, text = error.code().name, str(error.details())
        return Result(self.front, code, text, asked, time.monotonic(), leaf)


def _ask_istio(bridge: Bridge) -> _Client:
    credentials = grpc.ssl_channel_credentials(bridge.roots.read_bytes())
    channel = grpc.secure_channel(bridge.address, credentials, _OPTIONS)
    send: Any = channel.unary_unary(
        istio.METHOD,
        request_serializer=IstioCertificateRequest.SerializeToString,
        response_deserializer=IstioCertificateResponse.FromString,
    )
    headers = [("authorization", f"Bearer {bridge.token()}")]
    message = IstioCertificateRequest(csr=new_csr(), validity_duration=3600)

    def call() -> bytes:
        reply = send(message, timeout=_PATIENCE_SECONDS, metadata=headers)
        pem: str = reply.cert_chain[0]
        return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)

    return _Client("istio", channel, call)


def _ask_linkerd(bridge: Bridge) -> _Client:
    channel = grpc.insecure_channel(bridge.linkerd_address, _OPTIONS[1:])
    send: Any = channel.unary_unary(
        linkerd.METHOD,
        request_serializer=CertifyRequest.SerializeToString,
        response_deserializer=CertifyResponse.FromString,
    )
    message = CertifyRequest(
        identity=IDENTITY,
        token=bridge.token(audiences=(AUDIENCE,)).encode(),
        certificate_signing_request=vector(),
    )

    def call() -> bytes:
        leaf: bytes = send(message, timeout=_PATIENCE_SECONDS).leaf_certificate
        return leaf

    return _Client("linkerd", channel, call)
