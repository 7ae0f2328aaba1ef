"""Clients that ask without a pause, whatever happens, and keep what they get."""

import threading
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from cryptography import x509

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from tests.support.clients.asking import Reply, asking, new_csr
from tests.support.harness.real_process import Bridge

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
