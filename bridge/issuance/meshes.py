"""The rules that differ between the meshes, in steps 2 to 5 of a request.

Istio's API has no name: the credential gives it, and the CSR is read after the
credential. Linkerd's API requests a name. Request, CSR and credential must agree on it,
and the CSR is read first, because linkerd-identity reports errors in this order.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from cryptography import x509

from bridge.errors import (
    AuthenticationError,
    ConfigError,
    DeniedError,
    ReviewError,
    SubjectError,
)
from bridge.identity.caller import Caller, CertificateCredential, TokenCredential
from bridge.identity.client_certificate import trusted_path
from bridge.issuance.call import Call
from bridge.issuance.selection import Validity, usable_issuers
from bridge.issuance.signing import Signed, Signing
from bridge.kubernetes.events import AccountEvents
from bridge.policy.bars import Bars
from bridge.policy.certificate_renewal import CertificateRenewal
from bridge.policy.issuance_policy import Lifetime
from bridge.policy.linkerd_names import (
    LinkerdNames,
    not_ready,
    read_csr,
    require_complete,
    require_csr_names,
    require_requested,
    review_error,
    subject_error,
)
from bridge.snapshot.model import Snapshot
from bridge.spiffe import SpiffeID
from bridge.x509.csr import CSR, parse_csr, require_only_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The names, lifetime and issuing CAs that step 3 grants to a caller."""

    names: tuple[x509.GeneralName, ...]
    """The leaf's names, in order."""
    lifetime: Lifetime
    route: tuple[str, ...]
    """Names of issuing CAs, in order of preference."""


class Mesh(Protocol):
    """The rules of one mesh. A method raises a `BridgeError` if one is violated."""

    csr_first: bool
    """Whether step 4 (CSR) comes before step 2 (identify)."""

    def begin(self, call: Call) -> None:
        """Refuse a request that is not complete, before step 2."""

    def csr(
        self, call: Call, snapshot: Snapshot, now: datetime, grant: Grant | None
    ) -> CSR:
        """Read and check the CSR (4); `grant` is None if the CSR comes first."""

    def identify(self, call: Call, snapshot: Snapshot, now: datetime) -> Caller:
        """Identify the caller by its credential (2)."""

    def acting_for(self, call: Call, requester: Caller, snapshot: Snapshot) -> Caller:
        """Return the workload that `requester` asks for: itself, or another (3)."""

    def admit(self, call: Call, caller: Caller, snapshot: Snapshot) -> Grant:
        """Decide the names, the lifetime and the issuing CAs (3)."""

    def require_trust_domain(
        self, caller: Caller, grant: Grant, snapshot: Snapshot
    ) -> None:
        """Require the configured trust domain of the names (5).

        The name constraints of a chain may not do so: a DNS constraint permits every
        URI SAN.
        """

    def issued(self, call: Call, caller: Caller, signed: Signed, now: datetime) -> None:
        """Tell of a certificate that is on record (9). Never waits, never fails."""


class Istio:
    """The rules of `CreateCertificate`: the leaf has the credential's SPIFFE ID.

    Args:
        renewal: Decides who renews by certificate.
        bars: The client certificates that are barred.
    """

    csr_first = False

    def __init__(self, renewal: CertificateRenewal, bars: Bars) -> None:
        self._renewal = renewal
        self._bars = bars

    def begin(self, call: Call) -> None:
        """See `Mesh.begin`."""

    def csr(
        self, call: Call, snapshot: Snapshot, now: datetime, grant: Grant | None
    ) -> CSR:
        """See `Mesh.csr`."""
        csr = parse_csr(call.csr if isinstance(call.csr, str) else "")
        if snapshot.rules.top.strict_csr_names and grant is not None:
            require_only_names(csr, grant.names)
        return csr

    def identify(self, call: Call, snapshot: Snapshot, now: datetime) -> Caller:
        """See `Mesh.identify`."""
        credential = call.credential
        caller = snapshot.clusters.identify(
            credential, audiences=call.audiences, now=now, budget=call.budget
        )
        if not isinstance(credential, CertificateCredential):
            return caller
        self._renewal.require_listed(caller)
        path = trusted_path(credential, snapshot.bundle.anchors, now=now)
        self._bars.require_certificate(path[0])
        if revoked := snapshot.crls.revoked(path):
            raise AuthenticationError(
                "the certificate, or one of its chain, is revoked",
                rule="certificate.revoked",
                detail=revoked,
            )
        left = call.budget.remaining()
        return self._renewal.proven(caller, path[0], now=now, seconds=left)

    def acting_for(self, call: Call, requester: Caller, snapshot: Snapshot) -> Caller:
        """See `Mesh.acting_for`."""
        if call.impersonated is None:
            return requester
        return snapshot.clusters.acting_for(
            requester, call.impersonated, budget=call.budget
        )

    def admit(self, call: Call, caller: Caller, snapshot: Snapshot) -> Grant:
        """See `Mesh.admit`."""
        snapshot.clusters.require_allowed(caller)
        policy = snapshot.rules.policy_for(call.front, caller)
        return Grant(
            names=(x509.UniformResourceIdentifier(str(caller.spiffe_id)),),
            lifetime=policy.lifetime(call.ttl_seconds),
            route=policy.route(call.cert_signer),
        )

    def require_trust_domain(
        self, caller: Caller, grant: Grant, snapshot: Snapshot
    ) -> None:
        """See `Mesh.require_trust_domain`."""
        wanted = snapshot.clusters.trust_domain_of(caller.cluster)
        if caller.spiffe_id.trust_domain != wanted:
            raise DeniedError(
                "the cluster may not have names of this trust domain",
                rule="cluster.trust-domain",
                detail=str(caller.spiffe_id),
            )

    def issued(self, call: Call, caller: Caller, signed: Signed, now: datetime) -> None:
        """See `Mesh.issued`: istiod tells nobody."""


class Linkerd:
    """The rules of `Certify`: request, CSR and token agree on the leaf's DNS name.

    Args:
        signing: Knows which issuing CAs are stopped.
        ready: Returns whether an issuing CA has signed since the start.
        events: Writes the events of certificates; None for none.
    """

    csr_first = True

    def __init__(
        self,
        signing: Signing,
        ready: Callable[[], bool],
        events: AccountEvents | None = None,
    ) -> None:
        self._signing = signing
        self._ready = ready
        self._events = events
        self._usable: tuple[Snapshot | None, datetime | None] = (None, None)

    def begin(self, call: Call) -> None:
        """See `Mesh.begin`."""
        if not self._ready():
            raise not_ready()
        shown = call.credential
        token = shown.authorization if isinstance(shown, TokenCredential) else ()
        require_complete(call.identity, token, call.csr)

    def csr(
        self, call: Call, snapshot: Snapshot, now: datetime, grant: Grant | None
    ) -> CSR:
        """See `Mesh.csr`."""
        csr = read_csr(call.csr if isinstance(call.csr, bytes) else b"")
        # linkerd-identity checks its issuer between the CSR's form and its names.
        self._require_issuer(call, snapshot, now)
        require_csr_names(csr, call.identity)
        return csr

    def _require_issuer(self, call: Call, snapshot: Snapshot, now: datetime) -> None:
        # Checked once a second. Step 5 checks each request's own names and times again
        # before anything is signed.
        second = now.replace(microsecond=0)
        seen, when = self._usable
        if seen is snapshot and when == second and not self._signing.any_stopped:
            return
        policy, route = snapshot.rules.top, snapshot.rules.routes[call.front]
        term = Validity(ttl=policy.default_ttl, backdate=policy.backdate, now=now)
        usable_issuers(snapshot, route, (), term, self._signing)
        self._usable = snapshot, second

    def identify(self, call: Call, snapshot: Snapshot, now: datetime) -> Caller:
        """See `Mesh.identify`."""
        try:
            caller = snapshot.clusters.identify(
                call.credential, audiences=call.audiences, now=now, budget=call.budget
            )
        except SubjectError as error:
            raise subject_error(error.subject) from error
        except ReviewError as error:
            raise review_error(call.identity, error) from error
        names = _names(snapshot)
        names.require_cluster(caller.cluster)
        if caller.spiffe_id.trust_domain == names.trust_domain:
            return caller
        spiffe_id = SpiffeID.of_service_account(
            names.trust_domain, caller.namespace, caller.service_account
        )
        return replace(caller, spiffe_id=spiffe_id)

    def acting_for(self, call: Call, requester: Caller, snapshot: Snapshot) -> Caller:
        """See `Mesh.acting_for`: Linkerd's proxies ask for themselves alone."""
        return requester

    def admit(self, call: Call, caller: Caller, snapshot: Snapshot) -> Grant:
        """See `Mesh.admit`."""
        names = _names(snapshot)
        identity = names.identity(caller.namespace, caller.service_account)
        require_requested(call.identity, identity)
        snapshot.clusters.require_allowed(caller)
        policy = snapshot.rules.policy_for(call.front, caller)
        return Grant(
            names=names.leaf_names(identity, caller.spiffe_id),
            lifetime=policy.lifetime(0),
            route=policy.route(""),
        )

    def require_trust_domain(
        self, caller: Caller, grant: Grant, snapshot: Snapshot
    ) -> None:
        """See `Mesh.require_trust_domain`."""
        _names(snapshot).require_own(grant.names)

    def issued(self, call: Call, caller: Caller, signed: Signed, now: datetime) -> None:
        """See `Mesh.issued`: in the words of linkerd-identity."""
        if self._events is None:
            return
        until = f"{signed.leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} +0000 UTC"
        digest = hashlib.sha256(signed.leaf_der).hexdigest()
        told = f"issued certificate for {call.identity} until {until}: {digest}"
        self._events.note(caller.namespace, caller.service_account, told, now)


def _names(snapshot: Snapshot) -> LinkerdNames:
    if snapshot.linkerd is None:
        raise ConfigError("fronts.linkerd is not configured")
    return snapshot.linkerd
