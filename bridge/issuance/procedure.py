"""The one path from a request to a certificate, in numbered steps.

1. Front: translates the message to a `Call`, and decides nothing (`bridge.server`).
2. Identify the caller from its credential, never from the CSR.
3. Admit: rate limit and policy decide names, lifetime and issuing CAs.
4. CSR: proof of possession, and a strong key. Linkerd's front wants it before step 2.
5. Constrain the names by every certificate of the chain, and by the configuration.
6. Prepare, and record the intent durably. If that fails, nothing is signed.
7. Sign, inside the deadline. Failover repeats 5 to 7 with an intent of its own.
8. Verify the answer. A difference is a mis-issuance: recorded, and never released.
9. Record the outcome, then reply.

`bridge.issuance.meshes` has what differs between the meshes in steps 2 to 5.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from bridge.errors import (
    BridgeError,
    CallerError,
    DeniedError,
    LedgerError,
    OverloadedError,
)
from bridge.identity.caller import Caller
from bridge.issuance.call import Call, Issued
from bridge.issuance.meshes import Istio, Linkerd, Mesh
from bridge.issuance.selection import Subject, Validity, leaf_request, usable_issuers
from bridge.issuance.signing import Origin, Signed, Signing, describe, new_id
from bridge.kubernetes.events import AccountEvents
from bridge.ledger.events import Ending, Outcome
from bridge.ledger.ledger import Ledger
from bridge.metrics.instruments import Metrics
from bridge.policy.bars import Bars
from bridge.policy.certificate_renewal import CertificateRenewal
from bridge.policy.issuance_policy import Lifetime, valid_until
from bridge.policy.rate_limit import RATE_LIMIT_RULES
from bridge.resilience.breaker import OPEN_RULE
from bridge.resilience.budget import Budget
from bridge.resilience.failover import Failover
from bridge.snapshot.model import Issuer, Snapshot
from bridge.spi import LeafRequest
from bridge.system.clock import Clock
from bridge.system.logs import on_one_line

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trace:
    # The fields of a call that its row in the ledger needs.
    front: str
    request: str = field(default_factory=new_id)
    caller: Caller | None = None
    attempted: bool = False


class StepTimer:
    """Measures how long each step takes."""

    def __init__(self, metrics: Metrics) -> None:
        self._steps = metrics.steps
        self._began = time.perf_counter()

    def lap(self, step: str) -> None:
        """End a step: one of `STEPS`, or "" for time that belongs to none."""
        now = time.perf_counter()
        if step:
            self._steps[step].observe(now - self._began)
        self._began = now


def attempt(
    signing: Signing,
    issuer: Issuer,
    request: LeafRequest,
    origin: Origin,
    budget: Budget,
    parts: int = 1,
) -> Signed:
    """Have one issuing CA sign a request: steps 6 to 9, for every certificate.

    Args:
        signing: The steps around a signature.
        issuer: The issuing CA.
        request: Every field of the leaf.
        origin: The caller and purpose.
        budget: What is left of the call's time.
        parts: How many attempts share the budget.

    Raises:
        OverloadedError: The budget is spent; nothing was signed.
        LedgerError: The intent is not on disk; nothing was signed.
        BackendError: The issuing CA failed, or its answer is refused.
    """
    timer = StepTimer(signing.metrics)
    # (6) Prepare, and record the intent.
    prepared, proven = signing.prepare(issuer, request, origin)
    budget.require()
    timer.lap("prepare")
    intent = signing.intend(issuer, prepared, origin)
    timer.lap("record")
    with signing.outcome_of(intent) as under_way:
        # (7) Sign.
        budget.require()
        issued = signing.sign(issuer, prepared, budget, parts)
        timer.lap("sign")
        # (8) Verify.
        leaf = signing.verify(under_way, issuer, prepared, issued, proven)
        timer.lap("verify")
        # (9) Record the outcome; on disk first where the backend chose the serial.
        signing.record_issued(under_way, leaf, durable=not prepared.tbs)
    return Signed(issuer, leaf, issued.leaf)


class Issuance:
    """Issues certificates. Safe to share between threads.

    Args:
        snapshot: Returns the current snapshot; called once per request.
        ledger: Records refusals.
        signing: The steps around a signature.
        failover: Leads each call to an issuing CA that can answer it.
        metrics: Counts the requests and times their steps.
        clock: The time that a validity starts from.
        status_name: Returns the name of the gRPC status of an error at a front.
        ready: Returns whether an issuing CA has signed since the start.
        renewal: Decides who renews by certificate.
        bars: What is barred.
        events: Writes the events of Linkerd's certificates; None writes none.
        draw: Returns a random number from 0 to 1: see `valid_until`.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each by keyword
        self,
        *,
        snapshot: Callable[[], Snapshot],
        ledger: Ledger,
        signing: Signing,
        failover: Failover,
        metrics: Metrics,
        clock: Clock,
        status_name: Callable[[BridgeError, str], str],
        ready: Callable[[], bool],
        renewal: CertificateRenewal,
        bars: Bars,
        events: AccountEvents | None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._signing = signing
        self._failover = failover
        self._metrics = metrics
        self._clock = clock
        self._status_name = status_name
        self._draw = draw
        self._bars = bars
        self._meshes: dict[str, Mesh] = {
            "istio": Istio(renewal, bars),
            "linkerd": Linkerd(signing, ready, events),
        }

    def issue(self, call: Call) -> Issued:
        """Issue a certificate for the caller of `call`.

        Raises:
            BridgeError: Nothing was issued. The class of the error says who has to
                act. The ledger has a row for it. Shed calls are only counted, and so
                are most calls above a rate limit.
        """
        trace = _Trace(call.front)
        with self._on_record(trace):
            return self._issue(call, trace)

    def refuse(self, error: BridgeError, *, front: str) -> None:
        """Record the refusal of a message that a front could not read."""
        self._record(_Trace(front), error)

    def _issue(self, call: Call, trace: _Trace) -> Issued:
        timer = StepTimer(self._metrics)
        snapshot, now = self._snapshot(), self._clock()
        mesh, budget = self._meshes[call.front], call.budget
        budget.require()
        mesh.begin(call)
        # (4) CSR, where the mesh wants it before the credential.
        csr = mesh.csr(call, snapshot, now, None) if mesh.csr_first else None
        timer.lap("csr" if csr else "")
        # (2) Identify.
        trace.caller = requester = mesh.identify(call, snapshot, now)
        timer.lap("identify")
        # (3) Admit. What follows goes by the identity that the certificate is for.
        trace.caller = caller = _acting(mesh, call, requester, snapshot)
        snapshot.rate_limits.require(call.front, caller, time.monotonic())
        grant = mesh.admit(call, caller, snapshot)
        timer.lap("admit")
        # (4) CSR.
        if csr is None:
            csr = mesh.csr(call, snapshot, now, grant)
            timer.lap("csr")
        self._bars.require(caller, csr.spki)
        if requester is not caller:
            self._bars.require(requester, csr.spki)
        subject = Subject(
            public_key=csr.public_key, spki=csr.spki, csr=csr.der, names=grant.names
        )
        # (5) Constrain.
        mesh.require_trust_domain(caller, grant, snapshot)
        lifetime, backdate = grant.lifetime, snapshot.rules.top.backdate
        term = Validity(ttl=lifetime.ttl, backdate=backdate, now=now)
        issuers = usable_issuers(
            snapshot, grant.route, grant.names, term, self._signing
        )
        timer.lap("constrain")
        origin = _origin(trace, snapshot.generation)

        def sign_by(issuer: Issuer, parts: int) -> Signed:
            request = leaf_request(subject, issuer, term)
            budget.require()
            trace.attempted = True
            # (6) to (9).
            return attempt(self._signing, issuer, request, origin, budget, parts)

        signed = self._failover.over(issuers, sign_by, budget, front=call.front)
        self._note_lifetime(lifetime, signed, now)
        mesh.issued(call, caller, signed, now)
        # (9) Reply.
        return self._answer(snapshot, signed, now)

    @contextmanager
    def _on_record(self, trace: _Trace) -> Iterator[None]:
        # Whatever error leaves this block gets its row and its count, foreseen or not.
        citadel = self._metrics.citadel if trace.front == "istio" else None
        if citadel is not None:
            citadel.csr_count.inc()
        try:
            yield
        except BaseException as error:
            if citadel is not None:
                citadel.failed(error)
            self._record(trace, error)
            raise
        if citadel is not None:
            citadel.success_cert_issuance_count.inc()

    def _answer(self, snapshot: Snapshot, signed: Signed, now: datetime) -> Issued:
        ends = min(signed.leaf.not_valid_after_utc, signed.issuer.chain.not_after)
        return Issued(
            leaf=signed.leaf_der,
            chain=signed.issuer.served,
            chain_pem=signed.issuer.served_pem,
            anchors_pem=snapshot.bundle.pem(now),
            valid_until=valid_until(now, ends, self._draw()),
        )

    def _note_lifetime(self, lifetime: Lifetime, signed: Signed, now: datetime) -> None:
        ends = signed.leaf.not_valid_after_utc
        cut = ends < now.replace(microsecond=0) + lifetime.ttl
        if lifetime.clamped or cut:
            self._metrics.ttl_clamped.inc()
            _log.log(
                logging.WARNING if cut else logging.INFO,
                "the lifetime of serial %x was shortened to end at %s: %s",
                signed.leaf.serial_number,
                ends.isoformat(),
                "the chain expires then" if cut else "the limit of the policy",
            )

    def _record(self, trace: _Trace, error: BaseException) -> None:
        is_excess = (
            isinstance(error, OverloadedError) and error.rule in RATE_LIMIT_RULES
        )
        if trace.attempted or (isinstance(error, OverloadedError) and not is_excess):
            return  # an attempt has its own outcome; shed calls are only counted
        status, rule = "INTERNAL", "internal"
        if isinstance(error, BridgeError):
            status, rule = self._status_name(error, trace.front), error.rule
        is_refused = is_excess or isinstance(error, CallerError)
        ending = _origin(trace).ending(
            Outcome.REFUSED if is_refused else Outcome.FAILED,
            status=status,
            rule=rule,
            detail=describe(error),
        )
        try:
            if not self._write(ending, trace.caller, is_excess=is_excess):
                return  # counted: the log is filled no faster than the ledger
        except LedgerError:
            # The refusal stands even if it cannot be recorded. The ledger reports its
            # failure to readiness, and nothing is signed any more.
            _log.exception("a refusal could not be recorded")
        _tell(ending)

    def _write(self, ending: Ending, caller: Caller | None, *, is_excess: bool) -> bool:
        if caller is None:
            return self._ledger.refuse_unauthenticated(ending)
        if is_excess:
            return self._ledger.refuse_excess(ending)
        if ending.rule == OPEN_RULE:
            return self._ledger.refuse_open(ending)
        return self._ledger.refuse(ending)


def _tell(ending: Ending) -> None:
    who = f"{ending.cluster} {ending.caller}".strip() or "unknown"
    said = f"{ending.kind} {ending.rule}: {ending.detail}"
    _log.info(
        "%s (front %s, caller %s, status %s, request %s)",
        on_one_line(said),
        ending.front,
        on_one_line(who),
        ending.status,
        ending.request,
    )


def _acting(mesh: Mesh, call: Call, requester: Caller, snapshot: Snapshot) -> Caller:
    if call.impersonated is not None:
        # Before an API server is asked for its sake.
        snapshot.rate_limits.require_requester(call.front, requester, time.monotonic())
    try:
        return mesh.acting_for(call, requester, snapshot)
    except DeniedError:
        # The identity that was asked for is not the caller's, so the refused call
        # counts as one of the caller.
        snapshot.rate_limits.require(call.front, requester, time.monotonic())
        raise


def _origin(trace: _Trace, generation: int = 0) -> Origin:
    return Origin(
        request=trace.request,
        front=trace.front,
        caller=trace.caller,
        generation=generation,
    )
