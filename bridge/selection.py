"""Step 5 of a request: which issuing CA may sign these names, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from bridge.errors import BackendBrokenError, BackendUnavailableError, BridgeError
from bridge.policy.request import validity
from bridge.signing import Signing, new_serial
from bridge.snapshot import Issuer, Snapshot
from bridge.spi import LeafRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a leaf is for."""

    public_key: CertificatePublicKeyTypes
    spki: bytes
    """The same key, as SubjectPublicKeyInfo in DER."""
    csr: bytes = b""
    """In DER; empty for the bridge's own certificates."""
    names: tuple[x509.GeneralName, ...]


def usable_issuers(
    snapshot: Snapshot,
    route: Sequence[str],
    names: Sequence[x509.GeneralName],
    signing: Signing,
) -> list[Issuer]:
    """Return the issuing CAs of `route` that may sign `names`, in order; never none.

    Args:
        snapshot: What the request decides by.
        route: Names of issuing CAs, in order of preference.
        names: The leaf's; held against the constraints of every tier.
        signing: Knows which issuing CA is stopped.

    Raises:
        DeniedError: The names are outside the constraints of each of them.
        BackendError: Those that may sign them are stopped, or not ready.
    """
    usable: list[Issuer] = []
    refusal: BridgeError | None = None
    for name in route:
        issuer = snapshot.issuers.get(name)
        if issuer is None:
            continue
        try:
            _require_usable(issuer, names, signing)
        except BridgeError as error:
            refusal = refusal or error
        else:
            usable.append(issuer)
    if not usable:
        raise refusal or BackendUnavailableError("no issuing CA is ready")
    return usable


def _require_usable(
    issuer: Issuer, names: Sequence[x509.GeneralName], signing: Signing
) -> None:
    issuer.chain.constraints.require_permitted(names)
    if signing.stopped(issuer.name) is not None:
        raise BackendBrokenError(
            "the issuing CA is stopped after a mis-issuance", rule="issuer.stopped"
        )


def leaf_request(
    subject: Subject,
    issuer: Issuer,
    *,
    ttl: timedelta,
    backdate: timedelta,
    now: datetime,
) -> LeafRequest:
    """Decide every field of a leaf.

    Args:
        subject: Key and names.
        issuer: Its chain's end bounds the leaf's.
        ttl: From `now` to notAfter.
        backdate: From notBefore to `now`.
        now: UTC.

    Raises:
        BackendUnavailableError: The chain ends too soon for a leaf of any use.
    """
    window = validity(now, ttl, backdate, issuer.chain.not_after)
    if window is None:
        raise BackendUnavailableError(
            "the issuing CA's chain ends too soon for a certificate of use",
            rule="issuer.expiring",
            detail=f"{issuer.name} ends {issuer.chain.not_after.isoformat()}",
        )
    return LeafRequest(
        public_key=subject.public_key,
        spki=subject.spki,
        csr=subject.csr,
        names=subject.names,
        serial=new_serial(),
        not_before=window[0],
        not_after=window[1],
    )
