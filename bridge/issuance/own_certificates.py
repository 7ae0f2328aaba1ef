"""Issue the bridge's own certificates: its listener's, and probes."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import BackendUnavailableError
from bridge.issuance.procedure import attempt
from bridge.issuance.selection import (
    Subject,
    Validity,
    latest_end,
    leaf_request,
    request_within,
    usable_issuers,
)
from bridge.issuance.signing import (
    Origin,
    Signed,
    Signing,
    new_id,
    revoked_error,
    stopped_error,
)
from bridge.ledger.events import Purpose
from bridge.policy.rules import ISTIO
from bridge.resilience.boundary import from_plugin
from bridge.resilience.budget import Budget
from bridge.resilience.failover import Failover
from bridge.snapshot.model import Issuer, Snapshot
from bridge.system.clock import Clock
from bridge.x509.key_pair import KeyPair
from bridge.x509.pem import encode_certificate, key_pem

_SERVING_SECONDS = 10.0
_PROBE_AGE = timedelta(hours=2)
_PROBE_LIFE = timedelta(hours=1)
_LIVE_PROBE_LIFE = timedelta(minutes=1)
_NAMELESS = x509.CertificateSigningRequestBuilder(x509.Name([]))


class OwnCertificates:
    """Issues the bridge's own certificates, recorded like any other.

    Args:
        snapshot: Returns the current snapshot.
        signing: The steps around a signature.
        failover: Leads each call to an issuing CA that can answer it.
        clock: The time that a validity starts from.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        signing: Signing,
        failover: Failover,
        clock: Clock,
    ) -> None:
        self._snapshot = snapshot
        self._signing = signing
        self._failover = failover
        self._clock = clock

    def issue_serving(self, dns_names: Sequence[str], ttl: timedelta) -> KeyPair:
        """Issue the certificate of the bridge's own listener.

        Args:
            dns_names: 1 or more; the first is the host that clients dial.
            ttl: The lifetime from now.

        Raises:
            DeniedError: The chain's constraints do not permit a name.
            BackendError: No issuing CA signed it.
            LedgerError: It could not be recorded.
        """
        snapshot, now = self._snapshot(), self._clock()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(key, tuple(x509.DNSName(name) for name in dns_names))
        policy = snapshot.rules.policy_of(ISTIO)  # only its listener has one
        term = Validity(ttl=ttl, backdate=policy.backdate, now=now)
        issuers = usable_issuers(
            snapshot, policy.issuing_cas, subject.names, term, self._signing
        )
        origin = Origin(
            request=new_id(), purpose=Purpose.SERVING, generation=snapshot.generation
        )
        budget = Budget.of_seconds(_SERVING_SECONDS)

        def sign_by(issuer: Issuer, parts: int) -> Signed:
            request = leaf_request(subject, issuer, term)
            return attempt(self._signing, issuer, request, origin, budget, parts)

        signed = self._failover.over(issuers, sign_by, budget)
        chain = [encode_certificate(signed.leaf_der), *signed.issuer.served_pem]
        return KeyPair(
            certificate_chain_pem="".join(chain).encode("ascii"),
            private_key_pem=key_pem(key),
            not_before=signed.leaf.not_valid_before_utc,
            not_after=signed.leaf.not_valid_after_utc,
        )

    def probe(self, issuer: Issuer, snapshot: Snapshot, timeout: float) -> None:
        """Verify that `issuer` signs correctly.

        The probe is a well-formed certificate for a name that no caller can have. It
        has expired already. A backend that chooses the validity's begin cannot date
        back: its probe expires within a minute.

        Args:
            issuer: Need not be in `snapshot` yet.
            snapshot: Has the names of the probe.
            timeout: Seconds.

        Raises:
            BridgeError: The issuing CA does not sign, its answer is refused, or its
                chain has ended or does not permit the names.
        """
        if self._signing.stopped(issuer) is not None:
            raise stopped_error()  # looked at often, so it leaves no row
        if issuer.revoked:
            raise revoked_error(issuer)
        if issuer.chain.not_after <= self._clock():
            raise BackendUnavailableError(
                "the issuing CA's chain has ended", rule="issuer.expiring"
            )
        from_plugin(issuer.ca.check, object, timeout=timeout)
        subject = _subject(
            ec.generate_private_key(ec.SECP256R1()), snapshot.probe_names[issuer.name]
        )
        issuer.chain.constraints.require_permitted(subject.names)
        request = request_within(subject, self._probe_window(issuer, snapshot))
        origin = Origin(
            request=new_id(), purpose=Purpose.PROBE, generation=snapshot.generation
        )
        attempt(self._signing, issuer, request, origin, Budget.of_seconds(timeout))

    def _probe_window(
        self, issuer: Issuer, snapshot: Snapshot
    ) -> tuple[datetime, datetime]:
        now = self._clock().replace(microsecond=0)
        if issuer.description.chooses_serial:
            # The backend dates each leaf back as far as a workload's.
            ends = min(now + _LIVE_PROBE_LIFE, latest_end(issuer))
            return now - snapshot.rules.top.backdate, ends
        return now - _PROBE_AGE, now - _PROBE_AGE + _PROBE_LIFE


def _subject(
    key: ec.EllipticCurvePrivateKey, names: tuple[x509.GeneralName, ...]
) -> Subject:
    # A backend ignores the names of a CSR, so this one has none.
    public_key = key.public_key()
    return Subject(
        public_key=public_key,
        spki=public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        csr=_NAMELESS.sign(key, hashes.SHA256()).public_bytes(Encoding.DER),
        names=names,
    )
