"""Issue the bridge's own certificates: its listener's, and probes."""

from collections.abc import Callable, Sequence
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bridge.issuance.procedure import attempt
from bridge.issuance.selection import Subject, Validity, leaf_request, usable_issuers
from bridge.issuance.signing import Origin, Signed, Signing, new_id, new_serial
from bridge.ledger.events import Purpose
from bridge.policy.rules import ISTIO
from bridge.resilience.budget import Budget
from bridge.resilience.failover import over_issuers
from bridge.snapshot.model import Issuer, Snapshot
from bridge.spi import LeafRequest
from bridge.system.clock import Clock
from bridge.x509.key_pair import KeyPair
from bridge.x509.pem import encode_certificate

_SERVING_SECONDS = 10.0
_PROBE_AGE = timedelta(hours=2)
_PROBE_LIFE = timedelta(hours=1)


class OwnCertificates:
    """Issues the bridge's own certificates, recorded like any other.

    Args:
        snapshot: Returns the current snapshot.
        signing: The steps around a signature.
        clock: The time that a validity starts from.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], signing: Signing, clock: Clock
    ) -> None:
        self._snapshot = snapshot
        self._signing = signing
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
        subject = _subject(
            key.public_key(), tuple(x509.DNSName(name) for name in dns_names)
        )
        policy = snapshot.rules.policy_of(ISTIO)  # only its listener has one
        term = Validity(ttl=ttl, backdate=policy.backdate, now=now)
        issuers = usable_issuers(
            snapshot, policy.issuing_cas, subject.names, term, self._signing
        )
        origin = Origin(
            request=new_id(), purpose=Purpose.SERVING, generation=snapshot.generation
        )
        budget = Budget.of_seconds(_SERVING_SECONDS)

        def sign_by(issuer: Issuer) -> Signed:
            request = leaf_request(subject, issuer, term)
            return attempt(self._signing, issuer, request, origin, budget)

        signed = over_issuers(issuers, sign_by, budget)
        chain = [encode_certificate(signed.leaf_der), *signed.issuer.intermediates_pem]
        return KeyPair(
            certificate_chain_pem="".join(chain).encode("ascii"),
            private_key_pem=key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
            not_before=signed.leaf.not_valid_before_utc,
            not_after=signed.leaf.not_valid_after_utc,
        )

    def probe(self, issuer: Issuer, snapshot: Snapshot, *, timeout: float) -> None:
        """Verify that `issuer` signs correctly.

        The probe is a well-formed certificate for a name that no caller can have. It
        has expired already.

        Args:
            issuer: Need not be in `snapshot` yet.
            snapshot: Has the names of the probe.
            timeout: Seconds.

        Raises:
            BridgeError: The issuing CA does not sign, its answer is refused, or its
                chain does not permit the names.
        """
        issuer.ca.check(timeout=timeout)
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        subject = _subject(key, snapshot.probe_names[issuer.name])
        issuer.chain.constraints.require_permitted(subject.names)
        began = self._clock().replace(microsecond=0) - _PROBE_AGE
        request = LeafRequest(
            public_key=subject.public_key,
            spki=subject.spki,
            csr=b"",
            names=subject.names,
            serial=new_serial(),
            not_before=began,
            not_after=began + _PROBE_LIFE,
        )
        origin = Origin(
            request=new_id(), purpose=Purpose.PROBE, generation=snapshot.generation
        )
        attempt(self._signing, issuer, request, origin, Budget.of_seconds(timeout))


def _subject(
    key: ec.EllipticCurvePublicKey, names: tuple[x509.GeneralName, ...]
) -> Subject:
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Subject(public_key=key, spki=spki, names=names)
