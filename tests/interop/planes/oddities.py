"""What may be odd about a CA certificate: each by its name, as a change of a tier."""

from collections.abc import Callable, Mapping

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bridge.x509.certificate import key_usage
from bridge.x509.der import content, elements, tlv
from tests.interop.planes.certificates import (
    ABOVE,
    BIT_STRING,
    CA_USAGE,
    INTEGER,
    IS_CA,
    NULL,
    OCTET_STRING,
    SCHEMES,
    SEQUENCE,
    Extension,
    Tier,
    encoded,
    key_parts,
    name,
    oid,
    public_key_info,
)

_UTF8, _NUMERIC, _PRINTABLE, _TELETEX, _IA5 = 12, 18, 19, 20, 22
_VISIBLE, _UNIVERSAL, _BMP = 26, 28, 30
_COMMON_NAME = NameOID.COMMON_NAME.dotted_string
_Rewriter = Callable[[bytes], bytes]


def _with(
    kind: Callable[[bytes], bytes] = bytes,
    parameters: Callable[[bytes], bytes] = bytes,
    key: Callable[[bytes], bytes] = bytes,
) -> _Rewriter:
    """Rewrite parts of a SubjectPublicKeyInfo."""

    def rewrite(spki: bytes) -> bytes:
        old_kind, old_parameters, old_key = key_parts(spki)
        return public_key_info(kind(old_kind), parameters(old_parameters), key(old_key))

    return rewrite


def _explicit(_: bytes) -> bytes:
    """Write the parameters of P-256 out (SEC 1, C.2)."""
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    b = bytes.fromhex(
        "5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b"
    )
    base = bytes.fromhex(
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    curve = tlv(OCTET_STRING, (prime - 3).to_bytes(32)) + tlv(OCTET_STRING, b)
    field = oid("1.2.840.10045.1.1") + tlv(INTEGER, prime.to_bytes(33))
    parts = (
        tlv(INTEGER, b"\1"),
        tlv(SEQUENCE, field),
        tlv(SEQUENCE, curve),
        tlv(OCTET_STRING, base),
        tlv(INTEGER, order.to_bytes(33)),
        tlv(INTEGER, b"\1"),
    )
    return tlv(SEQUENCE, b"".join(parts))


def _compressed(point: bytes) -> bytes:
    return bytes([2 + point[-1] % 2]) + point[1:33]


def _hybrid(point: bytes) -> bytes:
    return bytes([6 + point[-1] % 2]) + point[1:]


def _pss_parameters(_: bytes) -> bytes:
    return [*elements(content(SCHEMES["pss-sha256"].identifier))][1]


def _pss_kind(_: bytes) -> bytes:
    return oid("1.2.840.113549.1.1.10")


def _nothing(_: bytes) -> bytes:
    return b""


KEYS: dict[str, Tier] = {
    "p384-key": Tier(key="p384"),
    "p521-key": Tier(key="p521"),
    "ed25519-key": Tier(key="ed25519"),
    "rsa-3072-key": Tier(key="rsa3072"),
    "rsa-4096-key": Tier(key="rsa4096"),
    "rsa-8192-key": Tier(key="rsa8192"),
    "rsa-1024-key": Tier(key="rsa1024"),
    "rsa-2047-key": Tier(key="rsa2047"),
    "rsa-2056-key": Tier(key="rsa2056"),
    "rsa-exponent-3-key": Tier(key="rsa3-2048"),
    "rsa-pss-key": Tier(key="rsa2048", spki=_with(_pss_kind, _nothing)),
    "rsa-pss-key-with-parameters": Tier(
        key="rsa2048", spki=_with(_pss_kind, _pss_parameters)
    ),
    "rsa-key-without-null": Tier(key="rsa2048", spki=_with(parameters=_nothing)),
    "p224-key": Tier(key="p224"),
    "secp256k1-key": Tier(key="secp256k1"),
    "brainpool-key": Tier(key="brainpool256"),
    "explicit-parameters-key": Tier(spki=_with(parameters=_explicit)),
    "compressed-point-key": Tier(spki=_with(key=_compressed)),
    "hybrid-point-key": Tier(spki=_with(key=_hybrid)),
    "ed25519-key-with-null": Tier(key="ed25519", spki=_with(parameters=lambda _: NULL)),
    "ed448-key": Tier(key="ed448"),
}
"""Odd keys. What the key signs is signed in the usual way."""

SIGNATURES: dict[str, tuple[str, Tier]] = {
    "rsa-sha384-signature": ("rsa2048", Tier(signed="rsa-sha384")),
    "rsa-sha512-signature": ("rsa2048", Tier(signed="rsa-sha512")),
    "rsa-sha224-signature": ("rsa2048", Tier(signed="rsa-sha224")),
    "rsa-sha1-signature": ("rsa2048", Tier(signed="rsa-sha1")),
    "rsa-md5-signature": ("rsa2048", Tier(signed="rsa-md5")),
    "rsa-signature-without-null": (
        "rsa2048",
        Tier(signed="rsa-sha256-without-null"),
    ),
    "pss-sha256-signature": ("rsa2048", Tier(signed="pss-sha256")),
    "pss-sha384-signature": ("rsa2048", Tier(signed="pss-sha384")),
    "pss-sha512-signature": ("rsa2048", Tier(signed="pss-sha512")),
    "pss-signature-with-a-short-salt": ("rsa2048", Tier(signed="pss-sha256-salt-20")),
    "ecdsa-sha384-signature-of-p256": ("p256", Tier(signed="ecdsa-sha384")),
    "ecdsa-sha512-signature-of-p256": ("p256", Tier(signed="ecdsa-sha512")),
    "ecdsa-sha256-signature-of-p384": ("p384", Tier(signed="ecdsa-sha256")),
    "ecdsa-sha256-signature-of-p521": ("p521", Tier(signed="ecdsa-sha256")),
    "ecdsa-sha224-signature": ("p256", Tier(signed="ecdsa-sha224")),
    "ecdsa-sha1-signature": ("p256", Tier(signed="ecdsa-sha1")),
    "ecdsa-signature-with-null": ("p256", Tier(signed="ecdsa-sha256-with-null")),
    "ed25519-signature-with-null": ("ed25519", Tier(signed="ed25519-with-null")),
    "other-algorithm-inside": (
        "p256",
        Tier(inner=SCHEMES["ecdsa-sha384"].identifier),
    ),
}
"""The key of the issuer, and what is odd about the signature on a certificate."""


def _extension(
    arc: str, value: bytes, *, critical: bool = False
) -> tuple[Extension, ...]:
    return ((ObjectIdentifier(arc), critical, value),)


def _extended(*purposes: ObjectIdentifier) -> Tier:
    return Tier(more=(encoded(x509.ExtendedKeyUsage(purposes), critical=False),))


_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
_POLICY = oid("2.23.140.1.2.2")


def _policies(*, critical: bool, notice: bytes = b"") -> Tier:
    qualifiers = b""
    if notice:
        text = tlv(SEQUENCE, notice)
        qualifier = tlv(SEQUENCE, oid("1.3.6.1.5.5.7.2.2") + text)
        qualifiers = tlv(SEQUENCE, qualifier)
    value = tlv(SEQUENCE, tlv(SEQUENCE, _POLICY + qualifiers))
    return Tier(more=_extension("2.5.29.32", value, critical=critical))


_V1 = Tier(version=b"", extensions=())
_USAGE_WITHOUT_SIGNING = encoded(key_usage(crl_sign=True), critical=True)

CERTIFICATES: dict[str, Tier] = {
    "plain": Tier(),
    "negative-serial": Tier(serial=b"\x85"),
    "long-negative-serial": Tier(serial=b"\x85" + b"\1" * 15),
    "zero-serial": Tier(serial=b"\0"),
    "serial-of-20-octets": Tier(serial=b"\x45" * 20),
    "serial-of-21-octets": Tier(serial=b"\x45" * 21),
    "serial-of-40-octets": Tier(serial=b"\x45" * 40),
    "serial-with-padding": Tier(serial=b"\0\x05"),
    "version-1": _V1,
    "version-1-with-extensions": Tier(version=b""),
    "version-2": Tier(version=bytes.fromhex("a003020101"), extensions=()),
    "version-3-without-extensions": Tier(extensions=()),
    "no-key-usage": Tier(extensions=(IS_CA,)),
    "key-usage-not-critical": Tier(
        extensions=(IS_CA, (*CA_USAGE[:1], False, CA_USAGE[2]))
    ),
    "key-usage-without-certsign": Tier(extensions=(IS_CA, _USAGE_WITHOUT_SIGNING)),
    "no-basic-constraints": Tier(extensions=(CA_USAGE,)),
    "basic-constraints-not-critical": Tier(
        extensions=((*IS_CA[:1], False, IS_CA[2]), CA_USAGE)
    ),
    "basic-constraints-of-no-ca": Tier(
        extensions=(
            encoded(x509.BasicConstraints(ca=False, path_length=None), critical=True),
            CA_USAGE,
        )
    ),
    "empty-subject": Tier(subject=tlv(SEQUENCE, b"")),
    "latin-1-in-teletex-subject": Tier(
        subject=name((_COMMON_NAME, _TELETEX, "Königs CA".encode("latin-1")))
    ),
    "latin-1-in-printable-subject": Tier(
        subject=name((_COMMON_NAME, _PRINTABLE, "Königs CA".encode("latin-1")))
    ),
    "latin-1-in-utf8-subject": Tier(
        subject=name((_COMMON_NAME, _UTF8, "Königs CA".encode("latin-1")))
    ),
    "latin-1-in-ia5-subject": Tier(
        subject=name((_COMMON_NAME, _IA5, "Königs CA".encode("latin-1")))
    ),
    "letters-in-numeric-subject": Tier(subject=name((_COMMON_NAME, _NUMERIC, b"CA 1"))),
    "universal-subject": Tier(
        subject=name((_COMMON_NAME, _UNIVERSAL, "Königs CA".encode("utf-32-be")))
    ),
    "asterisk-in-printable-subject": Tier(
        subject=name((_COMMON_NAME, _PRINTABLE, b"*.corp_example"))
    ),
    "bmp-subject": Tier(
        subject=name((_COMMON_NAME, _BMP, "Königs CA".encode("utf-16-be")))
    ),
    "empty-common-name": Tier(subject=name((_COMMON_NAME, _UTF8, b""))),
    "policies": _policies(critical=False),
    "critical-policies": _policies(critical=True),
    "latin-1-in-policy-notice": _policies(
        critical=False, notice=tlv(_VISIBLE, "Königs".encode("latin-1"))
    ),
    "latin-1-in-ia5-policy-notice": _policies(
        critical=False, notice=tlv(_IA5, "Königs".encode("latin-1"))
    ),
    "latin-1-in-t61-policy-notice": _policies(
        critical=False, notice=tlv(_TELETEX, "Königs".encode("latin-1"))
    ),
    "critical-latin-1-policy-notice": _policies(
        critical=True, notice=tlv(_VISIBLE, "Königs".encode("latin-1"))
    ),
    "latin-1-in-utf8-policy-notice": _policies(
        critical=False, notice=tlv(_UTF8, "Königs".encode("latin-1"))
    ),
    "critical-policy-constraints": Tier(
        more=_extension("2.5.29.36", tlv(SEQUENCE, tlv(0x80, b"\5")), critical=True)
    ),
    "critical-inhibit-any-policy": Tier(
        more=_extension("2.5.29.54", tlv(INTEGER, b"\5"), critical=True)
    ),
    "critical-key-identifier": Tier(
        more=_extension("2.5.29.14", tlv(OCTET_STRING, b"abcd"), critical=True)
    ),
    "critical-unknown-extension": Tier(more=_extension("1.2.3.4", NULL, critical=True)),
    "unknown-extension": Tier(more=_extension("1.2.3.4", NULL)),
    "extension-twice": Tier(more=(CA_USAGE,)),
    "netscape-type": Tier(
        more=_extension("2.16.840.1.113730.1.1", tlv(BIT_STRING, b"\1\6"))
    ),
    "unique-id": Tier(unique_id=tlv(0x81, b"\0abc")),
    "both-purposes": _extended(_SERVER, _CLIENT),
    "server-purpose-only": _extended(_SERVER),
    "client-purpose-only": _extended(_CLIENT),
    "any-purpose": _extended(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
    "foreign-purpose": _extended(ExtendedKeyUsageOID.CODE_SIGNING),
    "expired": Tier(ended=True),
}
"""Odd certificates; the rest is as good as can be."""


def change_of(oddity: str, tier: str) -> Mapping[str, Tier]:
    """Return what an oddity at one tier changes of a chain."""
    if oddity in KEYS:
        return {tier: KEYS[oddity]}
    if oddity in CERTIFICATES:
        return {tier: CERTIFICATES[oddity]}
    key, signed = SIGNATURES[oddity]
    issuer = ABOVE.get(tier, tier)
    if issuer == tier:
        return {tier: Tier(key=key, signed=signed.signed, inner=signed.inner)}
    return {issuer: Tier(key=key), tier: signed}


ODDITIES = (*KEYS, *SIGNATURES, *CERTIFICATES)
