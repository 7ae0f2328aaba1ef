"""The one path from a CSR to a chain, in numbered steps.

Every front and every backend meet here. The steps are those of the design; the fronts
only translate (1), `bridge.issuance.meshes` has what differs between them in
2 to 5, and
`bridge.issuance.signing` does 6 to 9 for one attempt.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from bridge.errors import BridgeError, CallerError, LedgerError, OverloadedError
from bridge.identity.caller import Caller
from bridge.issuance.call import Call, Issued
from bridge.issuance.meshes import Istio, Linkerd, Mesh
from bridge.issuance.selection import Subject, Term, leaf_request, usable_issuers
from bridge.issuance.signing import Origin, Signed, Signing, describe, new_id
from bridge.ledger.events import Ending, Outcome, Purpose
from bridge.ledger.ledger import Ledger
from bridge.metrics.instruments import Metrics
from bridge.policy.issuance_policy import Lifetime, valid_until
from bridge.policy.rate_limit import CEILING_RULES
from bridge.resilience.failover import over_issuers
from bridge.snapshot.model import Issuer, Snapshot
from bridge.system.clock import Clock
from bridge.system.logs import on_one_line

__all__ = ["Call", "Issuance", "Issued"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trace:
    # What is known of a call when it ends, for its row in the ledger.
    front: str
    request: str = field(default_factory=new_id)
    caller: Caller | None = None
    attempted: bool = False


class Issuance:
    """Issues certificates. Safe to share between threads.

    Args:
        snapshot: Returns what to decide by; asked once per call.
        ledger: Where refusals go.
        signing: Has a prepared request signed, on record.
        metrics: What is measured on the way.
        clock: The time that validity is reckoned from.
        status_name: The gRPC status that an error becomes at a front, by name.
        ready: Whether an issuing CA has proven itself since the start.
        draw: A number from 0 to 1, at random: see `valid_until`.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each by keyword
        self,
        *,
        snapshot: Callable[[], Snapshot],
        ledger: Ledger,
        signing: Signing,
        metrics: Metrics,
        clock: Clock,
        status_name: Callable[[BridgeError, str], str],
        ready: Callable[[], bool] = lambda: True,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._signing = signing
        self._metrics = metrics
        self._clock = clock
        self._status_name = status_name
        self._draw = draw
        self._meshes: dict[str, Mesh] = {
            "istio": Istio(),
            "linkerd": Linkerd(signing, ready),
        }

    def issue(self, call: Call) -> Issued:
        """Issue a certificate for the caller of `call`.

        Raises:
            BridgeError: Nothing was issued. Its class says who has to act, and the
                ledger has a row for it (calls that are shed are only counted, and so
                are those above a ceiling once they are too many for rows).
        """
        trace = _Trace(call.front)
        with _OnRecord(self, trace):
            return self._issue(call, trace)

    def refuse(self, error: BridgeError, *, front: str) -> None:
        """Put on record that a front could not even read a call."""
        self._record(_Trace(front), error)

    def _issue(self, call: Call, trace: _Trace) -> Issued:
        watch = _Watch(self._metrics)
        snapshot, now = self._snapshot(), self._clock()
        mesh, budget = self._meshes[call.front], call.budget
        budget.require()
        mesh.begin(call)
        # (4) CSR, where it comes first.
        csr = mesh.csr(call, snapshot, now, None) if mesh.csr_first else None
        watch.lap("csr" if csr else "")
        # (2) Identify.
        trace.caller = caller = mesh.identify(call, snapshot, now)
        watch.lap("identify")
        # (3) Admit.
        snapshot.ceilings.require(call.front, caller, time.monotonic())
        grant = mesh.admit(call, caller, snapshot)
        watch.lap("admit")
        # (4) CSR, where it does not.
        if csr is None:
            csr = mesh.csr(call, snapshot, now, grant)
            watch.lap("csr")
        subject = Subject(
            public_key=csr.public_key, spki=csr.spki, csr=csr.der, names=grant.names
        )
        # (5) Constrain.
        mesh.require_trust_domain(caller, grant, snapshot)
        lifetime, backdate = grant.lifetime, snapshot.rules.top.backdate
        term = Term(ttl=lifetime.ttl, backdate=backdate, now=now)
        issuers = usable_issuers(
            snapshot, grant.route, grant.names, term, self._signing
        )
        watch.lap("constrain")
        # (6) to (9), for one issuing CA after the other.
        origin = _origin(trace, caller, snapshot)

        def attempt(issuer: Issuer) -> Signed:
            request = leaf_request(subject, issuer, term)
            budget.require()
            trace.attempted = True
            return self._signing.attempt(issuer, request, origin, budget)

        signed = over_issuers(issuers, attempt, budget)
        self._note_lifetime(lifetime, signed, now)
        return self._answer(snapshot, signed, now)

    def _answer(self, snapshot: Snapshot, signed: Signed, now: datetime) -> Issued:
        ends = min(signed.leaf.not_valid_after_utc, signed.issuer.chain.not_after)
        return Issued(
            leaf=signed.leaf_der,
            chain=signed.issuer.pinned.intermediates,
            chain_pem=signed.issuer.intermediates_pem,
            anchors_pem=snapshot.anchors_pem,
            valid_until=valid_until(now, ends, self._draw()),
        )

    def _note_lifetime(self, lifetime: Lifetime, signed: Signed, now: datetime) -> None:
        ends = signed.leaf.not_valid_after_utc
        cut = ends < now.replace(microsecond=0) + lifetime.ttl
        if lifetime.clamped or cut:
            self._metrics.ttl_clamped.inc()
            _log.info(
                "the lifetime of serial %x was bounded to end at %s: %s",
                signed.leaf.serial_number,
                ends.isoformat(),
                "the chain ends then" if cut else "the policy's bound",
            )

    def _record(self, trace: _Trace, error: BaseException) -> None:
        is_excess = isinstance(error, OverloadedError) and error.rule in CEILING_RULES
        if trace.attempted or (isinstance(error, OverloadedError) and not is_excess):
            return  # an attempt has an outcome of its own; shed calls are only counted
        caller = trace.caller
        status, rule = "INTERNAL", "internal"
        if isinstance(error, BridgeError):
            status, rule = self._status_name(error, trace.front), error.rule
        ended = Ending(
            kind=(
                Outcome.REFUSED
                if is_excess or isinstance(error, CallerError)
                else Outcome.FAILED
            ).value,
            attempt="",
            request=trace.request,
            purpose=Purpose.WORKLOAD.value,
            front=trace.front,
            cluster=caller.cluster if caller else "",
            caller=str(caller.spiffe_id) if caller else "",
            status=status,
            rule=rule,
            detail=describe(error),
        )
        try:
            if not self._write(ended, caller, is_excess=is_excess):
                return  # counted: the log is filled no faster than the ledger
        except LedgerError:
            # The refusal stands whether or not it could be written down; the ledger
            # itself tells readiness that it is shut, and nothing is signed any more.
            _log.exception("a refusal could not be put on record")
        _tell(ended)

    def _write(self, ended: Ending, caller: Caller | None, *, is_excess: bool) -> bool:
        if caller is None:
            return self._ledger.refuse_unauthenticated(ended)
        if is_excess:
            return self._ledger.refuse_excess(ended)
        self._ledger.end(ended)
        return True


class _Watch:
    # Which step took how long.
    def __init__(self, metrics: Metrics) -> None:
        self._steps = metrics.steps
        self._began = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        if step:
            self._steps[step].observe(now - self._began)
        self._began = now


class _OnRecord:
    # Whatever leaves this block as an error gets its row and its count: also what
    # nobody foresaw.
    def __init__(self, issuance: Issuance, trace: _Trace) -> None:
        self._issuance = issuance
        self._trace = trace

        self._citadel = issuance._metrics.citadel if trace.front == "istio" else None  # noqa: SLF001 - one class in two parts

    def __enter__(self) -> None:
        if self._citadel is not None:
            self._citadel.csr_count.inc()

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is not None:
            if self._citadel is not None:
                self._citadel.failed(error)
            self._issuance._record(self._trace, error)  # noqa: SLF001 - see above
        elif self._citadel is not None:
            self._citadel.success_cert_issuance_count.inc()


def _tell(ended: Ending) -> None:
    who = f"{ended.cluster} {ended.caller}".strip() or "nobody known"
    said = f"{ended.kind} {ended.rule}: {ended.detail}"
    _log.info(
        "%s (front %s, caller %s, status %s, request %s)",
        on_one_line(said),
        ended.front,
        on_one_line(who),
        ended.status,
        ended.request,
    )


def _origin(trace: _Trace, caller: Caller, snapshot: Snapshot) -> Origin:
    return Origin(
        request=trace.request,
        front=trace.front,
        cluster=caller.cluster,
        caller=str(caller.spiffe_id),
        credential=caller.credential,
        pod=caller.pod,
        generation=snapshot.generation,
    )
