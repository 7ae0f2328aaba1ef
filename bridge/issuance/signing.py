"""One attempt at one issuing CA: prepare, record, sign, verify, record.

Steps 6 to 9 of a request. A workload's certificate, the listener's own and a probe take
the same way, so none of them can be signed without being on record.
"""

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from cryptography import x509

from bridge.errors import (
    BackendBrokenError,
    BridgeError,
    CallerError,
    LedgerError,
    MisissuedError,
    OverloadedError,
)
from bridge.ledger.events import Ending, Intent, Outcome, Purpose
from bridge.ledger.ledger import Ledger
from bridge.metrics.instruments import Metrics
from bridge.policy.issued import names_of, require_as_prepared, require_profile
from bridge.resilience.budget import Budget
from bridge.snapshot.model import Issuer
from bridge.spi import IssuedChain, LeafRequest, Prepared

_SERIALS_AT_ONCE = 64
_octets: list[bytes] = []
"""Random octets for serial numbers, each taken once: `list.pop` is atomic."""
_names = random.Random()  # noqa: S311 - seeded by the system; names, not secrets


def new_id() -> str:
    """Return a unique name, 32 hex digits; time first: an index grows at one end."""
    return f"{time.time_ns() // 1_000_000:012x}{_names.getrandbits(80):020x}"


def new_serial() -> int:
    """Return a serial number: positive, 127 random bits, never short."""
    try:
        octets = _octets.pop()
    except IndexError:
        # The system is asked for many at once. No process of ours is a fork of one
        # that has issued, so nobody else has these.
        fresh = os.urandom(16 * _SERIALS_AT_ONCE)
        octets = fresh[:16]
        _octets.extend(fresh[at : at + 16] for at in range(16, len(fresh), 16))
    return int.from_bytes(octets, "big") >> 1 | 1 << 126


_LONGEST_DETAIL = 500


def stopped_error() -> BackendBrokenError:
    """Return what is said of an issuing CA that was stopped."""
    return BackendBrokenError(
        "the issuing CA is stopped after a mis-issuance", rule="issuer.stopped"
    )


def describe(error: BaseException) -> str:
    """Return what operators are told of an error, at most 500 characters."""
    if not isinstance(error, BridgeError):
        return type(error).__name__
    text = f"{error}: {error.detail}" if error.detail else str(error)
    return text[:_LONGEST_DETAIL]


def outcome_of(error: BaseException) -> Outcome:
    """Return how an attempt ended that raised `error` before an answer came."""
    if isinstance(error, CallerError):
        return Outcome.REFUSED
    if isinstance(error, OverloadedError):
        return Outcome.FAILED
    if isinstance(error, BridgeError) and not error.certificate_may_exist:
        return Outcome.FAILED
    return Outcome.UNKNOWN


__all__ = [
    "Origin",
    "Signed",
    "Signing",
    "describe",
    "new_id",
    "new_serial",
    "stopped_error",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """On whose behalf something is signed, as the ledger tells it."""

    request: str
    purpose: Purpose = Purpose.WORKLOAD
    front: str = ""
    cluster: str = ""
    caller: str = ""
    credential: str = "self"
    pod: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate that was verified against what was asked for."""

    issuer: Issuer
    leaf: x509.Certificate
    leaf_der: bytes


class Signing:
    """Has certificates signed, each one on record before and after.

    Args:
        ledger: Where intents and outcomes go.
        metrics: What is measured on the way.
        status_name: The gRPC status that an error becomes at a front, by name.
    """

    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        status_name: Callable[[BridgeError, str], str],
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._status_name = status_name
        self._stopped: dict[str, str] = {}

    def stopped(self, issuer: Issuer) -> str | None:
        """Return why `issuer` may not be used until an operator acts, or None.

        To give it another certificate is such an act; its key is proven anew then.
        """
        return self._stopped.get(issuer.certificate_sha256)

    @property
    def any_stopped(self) -> bool:
        """Whether there is one that may not be used until an operator acts."""
        return bool(self._stopped)

    def attempt(
        self, issuer: Issuer, request: LeafRequest, origin: Origin, budget: Budget
    ) -> Signed:
        """Have `request` signed by `issuer`.

        Raises:
            OverloadedError: The budget is spent; nothing was signed.
            LedgerError: The intent is not on disk; nothing was signed.
            BackendError: The issuing CA failed, or its answer is refused.
        """
        steps = self._metrics.steps
        began = time.perf_counter()
        # (6) Prepare and record.
        prepared, proven = self._prepare(issuer, request, origin)
        intent = _intent(issuer, prepared, origin)
        budget.require()
        recorded = time.perf_counter()
        steps["prepare"].observe(recorded - began)
        self._intend(intent, issuer, origin)
        steps["record"].observe(time.perf_counter() - recorded)
        with _Attempt(self, intent) as attempt:
            # (7) Sign.
            budget.require()
            began = time.perf_counter()
            issued = self._sign(issuer, prepared, budget)
            signed = time.perf_counter()
            steps["sign"].observe(signed - began)
            # (8) Verify.
            attempt.certificate = issued.leaf
            leaf = require_as_prepared(prepared, issued, issuer.pinned, proven)
            steps["verify"].observe(time.perf_counter() - signed)
            # (9) Record.
            attempt.issued(leaf, durable=not prepared.tbs)
        return Signed(issuer, leaf, issued.leaf)

    def _prepare(
        self, issuer: Issuer, request: LeafRequest, origin: Origin
    ) -> tuple[Prepared, bytes]:
        with _Unintended(self, issuer, origin):
            # Another request may have stopped it since this one chose it.
            if self.stopped(issuer) is not None:
                raise stopped_error()
            prepared = issuer.ca.prepare(request)
            return prepared, require_profile(prepared, issuer.pinned)

    def _intend(self, intent: Intent, issuer: Issuer, origin: Origin) -> None:
        with _Unintended(self, issuer, origin):
            self._ledger.intend(intent)

    def _sign(self, issuer: Issuer, prepared: Prepared, budget: Budget) -> IssuedChain:
        backend = self._metrics.backend(issuer.name)
        timeout = min(issuer.timeout_seconds, budget.remaining())
        began = time.perf_counter()
        result = "internal"
        try:
            issued = issuer.ca.issue(prepared, timeout=timeout)
            result = "ok"
        except BridgeError as error:
            result = error.rule
            raise
        finally:
            backend.seconds.observe(time.perf_counter() - began)
            backend.called(result)
        return issued

    def _end_with(self, ended: Ending, error: BaseException) -> None:
        status, rule = "INTERNAL", "internal"
        if isinstance(error, BridgeError):
            status, rule = self._status_name(error, ended.front), error.rule
        try:
            self._ledger.end(
                replace(ended, status=status, rule=rule, detail=describe(error))
            )
        except LedgerError:
            # What went wrong first is what the caller is told. An intent stays open,
            # and is closed as `unknown` when the journal is opened again.
            _log.exception("the end of a request could not be put on record")

    def _stop(self, intent: Intent, error: MisissuedError) -> None:
        issuing_ca = intent.issuing_ca
        self._stopped[intent.issuer_sha256] = str(error)
        self._metrics.misissued(issuing_ca).inc()
        _log.critical(
            "MIS-ISSUANCE by issuing CA %s, which is stopped until it gets another "
            "certificate or the bridge is restarted: %s (%s) %s",
            issuing_ca,
            error,
            error.rule,
            error.detail,
        )


class _Unintended:
    # Before the intent is on disk. An error that leaves this block ends a call that
    # never became an attempt.
    def __init__(self, signing: Signing, issuer: Issuer, origin: Origin) -> None:
        self._signing = signing
        self._issuer = issuer
        self._origin = origin

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        origin = self._origin
        ended = Ending(
            kind=Outcome.FAILED.value,
            attempt="",
            request=origin.request,
            purpose=origin.purpose.value,
            front=origin.front,
            cluster=origin.cluster,
            caller=origin.caller,
            issuing_ca=self._issuer.name,
        )
        self._signing._end_with(ended, error)  # noqa: SLF001 - one class in two parts


class _Attempt:
    # Between the intent and the outcome. Whatever leaves this block, an outcome is
    # written: also for an error that nobody foresaw.
    def __init__(self, signing: Signing, intent: Intent) -> None:
        self._signing = signing
        self._intent = intent
        self.certificate = b""

    def __enter__(self) -> Self:
        return self

    def issued(self, leaf: x509.Certificate, *, durable: bool) -> None:
        digest = hashlib.sha256(self.certificate).hexdigest()
        self._signing._ledger.end(  # noqa: SLF001 - one class in two parts
            self._intent.ending(
                Outcome.ISSUED,
                serial=f"{leaf.serial_number:x}",
                certificate_sha256=digest,
                status="OK",
            ),
            durable=durable,
        )

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        signing = self._signing
        if isinstance(error, MisissuedError):
            signing._stop(self._intent, error)  # noqa: SLF001 - see above
        digest = hashlib.sha256(self.certificate).hexdigest()
        ended = self._intent.ending(
            # A certificate that came back exists, whatever went wrong after that.
            Outcome.UNKNOWN if self.certificate else outcome_of(error),
            certificate_sha256=digest if self.certificate else "",
        )
        signing._end_with(ended, error)  # noqa: SLF001 - see above


def _intent(issuer: Issuer, prepared: Prepared, origin: Origin) -> Intent:
    request = prepared.request
    return Intent(
        attempt=new_id(),
        request=origin.request,
        purpose=origin.purpose.value,
        front=origin.front,
        cluster=origin.cluster,
        caller=origin.caller,
        credential=origin.credential,
        pod=origin.pod,
        issuing_ca=issuer.name,
        generation=origin.generation,
        issuer_sha256=issuer.certificate_sha256,
        key_sha256=hashlib.sha256(request.spki).hexdigest(),
        names=names_of(request),
        not_before=int(request.not_before.timestamp()),
        not_after=int(request.not_after.timestamp()),
        serial=f"{request.serial:x}" if prepared.tbs else "",
        tbs_sha256=prepared.tbs_sha256,
    )
