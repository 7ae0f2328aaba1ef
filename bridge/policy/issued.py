"""Verify an issued certificate against its request, before it is released (step 8)."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import BackendBrokenError, ConfigError, MisissuedError
from bridge.spi import IssuedChain, LeafRequest, Prepared
from bridge.x509.algorithm import algorithm_of, issuer_key, require_signature
from bridge.x509.certificate import UNREADABLE, issuer_of, name_of, subject_of
from bridge.x509.der import splice
from bridge.x509.leaf_encoding import ExpectedLeaf
from bridge.x509.leaf_profile import (
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    NOT_A_CA,
    authority_key_identifier,
)

_SERIAL_BITS = range(64, 160)
_EMPTY = x509.Name([])
_SKI = x509.SubjectKeyIdentifier.oid
_SAN = x509.SubjectAlternativeName.oid
_MAY_BE_ADDED = frozenset(
    {x509.AuthorityInformationAccess.oid, x509.CRLDistributionPoints.oid}
)
_NOT_BEFORE_SLACK = timedelta(seconds=30)
NOT_AFTER_SLACK = timedelta(seconds=5)
"""How far notAfter may be from the requested one, if the backend dates certificates."""


class PinnedIssuer:
    """The values of an issuing CA that every leaf is compared with; computed at load.

    Args:
        certificate: The issuing CA's certificate.
        intermediates: DER, issuing CA first: the chain that the plugin describes, and
            returns with every leaf.
        added: What the backend's own configuration adds to each leaf, see
            `Description.added_extensions`.
        ends: The first notAfter of the whole chain; by default that of `certificate`.

    Raises:
        ConfigError: An extension of `added` may not be added, is critical, or is there
            twice.
    """

    __slots__ = (
        "algorithm",
        "certificate",
        "ends",
        "expected",
        "extensions",
        "intermediates",
        "public_key",
        "subject",
    )

    def __init__(
        self,
        certificate: x509.Certificate,
        intermediates: Sequence[bytes],
        *,
        added: Sequence[x509.Extension[x509.ExtensionType]] = (),
        ends: datetime | None = None,
    ) -> None:
        self.certificate = certificate
        self.ends = certificate.not_valid_after_utc if ends is None else ends
        self.subject = subject_of(certificate)
        self.public_key = issuer_key(certificate)
        self.algorithm = algorithm_of(self.public_key)
        self.intermediates = tuple(intermediates)
        self.expected = ExpectedLeaf(certificate)
        self.extensions: dict[x509.ObjectIdentifier, tuple[bool, object]] = {
            KEY_USAGE.oid: (True, KEY_USAGE),
            EXTENDED_KEY_USAGE.oid: (False, EXTENDED_KEY_USAGE),
            NOT_A_CA.oid: (True, NOT_A_CA),
        }
        identifier = authority_key_identifier(certificate)
        if identifier is not None:
            self.extensions[identifier.oid] = (False, identifier)
        for extension in added:
            self._add(extension)

    def _add(self, extension: x509.Extension[x509.ExtensionType]) -> None:
        oid = extension.oid
        if oid not in _MAY_BE_ADDED or extension.critical or oid in self.extensions:
            raise ConfigError(
                f"the backend adds {name_of(oid)} to each certificate: expected at "
                "most authority information access and CRL distribution points, each "
                "once and not critical",
                rule="issuer.added-extension",
            )
        self.extensions[oid] = (False, extension.value)


def require_profile(prepared: Prepared, issuer: PinnedIssuer) -> bytes:
    """Verify, before anything is signed, that the TBSCertificate is the requested one.

    Args:
        prepared: With a TBSCertificate. Without one the backend builds it, and only
            the issued certificate can be verified.
        issuer: The issuing CA as it was validated at load.

    Returns:
        The TBSCertificate that both encoders agree on, for `require_as_prepared`; empty
        where the backend builds it.

    Raises:
        BackendBrokenError: Two encoders do not agree on the bytes.
    """
    if not prepared.tbs:
        return b""
    request = prepared.request
    proven = issuer.expected.tbs(
        request.spki,
        request.names,
        request.serial,
        request.not_before,
        request.not_after,
    )
    if prepared.tbs != proven:
        raise BackendBrokenError(
            "what the issuing CA prepared is not what was requested",
            rule="backend.prepared",
        )
    return proven


def require_as_prepared(
    prepared: Prepared,
    issued: IssuedChain,
    issuer: PinnedIssuer,
    proven: bytes = b"",
) -> x509.Certificate:
    """Verify that the leaf is the prepared one, signed by the pinned issuing CA.

    The issuing CA is outside this process, and its role or template may have been
    edited meanwhile: its answer is untrusted input. That the pinned chain ends in a
    trust anchor, and that every certificate of the chain permits the names, was
    verified before signing and does not depend on the answer.

    Args:
        prepared: The prepared request, as it was recorded. Without a TBSCertificate the
            validity and the order of the names may differ as `Description` says.
        issued: The leaf, then the intermediates with the issuing CA first.
        issuer: The issuing CA as it was validated at load.
        proven: The result of `require_profile` for `prepared`; empty to compare every
            field.

    Returns:
        The leaf.

    Raises:
        MisissuedError: The leaf or the chain differs. Only the first difference is
            named.

    Source:
        RFC 5280, 4.1 and 4.2; X509-SVID, 2, 4 and 5.2.
    """
    if issued.intermediates != issuer.intermediates:
        raise _differs(
            "misissued.chain", "the chain is not that of the pinned issuing CA"
        )
    try:
        leaf = x509.load_der_x509_certificate(issued.leaf)
        tbs = leaf.tbs_certificate_bytes
        _require_signed(issued.leaf, leaf, tbs, issuer)
        if proven and tbs == proven:
            return leaf  # equal byte for byte, so every field is equal
        if prepared.tbs and tbs != prepared.tbs:
            raise _differs(
                "misissued.tbs", "the TBSCertificate is not the prepared one"
            )
        _require_fields(leaf, prepared, issuer)
        _require_extensions(leaf, prepared, issuer)
    except UNREADABLE as error:
        raise _differs(
            "misissued.unreadable", "it cannot be read", str(error)
        ) from error
    return leaf


def _require_signed(
    der: bytes, leaf: x509.Certificate, tbs: bytes, issuer: PinnedIssuer
) -> None:
    # The signature does not cover the outer AlgorithmIdentifier and the encoding: the
    # certificate must consist of these three parts and no other byte.
    if der != splice(tbs, issuer.algorithm.der, leaf.signature):
        raise _differs(
            "misissued.encoding", "the signature algorithm or the encoding differs"
        )
    try:
        require_signature(issuer.public_key, issuer.algorithm, leaf.signature, tbs)
    except InvalidSignature as error:
        raise _differs(
            "misissued.signature", "the pinned issuing CA did not sign it"
        ) from error


def _require_fields(
    leaf: x509.Certificate, prepared: Prepared, issuer: PinnedIssuer
) -> None:
    request = prepared.request
    if leaf.version is not x509.Version.v3:
        raise _differs("misissued.version", "it is not version 3")
    if prepared.tbs and leaf.serial_number != request.serial:
        raise _differs("misissued.serial", "the serial number differs")
    serial = max(leaf.serial_number, 0)  # a negative one has bits too
    if serial.bit_length() not in _SERIAL_BITS and not prepared.tbs:
        raise _differs("misissued.serial", "the serial number is too short or too long")
    if issuer_of(leaf) != issuer.subject:
        raise _differs("misissued.issuer", "the issuer differs")
    if leaf.subject != _EMPTY:
        raise _differs("misissued.subject", "the subject is not empty")
    _require_validity(leaf, prepared, issuer)
    spki = leaf.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    if spki != request.spki:
        raise _differs("misissued.key", "the public key differs")


def _require_validity(
    leaf: x509.Certificate, prepared: Prepared, issuer: PinnedIssuer
) -> None:
    # A backend that builds the certificate dates it by its own clock.
    is_ours, request = bool(prepared.tbs), prepared.request
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    slack = timedelta() if is_ours else _NOT_BEFORE_SLACK
    if abs(begins - request.not_before) > slack:
        raise _differs("misissued.validity", "notBefore is not the requested one")
    slack = timedelta() if is_ours else NOT_AFTER_SLACK
    if abs(ends - request.not_after) > slack:
        raise _differs("misissued.validity", "notAfter is not the requested one")
    if ends > issuer.ends:
        raise _differs("misissued.validity", "it outlives the chain of its issuer")


def _require_extensions(
    leaf: x509.Certificate, prepared: Prepared, issuer: PinnedIssuer
) -> None:
    found = {item.oid: (item.critical, item.value) for item in leaf.extensions}
    if not prepared.tbs and not found.get(_SKI, (True, None))[0]:
        # A backend that builds the certificate adds the leaf's key identifier: Vault
        # can't be told not to. A critical one is no key identifier (RFC 5280, 4.2.1.2).
        del found[_SKI]
    critical, names = found.pop(_SAN, (False, None))
    if not critical or not isinstance(names, x509.SubjectAlternativeName):
        raise _differs("misissued.names", "there is no critical subjectAltName")
    # Names of different types are never equal. A backend that builds the certificate
    # has an order of its own (Vault writes DNS names first), and may repeat none.
    wanted = prepared.request.names
    if Counter(names) != Counter(wanted) or (prepared.tbs and tuple(names) != wanted):
        raise _differs("misissued.names", "the names are not the requested ones")
    if found != issuer.extensions:
        odd = [
            oid
            for oid in {*found, *issuer.extensions}
            if found.get(oid) != issuer.extensions.get(oid)
        ]
        raise _differs(
            "misissued.extensions",
            "the extensions are not those of the profile",
            ", ".join(sorted(oid.dotted_string for oid in odd)),
        )


def _differs(rule: str, message: str, detail: str = "") -> MisissuedError:
    return MisissuedError(
        f"the issued certificate is refused: {message}",
        rule=rule,
        detail=detail,
    )


def names_of(request: LeafRequest) -> list[str]:
    """Return the names in the ledger's form, `URI:...` or `DNS:...`."""
    return [f"{_kind(name)}:{name.value}" for name in request.names]


def _kind(name: x509.GeneralName) -> str:
    return "URI" if isinstance(name, x509.UniformResourceIdentifier) else "DNS"
