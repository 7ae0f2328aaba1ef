"""What differs between the meshes on the one path of a request: rules, and their order.

Istio's API names nobody: the credential does, and the CSR is read after it. Linkerd's
asks for a name, which request, CSR and credential have to agree on, and has its CSR
read first: whoever asks learns in this order what is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from cryptography import x509

from bridge.errors import (
    BackendUnavailableError,
    ConfigError,
    DeniedError,
    SubjectError,
)
from bridge.identity.caller import Caller, TokenCredential
from bridge.issuance.call import Call
from bridge.issuance.selection import Validity, usable_issuers
from bridge.issuance.signing import Signing
from bridge.policy.issuance_policy import Lifetime, require_no_impersonation
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
    """What an authenticated caller is given, if the rest is right."""

    names: tuple[x509.GeneralName, ...]
    """Of the leaf, in order."""
    lifetime: Lifetime
    route: tuple[str, ...]
    """Names of issuing CAs, in order of preference."""


class Mesh(Protocol):
    """The rules of one mesh. Each method raises a `BridgeError` for what breaks one."""

    csr_first: bool
    """The CSR is read before the credential is looked at."""

    def begin(self, call: Call) -> None:
        """Refuse what need not be looked into."""

    def csr(
        self, call: Call, snapshot: Snapshot, now: datetime, grant: Grant | None
    ) -> CSR:
        """Read the CSR; `grant` is None where that comes first."""

    def identify(self, call: Call, snapshot: Snapshot, now: datetime) -> Caller:
        """Prove who is asking."""

    def admit(self, call: Call, caller: Caller, snapshot: Snapshot) -> Grant:
        """Decide what the caller may have."""

    def require_trust_domain(
        self, caller: Caller, grant: Grant, snapshot: Snapshot
    ) -> None:
        """Hold the names to the configured trust domain.

        Said once more where names are constrained: a DNS constraint lets every URI SAN
        pass, so this comparison may be all that holds an issuing CA to it.
        """


class Istio:
    """`CreateCertificate`: one SPIFFE ID, the credential's."""

    csr_first = False

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
        return snapshot.clusters.identify(
            call.credential, audiences=call.audiences, now=now
        )

    def admit(self, call: Call, caller: Caller, snapshot: Snapshot) -> Grant:
        """See `Mesh.admit`."""
        require_no_impersonation(call.impersonated)
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


class Linkerd:
    """`Certify`: the DNS name that request, CSR and token agree on.

    Args:
        signing: Knows which issuing CA is stopped.
        ready: Whether an issuing CA has proven itself since the start.
    """

    csr_first = True

    def __init__(self, signing: Signing, ready: Callable[[], bool]) -> None:
        self._signing = signing
        self._ready = ready
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
        # Between the two: is there an issuing CA that could sign anything at all?
        self._require_issuer(call, snapshot, now)
        require_csr_names(csr, call.identity)
        return csr

    def _require_issuer(self, call: Call, snapshot: Snapshot, now: datetime) -> None:
        # Once a second: what this second's calls find is held against their own names
        # and times before anything is signed.
        second = now.replace(microsecond=0)
        seen, when = self._usable
        if seen is snapshot and when == second and not self._signing.any_stopped:
            return
        policy, route = snapshot.rules.top, snapshot.rules.reachable[call.front]
        term = Validity(ttl=policy.default_ttl, backdate=policy.backdate, now=now)
        usable_issuers(snapshot, route, (), term, self._signing)
        self._usable = snapshot, second

    def identify(self, call: Call, snapshot: Snapshot, now: datetime) -> Caller:
        """See `Mesh.identify`."""
        try:
            caller = snapshot.clusters.identify(
                call.credential, audiences=call.audiences, now=now
            )
        except SubjectError as error:
            raise subject_error(error.subject) from error
        except BackendUnavailableError as error:
            raise review_error(call.identity, error) from error
        names = _names(snapshot)
        names.require_cluster(caller.cluster)
        if caller.spiffe_id.trust_domain == names.trust_domain:
            return caller
        spiffe_id = SpiffeID.of_service_account(
            names.trust_domain, caller.namespace, caller.service_account
        )
        return replace(caller, spiffe_id=spiffe_id)

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


def _names(snapshot: Snapshot) -> LinkerdNames:
    if snapshot.linkerd is None:
        raise ConfigError("fronts.linkerd is not configured")
    return snapshot.linkerd
