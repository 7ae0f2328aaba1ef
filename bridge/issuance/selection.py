"""Step 5 of a request: select the issuing CAs that may sign it, and for how long."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from bridge.errors import BackendUnavailableError, BridgeError
from bridge.issuance.signing import (
    Signing,
    new_id,
    new_serial,
    revoked_error,
    stopped_error,
)
from bridge.policy.issuance_policy import validity
from bridge.policy.issued import NOT_AFTER_SLACK
from bridge.snapshot.model import Issuer, Snapshot
from bridge.spi import LeafRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The key and the names of a leaf."""

    public_key: CertificatePublicKeyTypes
    spki: bytes
    """The same key, as SubjectPublicKeyInfo in DER."""
    csr: bytes
    """A CSR of this key, in DER. Its names are ignored."""
    names: tuple[x509.GeneralName, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """How long a leaf is valid."""

    ttl: timedelta
    """From `now` to notAfter."""
    backdate: timedelta
    """From notBefore to `now`."""
    now: datetime
    """UTC."""


def usable_issuers(
    snapshot: Snapshot,
    route: Iterable[str],
    names: Sequence[x509.GeneralName],
    term: Validity,
    signing: Signing,
) -> list[Issuer]:
    """Return the issuing CAs of `route` that may sign `names`, in order; at least one.

    Args:
        snapshot: The snapshot of the request.
        route: Names of issuing CAs, in order of preference.
        names: The leaf's names. Every certificate of a chain must permit them.
        term: The leaf's validity. A chain that expires too soon is not usable.
        signing: Knows which issuing CAs are stopped.

    Raises:
        DeniedError: None is usable, and the first does not permit the names.
        BackendError: None is usable, and the first is stopped, expires too soon or is
            not loaded.
    """
    usable: list[Issuer] = []
    refusal: BridgeError | None = None
    for name in route:
        issuer = snapshot.issuers.get(name)
        if issuer is None:
            continue
        try:
            _require_usable(issuer, names, term, signing)
        except BridgeError as error:
            refusal = refusal or error
        else:
            usable.append(issuer)
    if not usable:
        raise refusal or BackendUnavailableError("no issuing CA is ready")
    return usable


def _require_usable(
    issuer: Issuer, names: Sequence[x509.GeneralName], term: Validity, signing: Signing
) -> None:
    issuer.chain.constraints.require_permitted(names)
    if issuer.revoked:
        raise revoked_error(issuer)
    if signing.stopped(issuer) is not None:
        raise stopped_error()
    _window(issuer, term)


def leaf_request(subject: Subject, issuer: Issuer, term: Validity) -> LeafRequest:
    """Decide every field of a leaf.

    Args:
        subject: Key and names.
        issuer: The leaf expires no later than any certificate of its chain.
        term: The leaf's validity.

    Raises:
        BackendUnavailableError: The chain expires too soon for a useful leaf.
    """
    return request_within(subject, _window(issuer, term))


def request_within(subject: Subject, window: tuple[datetime, datetime]) -> LeafRequest:
    """Return the request for a leaf with these times: notBefore and notAfter."""
    not_before, not_after = window
    return LeafRequest(
        attempt=new_id(),
        public_key=subject.public_key,
        spki=subject.spki,
        csr=subject.csr,
        names=subject.names,
        serial=new_serial(),
        not_before=not_before,
        not_after=not_after,
    )


def latest_end(issuer: Issuer) -> datetime:
    """Return the latest notAfter to request: no leaf may outlive its chain."""
    ends = issuer.chain.not_after
    return ends - NOT_AFTER_SLACK if issuer.description.chooses_serial else ends


def _window(issuer: Issuer, term: Validity) -> tuple[datetime, datetime]:
    window = validity(term.now, term.ttl, term.backdate, latest_end(issuer))
    if window is None:
        raise BackendUnavailableError(
            "the issuing CA's chain expires too soon for a useful certificate",
            rule="issuer.expiring",
            detail=f"{issuer.name} ends {issuer.chain.not_after.isoformat()}",
        )
    return window
