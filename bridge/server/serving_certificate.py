"""The serving certificate of Istio's front: its sources, and its renewal.

grpc asks for the certificate at each new connection. So a renewal needs no restart, and
ends no connection. If a renewal fails, the old certificate stays in service: the
listener needs no backend until then.
"""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import grpc
from cryptography import x509

from bridge.errors import BridgeError, ConfigError
from bridge.metrics.expiry import CertificateExpiry
from bridge.metrics.instruments import Metrics
from bridge.system.background import BackgroundLoop
from bridge.system.clock import Clock
from bridge.system.files import Stamp, stamp_of
from bridge.x509.key_pair import KeyPair, read_key_pair

PART = "serving certificate"
"""The name of this part in readiness."""

_LONGEST_WAIT_SECONDS = 30.0
_SHORTEST_WAIT_SECONDS = 0.1
_FIRST_RETRY_SECONDS = 1.0
_log = logging.getLogger(__name__)


class CertificateSource(Protocol):
    """The source of a serving certificate."""

    @property
    def name(self) -> str:
        """The name of the source, for operators."""

    def fetch(self) -> KeyPair:
        """Return a new certificate, or the current one of the files, with its key.

        Raises:
            BridgeError: The source yields none now.
        """

    def is_due(self, current: KeyPair, now: datetime) -> bool:
        """Tell whether `current` is due for renewal by `fetch`."""


IssueServing = Callable[[Sequence[str], timedelta], KeyPair]
"""`OwnCertificates.issue_serving`: takes DNS names and a lifetime."""


class IssuedCertificateSource:
    """Has the bridge issue the certificate to itself, recorded like any other.

    Renewal is due at a random point between 1/2 and 2/3 of the certificate's lifetime,
    so that replicas that started together do not renew together.
    """

    name = "the serving certificate"
    """See `CertificateSource.name`."""

    def __init__(
        self,
        issue: IssueServing,
        dns_names: Sequence[str],
        ttl: timedelta,
    ) -> None:
        self._issue = issue
        self._dns_names = tuple(dns_names)
        self._ttl = ttl
        self._share = 0.5

    def fetch(self) -> KeyPair:
        """See `CertificateSource.fetch`."""
        pair = self._issue(self._dns_names, self._ttl)
        self._share = random.uniform(1 / 2, 2 / 3)  # noqa: S311 - spreads load
        return pair

    def is_due(self, current: KeyPair, now: datetime) -> bool:
        """See `CertificateSource.is_due`."""
        life: timedelta = current.not_after - current.not_before
        return now >= current.not_before + life * self._share


class FileCertificateSource:
    """Reads the certificate and its key from files that another program renews."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._seen: Stamp | None = None
        self._read: KeyPair | None = None

    @property
    def name(self) -> str:
        """See `CertificateSource.name`."""
        return str(self._certificate)

    def fetch(self) -> KeyPair:
        """See `CertificateSource.fetch`."""
        self._seen, self._read = stamp_of((self._certificate, self._key)), None
        self._read = read_key_pair(self._certificate, self._key)
        return self._read

    def is_due(self, current: KeyPair, now: datetime) -> bool:
        """See `CertificateSource.is_due`: due when a file has changed.

        Also due when a certificate that was not valid yet at the last fetch is valid
        now.
        """
        if stamp_of((self._certificate, self._key)) != self._seen:
            return True
        read = self._read
        return read is not None and read is not current and not read.fault(now)


@dataclass(frozen=True, slots=True)
class _State:
    # Replaced as a whole, so a reader needs no lock.
    pair: KeyPair | None = None
    failure: str = ""


class ServingCertificate:
    """The certificate in service, renewed by a thread.

    Args:
        source: Yields certificates.
        clock: Tells when renewal is due.
        metrics: Shows when the certificate expires.
    """

    def __init__(
        self, source: CertificateSource, clock: Clock, metrics: Metrics
    ) -> None:
        self._source = source
        self._clock = clock
        self._metrics = metrics
        self._state = _State()
        self._refreshing = threading.Lock()
        self._failures = 0
        self._loop = BackgroundLoop(
            "serving-certificate", self._step, self._pause, is_immediate=True
        )
        self.on_pair: Callable[[], None] = lambda: None
        """Called by the thread after each check, while a certificate is in service."""

    @property
    def pair(self) -> KeyPair | None:
        """The certificate in service; None before the first."""
        return self._state.pair

    def refresh(self) -> bool:
        """Fetch a certificate if there is none, or renewal is due.

        Returns:
            False if the fetch failed; the old certificate stays in service.
        """
        with self._refreshing:
            current = self._state.pair
            if current is not None and not self._source.is_due(current, self._clock()):
                # A bad file that has not changed is not read again.
                return True
            try:
                pair = self._fetch()
                leaf = x509.load_pem_x509_certificate(pair.certificate_chain_pem)
            except BridgeError as error:
                self._state = _State(current, str(error))
                _log.warning(
                    "the serving certificate was not %s: %s %s",
                    "renewed, the old one stays" if current else "made yet",
                    error,
                    error.detail,
                )
                return False
            self._state = _State(pair)
            self._show(leaf)
        return True

    def _fetch(self) -> KeyPair:
        # A certificate that is not valid must not replace one that is.
        source = self._source
        pair, current, now = source.fetch(), self._state.pair, self._clock()
        fault = pair.fault(now)
        if fault and current is not None and not current.fault(now):
            raise ConfigError(f"{source.name}: {fault}: expected one that is valid")
        return pair

    def problems(self) -> dict[str, str]:
        """Return why connections cannot be served; empty while they can.

        A failed renewal is a warning for as long as the old certificate is valid.
        """
        state = self._state
        if state.pair is None:
            return {PART: state.failure or "there is none yet"}
        if state.pair.not_after <= self._clock():
            return {PART: f"it has expired; {state.failure or 'renewal is due'}"}
        if early := state.pair.fault(self._clock()):
            return {PART: f"it {early}"}
        return {}

    def warnings(self) -> dict[str, str]:
        """Return the last failed renewal, while the old certificate is in service."""
        state = self._state
        if state.pair is None or not state.failure:
            return {}
        ends = state.pair.not_after.isoformat()
        return {PART: f"renewal failed, the old one ends {ends}: {state.failure}"}

    def credentials(
        self, client_anchors_pem: Callable[[], bytes] | None = None
    ) -> grpc.ServerCredentials:
        """Return credentials for a port, which follow every renewal.

        Args:
            client_anchors_pem: If given, a client must present a certificate that
                chains to one of these trust anchors; called at each new connection.

        Raises:
            RuntimeError: There is no certificate yet.
            ConfigError: Clients are to be verified, and there are no trust anchors.
        """
        port = DynamicCredentials(lambda: self.pair, client_anchors_pem)
        return grpc.dynamic_ssl_server_credentials(
            port.configuration(),
            port.changed_configuration,
            require_client_authentication=client_anchors_pem is not None,
        )

    def start(self) -> None:
        """Begin to renew in the background."""
        self._loop.start()

    def close(self) -> None:
        """Stop renewing. May be called twice, or before `start`."""
        self._loop.close()

    def _step(self) -> None:
        before, self._failures = self._failures, self._failures + 1
        is_refreshed = self.refresh()
        if self._state.pair is not None:
            self.on_pair()
        self._failures = 0 if is_refreshed else before + 1

    def _pause(self) -> float:
        # Seconds until the next step: after a failure first one, then more, and spread.
        pair, longest = self._state.pair, _LONGEST_WAIT_SECONDS
        if pair is not None:
            life = (pair.not_after - pair.not_before).total_seconds()
            longest = max(_SHORTEST_WAIT_SECONDS, min(longest, life / 50))
        if self._failures:
            retry = _FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10)
            longest = min(longest, retry)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load

    def _show(self, leaf: x509.Certificate) -> None:
        expiry = CertificateExpiry.of(leaf, "serving")
        self._metrics.expiries.replace("serving", [expiry])


class DynamicCredentials:
    """The certificate configuration of one port, as grpc asks for it.

    grpc expects None for as long as nothing has changed.

    Args:
        pair: Returns the certificate in service; called at each new connection.
        client_anchors_pem: See `ServingCertificate.credentials`.
    """

    def __init__(
        self,
        pair: Callable[[], KeyPair | None],
        client_anchors_pem: Callable[[], bytes] | None,
    ) -> None:
        self._pair = pair
        self._client_anchors_pem = client_anchors_pem
        self._last: tuple[KeyPair, bytes | None] | None = None

    def configuration(self) -> Any:
        """Return the certificate configuration for new connections.

        Raises:
            RuntimeError: There is no certificate yet.
            ConfigError: Clients are to be verified, and there are no trust anchors.
        """
        pair = self._pair()
        if pair is None:
            raise RuntimeError("there is no certificate yet")
        anchors = self._client_anchors_pem() if self._client_anchors_pem else None
        if anchors is not None and not anchors.strip():
            raise ConfigError("there are no trust anchors to verify clients with")
        self._last = (pair, anchors)
        return grpc.ssl_server_certificate_configuration(
            [(pair.private_key_pem, pair.certificate_chain_pem)],
            root_certificates=anchors,
        )

    def changed_configuration(self) -> Any:
        """Return `configuration` if it has changed since the last call, else None."""
        # grpc calls this at each new connection. None keeps the certificate that is in
        # service. So does an error, which grpc also logs.
        pair = self._pair()
        anchors = self._client_anchors_pem() if self._client_anchors_pem else None
        if (
            self._last is not None
            and self._last[0] is pair
            and self._last[1] == anchors
        ):
            return None
        return self.configuration()
