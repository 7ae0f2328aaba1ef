"""The leaf's TBSCertificate once more, written byte by byte and without a library.

Two encoders that know nothing of each other must agree on every byte before anything is
signed. What one of them gets wrong, by a bug or by a change in a library, the other
does not. It also spares reading a certificate back that is byte for byte this.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from cryptography import x509

from bridge.x509.algorithm import algorithm_of, issuer_key
from bridge.x509.certificate import extensions_of, subject_of, value_in
from bridge.x509.der import SEQUENCE, tlv

_INTEGER = 0x02
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_FIRST_GENERALIZED_YEAR = 2050
_EXTENSIONS = 0xA3
_DNS_NAME, _URI = 0x82, 0x86
_KEY_IDENTIFIER = 0x80
_OCTET_STRING = 0x04

_VERSION_3 = bytes.fromhex("a003020102")
_EMPTY_NAME = bytes.fromhex("3000")
# keyUsage, critical: digitalSignature, keyEncipherment. extendedKeyUsage: serverAuth,
# clientAuth. basicConstraints, critical: CA:FALSE.
_FIXED = (
    bytes.fromhex("300e0603551d0f0101ff0404030205a0")
    + bytes.fromhex("301d0603551d250416301406082b0601050507030106082b06010505070302")
    + bytes.fromhex("300c0603551d130101ff04023000")
)
_AUTHORITY_KEY_IDENTIFIER = bytes.fromhex("0603551d23")
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d110101ff")


class ExpectedLeaf:
    """The leaves of one issuing CA, as they must be.

    Args:
        issuing: The issuing CA's certificate.

    Source:
        RFC 5280, 4.1 and 4.2; the profile of `bridge.x509.leaf_profile.LeafProfile`.
    """

    def __init__(self, issuing: x509.Certificate) -> None:
        algorithm = algorithm_of(issuer_key(issuing)).der
        self._before_validity = algorithm + subject_of(issuing)
        self._before_names = _FIXED + _authority_key_identifier(issuing)

    def tbs(
        self,
        spki: bytes,
        names: Sequence[x509.GeneralName],
        serial: int,
        not_before: datetime,
        not_after: datetime,
    ) -> bytes:
        """Return the TBSCertificate in DER.

        Args:
            spki: SubjectPublicKeyInfo of the leaf in DER.
            names: 1 or more URIs and DNS names, in order.
            serial: Positive.
            not_before: UTC, whole seconds; `not_after` likewise.
            not_after: See `not_before`.

        Raises:
            ValueError: A name is neither a URI nor a DNS name, or not ASCII.
        """
        alternatives = b"".join([_name(name) for name in names])
        san = tlv(SEQUENCE, alternatives)
        san = tlv(SEQUENCE, _SUBJECT_ALT_NAME + tlv(_OCTET_STRING, san))
        fields = (
            _VERSION_3,
            # One bit more than the number has: the sign.
            tlv(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1)),
            self._before_validity,
            _validity(not_before, not_after),
            _EMPTY_NAME,
            spki,
            tlv(_EXTENSIONS, tlv(SEQUENCE, self._before_names + san)),
        )
        return tlv(SEQUENCE, b"".join(fields))


def _authority_key_identifier(issuing: x509.Certificate) -> bytes:
    found = value_in(extensions_of(issuing), x509.SubjectKeyIdentifier)
    if found is None:
        return b""
    identifier = tlv(SEQUENCE, tlv(_KEY_IDENTIFIER, found.digest))
    return tlv(SEQUENCE, _AUTHORITY_KEY_IDENTIFIER + tlv(_OCTET_STRING, identifier))


def _name(name: x509.GeneralName) -> bytes:
    if isinstance(name, x509.UniformResourceIdentifier):
        return tlv(_URI, name.value.encode("ascii"))
    if isinstance(name, x509.DNSName):
        return tlv(_DNS_NAME, name.value.encode("ascii"))
    raise ValueError(f"no leaf has a name of the type {type(name).__name__}")


@lru_cache(maxsize=64)  # the leaves of one second share their times
def _validity(not_before: datetime, not_after: datetime) -> bytes:
    return tlv(SEQUENCE, _time(not_before) + _time(not_after))


def _time(moment: datetime) -> bytes:
    year, month, day, hour, minute, second = moment.timetuple()[:6]
    rest = f"{month:02}{day:02}{hour:02}{minute:02}{second:02}Z".encode("ascii")
    if year < _FIRST_GENERALIZED_YEAR:
        return tlv(_UTC_TIME, f"{year % 100:02}".encode("ascii") + rest)
    return tlv(_GENERALIZED_TIME, f"{year:04}".encode("ascii") + rest)
