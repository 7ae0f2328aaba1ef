"""A request for a leaf as the core makes it, and how a leaf is held to its request."""

# A conformance test is made of `assert`.
# ruff: noqa: S101

from datetime import UTC, datetime, timedelta
from secrets import randbits

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.policy.issued import PinnedIssuer, require_as_prepared
from bridge.spi import Description, IssuedChain, LeafRequest, Prepared
from bridge.x509.algorithm import algorithm_of, issuer_key
from bridge.x509.der import splice
from bridge.x509.leaf_profile import LeafProfile

BACKDATE = timedelta(minutes=2)
"""How long before the request a leaf is valid, by default."""


def leaf_request(
    names: tuple[x509.GeneralName, ...],
    *,
    now: datetime | None = None,
    ttl: timedelta = timedelta(hours=1),
    backdate: timedelta = BACKDATE,
) -> LeafRequest:
    """Build a request as the core does: new P-256 key and CSR, serial, whole seconds.

    Args:
        names: The subject alternative names, in order.
        now: The machine's time by default.
        ttl: From `now` to notAfter.
        backdate: From notBefore to `now`.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    empty_csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    return LeafRequest(
        attempt=f"{randbits(128):032x}",
        public_key=key.public_key(),
        spki=key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ),
        csr=empty_csr.sign(key, hashes.SHA256()).public_bytes(Encoding.DER),
        names=names,
        serial=randbits(126) | (1 << 126),
        not_before=moment - backdate,
        not_after=moment + ttl,
    )


def require_requested(prepared: Prepared, description: Description) -> None:
    """Assert that a prepared TBSCertificate is, byte for byte, the bridge's profile.

    The single fields are compared first, for a message that names one.
    """
    request = prepared.request
    algorithm = algorithm_of(issuer_key(description.certificate))
    # A TBSCertificate alone cannot be read; one with an empty signature can.
    leaf = x509.load_der_x509_certificate(splice(prepared.tbs, algorithm.der, b""))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    validity = (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    spki = leaf.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    requested = (request.not_before, request.not_after)
    assert validity == requested, "the validity is not the requested one"
    assert tuple(names.value) == request.names, "the names are not the requested ones"
    assert spki == request.spki, "the key is not the requested one"
    assert leaf.serial_number == request.serial, "the serial is not the requested one"
    profile = LeafProfile(description.certificate)
    ours = profile.tbs(
        request.public_key,
        request.names,
        request.serial,
        request.not_before,
        request.not_after,
    )
    assert prepared.tbs == ours, (
        "the TBSCertificate is not that of the bridge's profile"
    )


def require_issued(
    issued: IssuedChain, prepared: Prepared, description: Description
) -> x509.Certificate:
    """Verify an issued leaf as the core does before it hands it out; return it.

    Raises:
        MisissuedError: It is not the prepared one, or not signed by the described
            issuing CA. What the backend may choose may differ.
    """
    chain = (description.certificate, *description.intermediates)
    ders = [one.public_bytes(Encoding.DER) for one in chain]
    pinned = PinnedIssuer(
        description.certificate, ders, added=description.added_extensions
    )
    return require_as_prepared(prepared, issued, pinned)
