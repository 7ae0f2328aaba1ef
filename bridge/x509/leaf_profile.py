"""The leaf's TBSCertificate: one profile, built the same way for every backend."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from bridge.x509.algorithm import algorithm_of, issuer_key
from bridge.x509.certificate import (
    extensions_of,
    key_usage,
    readable,
    subject_of,
    value_in,
)
from bridge.x509.der import SEQUENCE, content, elements, tlv
from bridge.x509.tbs import recorder_of

_EMPTY = x509.Name([])
_ISSUER = 3
KEY_USAGE = key_usage(digital_signature=True, key_encipherment=True)
EXTENDED_KEY_USAGE = x509.ExtendedKeyUsage(
    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
)
NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)


class LeafProfile:
    """What every leaf of one issuing CA has in common, made once.

    Version 3, empty subject, critical keyUsage (digitalSignature, keyEncipherment),
    extendedKeyUsage (serverAuth, clientAuth), critical basicConstraints CA:FALSE,
    authorityKeyIdentifier where the CA has an SKI, critical subjectAltName.

    Source:
        Istio, security/pkg/pki/util/generate_cert.go; X509-SVID, section 4.
    """

    def __init__(self, issuing: x509.Certificate) -> None:
        self.algorithm = algorithm_of(issuer_key(issuing))
        self._recorder = recorder_of(issuer_key(issuing))
        self._issuer = readable(issuing).subject
        self._issuer_der = subject_of(issuing)
        self._is_copied = self._issuer.public_bytes() == self._issuer_der
        self._before_names = [_fixed(KEY_USAGE, critical=True)]
        self._before_names.append(_fixed(EXTENDED_KEY_USAGE, critical=False))
        self._before_names.append(_fixed(NOT_A_CA, critical=True))
        if (identifier := authority_key_identifier(issuing)) is not None:
            self._before_names.append(_fixed(identifier, critical=False))

    def tbs(
        self,
        public_key: CertificatePublicKeyTypes,
        names: Sequence[x509.GeneralName],
        serial: int,
        not_before: datetime,
        not_after: datetime,
    ) -> bytes:
        """Build the TBSCertificate in DER.

        Args:
            public_key: The leaf's.
            names: 1 or more, in the order of the certificate.
            serial: Positive, at most 20 octets.
            not_before: UTC, whole seconds; `not_after` likewise, both inclusive.
            not_after: See `not_before`.
        """
        san = x509.SubjectAlternativeName(names)
        tbs = (
            x509.CertificateBuilder(
                issuer_name=self._issuer,
                subject_name=_EMPTY,
                public_key=public_key,
                serial_number=serial,
                not_valid_before=not_before.replace(tzinfo=None),
                not_valid_after=not_after.replace(tzinfo=None),
                extensions=[*self._before_names, x509.Extension(san.oid, True, san)],  # noqa: FBT003 - critical, pyca's order
            )
            .sign(self._recorder, self.algorithm.hash)
            .tbs_certificate_bytes
        )
        return tbs if self._is_copied else self._with_issuer(tbs)

    def _with_issuer(self, tbs: bytes) -> bytes:
        # `cryptography` writes a name in its own string types, and verifiers compare
        # the bytes.
        fields = [*elements(content(tbs))]
        fields[_ISSUER] = self._issuer_der
        return tlv(SEQUENCE, b"".join(fields))


def authority_key_identifier(
    issuing: x509.Certificate,
) -> x509.AuthorityKeyIdentifier | None:
    """Return what a leaf says of its issuer's key: the issuer's own SKI, if any."""
    found = value_in(extensions_of(issuing), x509.SubjectKeyIdentifier)
    make = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    return None if found is None else make(found)


def _fixed(
    value: x509.ExtensionType, *, critical: bool
) -> x509.Extension[x509.ExtensionType]:
    # Encoded once: the builder would do it for each leaf.
    encoded = x509.UnrecognizedExtension(value.oid, value.public_bytes())
    return x509.Extension(value.oid, critical, encoded)
