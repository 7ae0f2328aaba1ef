"""Clients of the Istio front that ask without a pause, whatever happens."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge._proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.harness.workers import Supervised
from tests.support.parts.pki import new_key


@dataclass(frozen=True, slots=True)
class Reply:
    """How one call went."""

    code: str
    leaf_pem: str
    """Empty where `code` is not `OK`."""
    asked: float
    came: float
    """When, by `time.monotonic()`."""


@contextmanager
def asking(
    bridge: Bridge, message: IstioCertificateRequest, patience_seconds: float
) -> Iterator[Callable[[], Reply]]:
    """Connect once, with a token of now; give what asks on this connection.

    Args:
        bridge: Need not be up.
        message: Sent each time.
        patience_seconds: The longest that an answer is waited for.
    """
    headers = [("authorization", f"Bearer {bridge.token()}")]
    with _channel_to(bridge) as channel:
        stub: Any = IstioCertificateServiceStub(channel)  # type: ignore[no-untyped-call] # generated

        def ask() -> Reply:
            asked, code, leaf_pem = time.monotonic(), "OK", ""
            try:
                reply = stub.CreateCertificate(
                    message, metadata=headers, timeout=patience_seconds
                )
                leaf_pem = reply.cert_chain[0]
            except grpc.RpcError as error:
                code = error.code().name
            return Reply(code, leaf_pem, asked, time.monotonic())

        yield ask


def new_csr() -> str:
    """Write a CSR without names, of a new key; PEM."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    signed = builder.sign(new_key(), hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode("ascii")


def _channel_to(bridge: Bridge) -> Any:
    credentials = grpc.ssl_channel_credentials(bridge.roots.read_bytes())
    options = [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    return grpc.secure_channel(bridge.address, credentials, options)


_CALLS = 8
"""On one connection: then another one, so that every worker gets some."""
_PATIENCE_SECONDS = 10.0
_REST_SECONDS = 0.01
"""After a refusal: a server that is away is not to be asked as fast as can be."""


@dataclass(frozen=True, slots=True)
class Held:
    """One certificate in the hands of a client."""

    tbs_sha256: str
    serial: int
    asked: float
    came: float
    """When, by `time.monotonic()`."""


class Holders:
    """Some clients. A context manager: they ask inside.

    Args:
        bridge: Need not be up.
        count: How many.
    """

    def __init__(self, bridge: Bridge, count: int = 4) -> None:
        self._bridge = bridge
        self._held: list[Held] = []
        self._saw: Counter[str] = Counter()
        self._faults: list[BaseException] = []
        self._news = threading.Condition()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"holder-{index}", daemon=True)
            for index in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def held(self) -> list[Held]:
        """Return every certificate so far."""
        return self._held.copy()

    def saw(self) -> Counter[str]:
        """Return how often calls ended with which status."""
        return self._saw.copy()

    def await_held(self, since: float, timeout: float) -> Held:
        """Return a certificate that was asked for after `since`.

        Raises:
            TimeoutError: There is none in time; the message says what clients see.
        """
        found: list[Held] = []

        def is_there() -> bool:
            found[:] = [one for one in self._held[-50:] if one.asked >= since]
            return bool(found or self._faults)

        with self._news:
            self._news.wait_for(is_there, timeout)
        if self._faults:
            raise self._faults[0]
        if not found:
            raise TimeoutError(f"no certificate for {timeout:.0f} s: {self._saw}")
        return min(found, key=lambda one: one.came)

    def _run(self) -> None:
        try:
            message = IstioCertificateRequest(csr=new_csr(), validity_duration=3600)
            while not self._over.is_set():
                self._connect(message)
        except BaseException as error:  # noqa: BLE001 - told to who waits
            with self._news:
                self._faults.append(error)
                self._news.notify_all()

    def _connect(self, message: IstioCertificateRequest) -> None:
        with asking(self._bridge, message, _PATIENCE_SECONDS) as ask:
            for _ in range(_CALLS):
                if self._over.is_set():
                    return
                reply = ask()
                if reply.code != "OK":
                    self._saw[reply.code] += 1
                    self._over.wait(_REST_SECONDS)
                    return
                self._keep(reply)

    def _keep(self, reply: Reply) -> None:
        leaf = x509.load_pem_x509_certificate(reply.leaf_pem.encode("ascii"))
        digest = sha256(leaf.tbs_certificate_bytes).hexdigest()
        with self._news:
            self._saw["OK"] += 1
            self._held.append(Held(digest, leaf.serial_number, reply.asked, reply.came))
            self._news.notify_all()


_PERIOD_SECONDS = 0.1
_PROBE_PATIENCE_SECONDS = 5.0
_NORMAL_SECONDS = 0.25
"""An answer within this time is what callers of an idle bridge get, and some more."""
_IN_A_ROW = 5


@dataclass(frozen=True, slots=True)
class Probe:
    """One call."""

    began: float
    code: str
    seconds: float

    @property
    def is_normal(self) -> bool:
        """Whether it went as on an idle bridge."""
        return self.code == "OK" and self.seconds <= _NORMAL_SECONDS


class Prober:
    """Asks inside the block."""

    def __init__(self, bridge: Supervised) -> None:
        self.probes: list[Probe] = []
        self._bridge = bridge
        self._message = IstioCertificateRequest(csr=new_csr())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def normal_after(self, moment: float) -> float | None:
        """Return how many seconds after `moment` callers were served as usual again.

        That is when the first of some calls in a row began that all went well.
        """
        later = [one for one in self.probes if one.began >= moment]
        for index, first in enumerate(later):
            row = later[index : index + _IN_A_ROW]
            if len(row) == _IN_A_ROW and all(one.is_normal for one in row):
                return first.began - moment
        return None

    def await_normal(self, moment: float, timeout: float) -> None:
        """Wait until `normal_after` has an answer; at most until `timeout` is over."""
        until = moment + timeout
        while time.monotonic() < until and self.normal_after(moment) is None:
            time.sleep(_PERIOD_SECONDS)

    def counts(self) -> Counter[str]:
        """Return how often calls ended with which status."""
        return Counter(one.code for one in self.probes)

    def _run(self) -> None:
        with asking(self._bridge, self._message, _PROBE_PATIENCE_SECONDS) as ask:
            while not self._over.wait(_PERIOD_SECONDS):
                reply = ask()
                took = reply.came - reply.asked
                self.probes.append(Probe(reply.asked, reply.code, took))
