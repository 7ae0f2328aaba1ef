"""Have one issuing CA sign a request, with a record before and after.

The parts of steps 6 to 9, which `procedure.attempt` puts in order. A workload's
certificate, the listener's own and a probe are signed by them alike, so none of them
is signed without a record.
"""

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from cryptography import x509

from bridge.errors import (
    BackendBrokenError,
    BackendError,
    BridgeError,
    CallerError,
    LedgerError,
    MisissuedError,
    OverloadedError,
)
from bridge.identity.caller import Caller
from bridge.ledger.events import (
    CallEnding,
    CertificateEnding,
    Ending,
    Intent,
    Outcome,
    Purpose,
    kept,
)
from bridge.ledger.ledger import Ledger
from bridge.metrics.instruments import Metrics
from bridge.policy.issued import names_of, require_as_prepared, require_profile
from bridge.resilience.boundary import from_plugin
from bridge.resilience.breaker import STOPPED_RULE
from bridge.resilience.budget import Budget
from bridge.resilience.failover import Guards
from bridge.resilience.quarantine import StoppedCAs
from bridge.snapshot.model import Issuer
from bridge.spi import IssuedChain, LeafRequest, Prepared
from bridge.x509.certificate import UNREADABLE, validity_of

_SERIALS_AT_ONCE = 64
_LONGEST_DETAIL = 500
_octets: list[bytes] = []
"""Random octets for serial numbers, each taken once: `list.pop` is atomic."""
_names = random.Random()  # noqa: S311 - seeded by the system; names, not secrets
_log = logging.getLogger(__name__)


def new_id() -> str:
    """Return a unique ID of 32 hex digits. It starts with the time, for indexes."""
    return f"{time.time_ns() // 1_000_000:012x}{_names.getrandbits(80):020x}"


def new_serial() -> int:
    """Return a serial number: positive, 127 random bits, never short."""
    try:
        octets = _octets.pop()
    except IndexError:
        # One system call gets many. No process is a fork of one that has issued, so
        # no other process has these octets.
        fresh = os.urandom(16 * _SERIALS_AT_ONCE)
        octets = fresh[:16]
        _octets.extend(fresh[at : at + 16] for at in range(16, len(fresh), 16))
    return int.from_bytes(octets, "big") >> 1 | 1 << 126


def stopped_error() -> BackendBrokenError:
    """Build the error of an issuing CA that was stopped."""
    return BackendBrokenError(
        "the issuing CA is stopped after a mis-issuance", rule=STOPPED_RULE
    )


def revoked_error(issuer: Issuer) -> BackendBrokenError:
    """Build the error of an issuing CA whose chain is revoked."""
    return BackendBrokenError(
        "the issuing CA's chain is revoked",
        rule="issuer.revoked",
        detail=f"{issuer.name}: {issuer.revoked}",
    )


def describe(error: BaseException) -> str:
    """Return the text of an error for operators, at most 500 characters."""
    if not isinstance(error, BridgeError):
        return type(error).__name__
    text = f"{error}: {error.detail}" if error.detail else str(error)
    return text[:_LONGEST_DETAIL]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The caller and purpose of a signature, as the ledger records them."""

    request: str
    purpose: Purpose = Purpose.WORKLOAD
    front: str = ""
    caller: Caller | None = None
    """None for what the bridge asks for itself."""
    generation: int = 0

    def ending(self, outcome: Outcome, **values: str) -> Ending:
        """Build the row of a call that never became an attempt.

        Args:
            outcome: How the call ended.
            values: Other fields of the row.
        """
        shared = {
            "kind": outcome.value,
            "attempt": "",
            "request": self.request,
            "purpose": self.purpose.value,
            "front": self.front,
        }
        if self.caller is None:
            return Ending(**shared, cluster="", caller="", **values)
        return CallEnding(**shared, **_on_record(self.caller), **values)


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate that was verified against its request."""

    issuer: Issuer
    leaf: x509.Certificate
    leaf_der: bytes


@dataclass(slots=True)
class Attempt:
    """What is known of an attempt between its intent and its outcome."""

    intent: Intent
    certificate: bytes = b""
    """The leaf in DER, once the issuing CA has answered."""

    @property
    def digest(self) -> str:
        """SHA-256 of the certificate; empty while there is none."""
        if not self.certificate:
            return ""
        return hashlib.sha256(self.certificate).hexdigest()

    def ending(self, outcome: Outcome, **values: str) -> Ending:
        """Build the row of the outcome, with the certificate if that is needed.

        A certificate that the bridge built, and that was verified, is known by its
        intent.
        """
        ending = self.intent.ending(outcome, certificate_sha256=self.digest, **values)
        is_known = outcome is Outcome.ISSUED and self.intent.tbs_sha256
        if is_known or not self.certificate:
            return ending
        not_before, not_after = _window(self.certificate)
        return CertificateEnding(
            **{each.name: getattr(ending, each.name) for each in fields(Ending)},
            not_before=not_before,
            not_after=not_after,
            certificate=kept(self.certificate),
        )


class Signing:
    """The steps around a signature, each with its record. For all threads.

    Args:
        ledger: Records intents and outcomes.
        metrics: Counts and times the calls of the issuing CAs.
        status_name: Returns the name of the gRPC status of an error at a front.
        stopped: The issuing CAs that are stopped.
        guards: The health of the issuing CAs, which each call of a CA shows.
    """

    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        status_name: Callable[[BridgeError, str], str],
        stopped: StoppedCAs,
        guards: Guards,
    ) -> None:
        self._ledger = ledger
        self.metrics = metrics
        """The metrics of the process."""
        self._status_name = status_name
        self._stopped = stopped
        self._guards = guards

    def stopped(self, issuer: Issuer) -> str | None:
        """Return why `issuer` may not be used until an operator acts, or None.

        Another certificate for the issuing CA is such an act; its key is proven again.
        """
        return self._stopped.reason(issuer.certificate_sha256)

    @property
    def any_stopped(self) -> bool:
        """Whether an issuing CA may not be used until an operator acts."""
        return bool(self._stopped)

    def prepare(
        self, issuer: Issuer, request: LeafRequest, origin: Origin
    ) -> tuple[Prepared, bytes]:
        """Have `issuer` prepare a request (6).

        Returns:
            What was prepared, and the TBSCertificate that it must hold: see
            `require_profile`.

        Raises:
            BackendError: The issuing CA cannot prepare it, or was stopped.
        """
        with self._before_intent(issuer, origin):
            # Another request may have stopped it since this one chose it.
            if self.stopped(issuer) is not None:
                raise stopped_error()
            prepared = self._prepared(issuer, request)
            return prepared, require_profile(prepared, issuer.pinned)

    def _prepared(self, issuer: Issuer, request: LeafRequest) -> Prepared:
        breaker = self._guards.of(issuer).breaker
        try:
            return from_plugin(issuer.ca.prepare, Prepared, request)
        except BackendError as error:
            breaker.failed(error)
            raise

    def intend(self, issuer: Issuer, prepared: Prepared, origin: Origin) -> Intent:
        """Record the intent durably (6). If that fails, nothing may be signed.

        Raises:
            LedgerError: The intent is not on disk.
        """
        intent = _intent(issuer, prepared, origin)
        with self._before_intent(issuer, origin):
            self._ledger.intend(intent)
        return intent

    @contextmanager
    def outcome_of(self, intent: Intent) -> Iterator[Attempt]:
        """Record the outcome of any error that leaves the block, expected or not."""
        attempt = Attempt(intent)
        try:
            yield attempt
        except BaseException as error:
            if isinstance(error, MisissuedError):
                self._stop(intent, error)
            if isinstance(error, BackendError) and not attempt.certificate:
                # A plugin may hand over anything here, as in an answer.
                found: object = error.certificate
                attempt.certificate = found if isinstance(found, bytes) else b""
            # A certificate that came back exists, whatever went wrong after that.
            outcome = Outcome.UNKNOWN if attempt.certificate else _outcome(error)
            self._end_with(attempt.ending(outcome), error)
            raise

    def sign(
        self, issuer: Issuer, prepared: Prepared, budget: Budget, parts: int = 1
    ) -> IssuedChain:
        """Have `issuer` sign what was prepared, inside the budget (7).

        Args:
            issuer: The issuing CA.
            prepared: What it prepared.
            budget: What is left of the call's time.
            parts: How many attempts share the budget.

        Raises:
            BackendError: The issuing CA failed.
        """
        backend = self.metrics.backend(issuer.name)
        breaker = self._guards.of(issuer).breaker
        timeout = min(issuer.timeout_seconds, budget.part(parts))
        began = time.perf_counter()
        failure: BackendError | None = None
        call = breaker.began(timeout)
        try:
            return from_plugin(
                issuer.ca.issue, IssuedChain, prepared, timeout=timeout, may_sign=True
            )
        except BackendError as error:
            failure = error
            raise
        finally:
            breaker.ended(call, failure)
            backend.seconds.observe(time.perf_counter() - began)
            backend.called("ok" if failure is None else failure.rule)
            del failure  # whose traceback holds this frame

    def verify(
        self,
        attempt: Attempt,
        issuer: Issuer,
        prepared: Prepared,
        issued: IssuedChain,
        proven: bytes,
    ) -> x509.Certificate:
        """Verify an answer against what was prepared (8).

        Raises:
            MisissuedError: The answer differs. It is never released.
        """
        # A plugin may answer with anything, and the outcome is recorded all the same.
        answer: object = issued.leaf
        attempt.certificate = answer if isinstance(answer, bytes) else b""
        return require_as_prepared(prepared, issued, issuer.pinned, proven)

    def record_issued(
        self, attempt: Attempt, leaf: x509.Certificate, *, durable: bool
    ) -> None:
        """Record the outcome `issued` (9).

        Args:
            attempt: Has the certificate.
            leaf: The same, read.
            durable: Return only when the row is on disk: where the backend chose the
                serial number.

        Raises:
            LedgerError: The outcome cannot be recorded.
        """
        ending = attempt.ending(
            Outcome.ISSUED, serial=f"{leaf.serial_number:x}", status="OK"
        )
        self._ledger.end(ending, durable=durable)

    @contextmanager
    def _before_intent(self, issuer: Issuer, origin: Origin) -> Iterator[None]:
        # An error that leaves this block ends a call that never became an attempt.
        try:
            yield
        except BaseException as error:
            self._end_with(origin.ending(Outcome.FAILED, issuing_ca=issuer.name), error)
            raise

    def _end_with(self, ending: Ending, error: BaseException) -> None:
        status, rule = "INTERNAL", "internal"
        if isinstance(error, BridgeError):
            status, rule = self._status_name(error, ending.front), error.rule
        try:
            self._ledger.end(
                replace(ending, status=status, rule=rule, detail=describe(error))
            )
        except LedgerError:
            # The caller is told the first error. The intent stays open, and is closed
            # as `unknown` when the journal is opened again.
            _log.exception("the end of a request could not be recorded")

    def _stop(self, intent: Intent, error: MisissuedError) -> None:
        issuing_ca = intent.issuing_ca
        self._stopped.add(issuing_ca, intent.issuer_sha256, str(error))
        self.metrics.misissued(issuing_ca).inc()
        _log.critical(
            "MIS-ISSUANCE by issuing CA %s, which is stopped until it gets another "
            "certificate, or until `meshca ledger latch clear`: %s (%s) %s",
            issuing_ca,
            error,
            error.rule,
            error.detail,
        )


def _window(certificate: bytes) -> tuple[int, int]:
    # An answer that is refused may be no certificate at all.
    try:
        return validity_of(x509.load_der_x509_certificate(certificate))
    except UNREADABLE:
        return 0, 0


def _outcome(error: BaseException) -> Outcome:
    # The outcome of an attempt that raised `error` before an answer came.
    if isinstance(error, CallerError):
        return Outcome.REFUSED
    if isinstance(error, OverloadedError):
        return Outcome.FAILED
    if isinstance(error, BridgeError) and not error.certificate_may_exist:
        return Outcome.FAILED
    return Outcome.UNKNOWN


_OF_THE_BRIDGE = {
    "cluster": "",
    "caller": "",
    "requester": "",
    "credential": "self",
    "verified_by": "",
    "pod_namespace": "",
    "pod_name": "",
    "pod_uid": "",
    "node": "",
}


def _on_record(caller: Caller) -> dict[str, str]:
    # What each row of a call has of its caller.
    pod = caller.pod
    return {
        "cluster": caller.cluster,
        "caller": str(caller.spiffe_id),
        "requester": str(caller.requester or ""),
        "credential": caller.credential,
        "verified_by": caller.verified_by,
        "pod_namespace": pod.namespace,
        "pod_name": pod.name,
        "pod_uid": pod.uid,
        "node": pod.node,
    }


def _intent(issuer: Issuer, prepared: Prepared, origin: Origin) -> Intent:
    request, caller = prepared.request, origin.caller
    return Intent(
        **(_on_record(caller) if caller else _OF_THE_BRIDGE),
        attempt=request.attempt,
        request=origin.request,
        purpose=origin.purpose.value,
        front=origin.front,
        issuing_ca=issuer.name,
        generation=origin.generation,
        issuer_sha256=issuer.certificate_sha256,
        key_sha256=hashlib.sha256(request.spki).hexdigest(),
        names=names_of(request),
        not_before=int(request.not_before.timestamp()),
        not_after=int(request.not_after.timestamp()),
        serial=f"{request.serial:x}" if prepared.tbs else "",
        tbs_sha256=prepared.tbs_sha256,
        proven_at=caller.proven_at if caller else 0,
    )
