"""The one path from a CSR to a chain, in numbered steps.

Every front and every backend meet here. The steps are those of the design; the fronts
only translate (1), and `bridge.signing` does 6 to 9 for one attempt.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509

from bridge.clock import Clock
from bridge.errors import (
    BridgeError,
    CallerError,
    DeniedError,
    LedgerError,
    OverloadedError,
)
from bridge.identity.caller import Caller, Credential
from bridge.ledger.events import Ended, Outcome, Purpose
from bridge.ledger.ledger import Ledger
from bridge.logs import on_one_line
from bridge.metrics import Metrics
from bridge.policy.ceilings import CEILING_RULES
from bridge.policy.request import Lifetime, require_no_impersonation
from bridge.resilience import Budget, over_issuers
from bridge.selection import Subject, Term, leaf_request, usable_issuers
from bridge.signing import Origin, Signed, Signing, describe, new_id
from bridge.snapshot import Issuer, Snapshot
from bridge.x509.csr import parse_csr, require_only_names
from bridge.x509.pem import encode_certificate

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a front hands over: values as they came, nothing decided."""

    front: str
    """`istio` or `linkerd`."""
    csr: str
    """PEM."""
    credential: Credential
    audiences: frozenset[str]
    """Of the front: a token of one mesh is no credential for the other."""
    ttl_seconds: int
    cert_signer: str = ""
    impersonated: str | None = None
    """ztunnel's `ImpersonatedIdentity`; None where the key is absent."""
    budget: Budget
    """How long the answer may take, and whether the caller is still there."""


@dataclass(frozen=True, slots=True)
class Issued:
    """The answer, in PEM; each text ends in a newline."""

    leaf_pem: str
    chain_pem: tuple[str, ...]
    """Issuing CA first, one certificate per element; no trust anchor."""
    anchors_pem: str
    """All trust anchors in one text."""


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
        status_name: The gRPC status that an error becomes, by name.
    """

    def __init__(
        self,
        *,
        snapshot: Callable[[], Snapshot],
        ledger: Ledger,
        signing: Signing,
        metrics: Metrics,
        clock: Clock,
        status_name: Callable[[BridgeError], str],
    ) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._signing = signing
        self._metrics = metrics
        self._clock = clock
        self._status_name = status_name

    def issue(self, call: Call) -> Issued:
        """Issue a certificate for the caller of `call`.

        Raises:
            BridgeError: Nothing was issued. Its class says who has to act, and the
                ledger has a row for it (calls that are shed are only counted, and so
                are those above a ceiling once they are too many for rows).
        """
        trace = _Trace(call.front)
        citadel = self._metrics.citadel
        citadel.csr_count.inc()
        with _OnRecord(self, trace):
            issued = self._issue(call, trace)
        citadel.success_cert_issuance_count.inc()
        return issued

    def refuse(self, error: BridgeError, *, front: str) -> None:
        """Put on record that a front could not even read a call."""
        self._record(_Trace(front), error)

    def _issue(self, call: Call, trace: _Trace) -> Issued:
        steps = self._metrics.steps
        snapshot, now = self._snapshot(), self._clock()
        budget = call.budget
        budget.require()
        # (2) Identify.
        began = time.perf_counter()
        caller = snapshot.clusters.identify(
            call.credential, audiences=call.audiences, now=now
        )
        trace.caller = caller
        identified = time.perf_counter()
        steps["identify"].observe(identified - began)
        # (3) Admit.
        snapshot.ceilings.require(call.front, caller, time.monotonic())
        require_no_impersonation(call.impersonated)
        snapshot.clusters.require_allowed(caller)
        policy = snapshot.rules.policy_for(call.front, caller)
        lifetime = policy.lifetime(call.ttl_seconds)
        route = policy.route(call.cert_signer)
        names = (x509.UniformResourceIdentifier(str(caller.spiffe_id)),)
        admitted = time.perf_counter()
        steps["admit"].observe(admitted - identified)
        # (4) CSR.
        csr = parse_csr(call.csr)
        if policy.strict_csr_names:
            require_only_names(csr, names)
        subject = Subject(
            public_key=csr.public_key, spki=csr.spki, csr=csr.der, names=names
        )
        parsed = time.perf_counter()
        steps["csr"].observe(parsed - admitted)
        # (5) Constrain.
        _require_trust_domain(caller, snapshot)
        term = Term(ttl=lifetime.ttl, backdate=policy.backdate, now=now)
        issuers = usable_issuers(snapshot, route, names, term, self._signing)
        steps["constrain"].observe(time.perf_counter() - parsed)
        # (6) to (9), for one issuing CA after the other.
        origin = _origin(trace, caller, snapshot)

        def attempt(issuer: Issuer) -> Signed:
            request = leaf_request(subject, issuer, term)
            budget.require()
            trace.attempted = True
            return self._signing.attempt(issuer, request, origin, budget)

        signed = over_issuers(issuers, attempt, budget)
        self._note_lifetime(lifetime, signed, now)
        return self._answer(snapshot, signed)

    def _answer(self, snapshot: Snapshot, signed: Signed) -> Issued:
        began = time.perf_counter()
        issued = Issued(
            encode_certificate(signed.leaf_der),
            signed.issuer.intermediates_pem,
            snapshot.anchors_pem,
        )
        self._metrics.steps["reply"].observe(time.perf_counter() - began)
        return issued

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
            status, rule = self._status_name(error), error.rule
        ended = Ended(
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

    def _write(self, ended: Ended, caller: Caller | None, *, is_excess: bool) -> bool:
        if caller is None:
            return self._ledger.refuse_unauthenticated(ended)
        if is_excess:
            return self._ledger.refuse_excess(ended)
        self._ledger.end(ended)
        return True


class _OnRecord:
    # Whatever leaves this block as an error gets its row and its count: also what
    # nobody foresaw.
    def __init__(self, issuance: Issuance, trace: _Trace) -> None:
        self._issuance = issuance
        self._trace = trace

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        issuance = self._issuance
        issuance._metrics.citadel.failed(error)  # noqa: SLF001 - one class in two parts
        issuance._record(self._trace, error)  # noqa: SLF001 - see above


def _tell(ended: Ended) -> None:
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


def _require_trust_domain(caller: Caller, snapshot: Snapshot) -> None:
    # Said once more where names are constrained: a DNS constraint lets every URI SAN
    # pass, so this comparison may be all that holds an issuing CA to its trust domain.
    wanted = snapshot.clusters.trust_domain_of(caller.cluster)
    if caller.spiffe_id.trust_domain != wanted:
        raise DeniedError(
            "the cluster may not have names of this trust domain",
            rule="cluster.trust-domain",
            detail=str(caller.spiffe_id),
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
