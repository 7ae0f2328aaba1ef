"""Builds chains in DER, field by field: no library would make most of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bridge.x509.certificate import key_usage
from bridge.x509.der import content, elements, splice, tlv
from tests.support.parts.pki import Key, new_key

TIERS = ("issuing", "intermediate", "anchor")
"""A path, bottom up."""
ABOVE = {"leaf": "issuing", "issuing": "intermediate", "intermediate": "anchor"}

SEQUENCE, INTEGER, BIT_STRING, OCTET_STRING, OID, SET = 48, 2, 3, 4, 6, 49
_TRUE = bytes.fromhex("0101ff")
NULL = bytes.fromhex("0500")
V3 = bytes.fromhex("a003020102")

AnyKey = Key | ed448.Ed448PrivateKey
Extension = tuple[ObjectIdentifier, bool, bytes]
"""Identifier, whether it is critical, and the DER of its value."""


def oid(dotted: str) -> bytes:
    """Encode an object identifier."""
    first, second, *rest = (int(number) for number in dotted.split("."))
    encoded = bytes([first * 40 + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.insert(0, number & 0x7F | 0x80)
        encoded += bytes(groups)
    return tlv(OID, encoded)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way of signing."""

    identifier: bytes
    sign: Callable[[AnyKey, bytes], bytes]


def _sequence(*parts: bytes) -> bytes:
    return tlv(SEQUENCE, b"".join(parts))


def _rsa(suffix: str, hash_: hashes.HashAlgorithm, parameters: bytes = NULL) -> Scheme:
    def sign(key: AnyKey, data: bytes) -> bytes:
        assert isinstance(key, rsa.RSAPrivateKey)
        return key.sign(data, padding.PKCS1v15(), hash_)

    return Scheme(_sequence(oid(f"1.2.840.113549.1.1.{suffix}"), parameters), sign)


def _pss(hash_: hashes.HashAlgorithm, arc: str, salt: int) -> Scheme:
    def sign(key: AnyKey, data: bytes) -> bytes:
        assert isinstance(key, rsa.RSAPrivateKey)
        return key.sign(data, padding.PSS(padding.MGF1(hash_), salt), hash_)

    digest = _sequence(oid(arc), NULL)
    mask = _sequence(oid("1.2.840.113549.1.1.8"), digest)
    number = tlv(INTEGER, bytes([salt]))
    parameters = _sequence(tlv(0xA0, digest), tlv(0xA1, mask), tlv(0xA2, number))
    return Scheme(_sequence(oid("1.2.840.113549.1.1.10"), parameters), sign)


def _ecdsa(arc: str, hash_: hashes.HashAlgorithm, parameters: bytes = b"") -> Scheme:
    def sign(key: AnyKey, data: bytes) -> bytes:
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key.sign(data, ec.ECDSA(hash_))

    return Scheme(_sequence(oid(f"1.2.840.10045.4.{arc}"), parameters), sign)


def _edwards(arc: str, parameters: bytes = b"") -> Scheme:
    def sign(key: AnyKey, data: bytes) -> bytes:
        return key.sign(data)  # type: ignore[call-arg]

    return Scheme(_sequence(oid(arc), parameters), sign)


_HASHES = "2.16.840.1.101.3.4.2"
SCHEMES = {
    "rsa-sha256": _rsa("11", hashes.SHA256()),
    "rsa-sha384": _rsa("12", hashes.SHA384()),
    "rsa-sha512": _rsa("13", hashes.SHA512()),
    "rsa-sha224": _rsa("14", hashes.SHA224()),
    "rsa-sha1": _rsa("5", hashes.SHA1()),  # noqa: S303
    "rsa-md5": _rsa("4", hashes.MD5()),  # noqa: S303
    "rsa-sha256-without-null": _rsa("11", hashes.SHA256(), b""),
    "pss-sha256": _pss(hashes.SHA256(), f"{_HASHES}.1", 32),
    "pss-sha384": _pss(hashes.SHA384(), f"{_HASHES}.2", 48),
    "pss-sha512": _pss(hashes.SHA512(), f"{_HASHES}.3", 64),
    "pss-sha256-salt-20": _pss(hashes.SHA256(), f"{_HASHES}.1", 20),
    "ecdsa-sha256": _ecdsa("3.2", hashes.SHA256()),
    "ecdsa-sha384": _ecdsa("3.3", hashes.SHA384()),
    "ecdsa-sha512": _ecdsa("3.4", hashes.SHA512()),
    "ecdsa-sha224": _ecdsa("3.1", hashes.SHA224()),
    "ecdsa-sha1": _ecdsa("1", hashes.SHA1()),  # noqa: S303
    "ecdsa-sha256-with-null": _ecdsa("3.2", hashes.SHA256(), NULL),
    "ed25519": _edwards("1.3.101.112"),
    "ed25519-with-null": _edwards("1.3.101.112", NULL),
    "ed448": _edwards("1.3.101.113"),
}
_USUAL = {"p384": "ecdsa-sha384", "p521": "ecdsa-sha512"}
_CURVES: dict[str, ec.EllipticCurve] = {
    "p224": ec.SECP224R1(),
    "secp256k1": ec.SECP256K1(),
    "brainpool256": ec.BrainpoolP256R1(),
}


@cache
def _key(kind: str, _tier: str) -> AnyKey:
    if kind in _CURVES:
        return ec.generate_private_key(_CURVES[kind])
    if kind.startswith("rsa3-"):
        return rsa.generate_private_key(3, int(kind.removeprefix("rsa3-")))
    if kind == "ed448":
        return ed448.Ed448PrivateKey.generate()
    return new_key(kind)


def private_key(kind: str, tier: str) -> AnyKey:
    """Return the one key of this kind and tier: a curve, or `rsa` with its bits.

    `rsa3-2048` has the exponent 3. RSA keys take long to make: they are of no tier.
    """
    return _key(kind, "any" if kind.startswith("rsa") else tier)


def _usual_scheme(kind: str) -> str:
    if kind.startswith("rsa"):
        return "rsa-sha256"
    return _USUAL.get(kind, kind if kind in SCHEMES else "ecdsa-sha256")


def name(*attributes: tuple[str, int, bytes]) -> bytes:
    """Encode a name: of each attribute the OID, the tag and the content."""
    return _sequence(
        *(
            tlv(SET, _sequence(oid(arc), tlv(tag, value)))
            for arc, tag, value in attributes
        )
    )


def _common_name(text: str) -> bytes:
    return name((NameOID.COMMON_NAME.dotted_string, 12, text.encode()))


def encoded(value: x509.ExtensionType, *, critical: bool) -> Extension:
    """Encode an extension's value."""
    return value.oid, critical, value.public_bytes()


CA_USAGE = encoded(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
IS_CA = encoded(x509.BasicConstraints(ca=True, path_length=None), critical=True)
USUAL = (IS_CA, CA_USAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A certificate of a chain, as good as can be; each field is one thing odd."""

    key: str = "p256"
    spki: Callable[[bytes], bytes] = bytes
    """Rewrites the SubjectPublicKeyInfo."""
    signed: str | None = None
    """The scheme of this certificate's signature; by default by its issuer's key."""
    inner: bytes | None = None
    """The AlgorithmIdentifier inside what is signed, where it is another one."""
    version: bytes = V3
    serial: bytes = b"\x05"
    subject: bytes | None = None
    extensions: tuple[Extension, ...] = USUAL
    more: tuple[Extension, ...] = ()
    """Extensions after `extensions`."""
    unique_id: bytes = b""
    ended: bool = False


Change = Mapping[str, Tier]
"""The tiers of a chain that are not as good as can be."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Certificates in DER, and the leaf's key."""

    leaf: bytes
    issuing: bytes
    intermediate: bytes
    anchor: bytes
    key: Key

    @property
    def cas(self) -> tuple[bytes, bytes, bytes]:
        """Issuing CA, intermediate and anchor."""
        return self.issuing, self.intermediate, self.anchor


EMPTY = _sequence()
"""A name without attributes."""


def leaf_with(
    *names: x509.GeneralName, subject: bytes = EMPTY, is_critical: bool = True
) -> Tier:
    """Return a leaf with these names, as good as can be otherwise."""
    usage = key_usage(digital_signature=True, key_encipherment=True)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return Tier(
        subject=subject,
        extensions=(
            encoded(usage, critical=True),
            encoded(x509.ExtendedKeyUsage(purposes), critical=False),
            encoded(x509.SubjectAlternativeName(names), critical=is_critical),
        ),
    )


_LEAF = leaf_with(
    x509.UniformResourceIdentifier("spiffe://corp.example/ns/a/sa/b"),
    x509.DNSName("b.a.corp.example"),
)


def build(change: Change, now: datetime, family: str = "") -> Chain:
    """Make leaf, issuing CA, intermediate and anchor, valid around `now`.

    Args:
        change: What is odd.
        now: The time, aware.
        family: Chains of another family have other names and other keys.
    """
    tiers = {tier: change.get(tier, Tier()) for tier in TIERS}
    tiers["leaf"] = change.get("leaf", _LEAF)
    made = {tier: _certificate(tiers, tier, now, family) for tier in ("leaf", *TIERS)}
    key = private_key(_LEAF.key, f"{family}leaf")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Chain(**made, key=key)


def _certificate(
    tiers: Mapping[str, Tier], tier: str, now: datetime, family: str
) -> bytes:
    own, issuer_name = tiers[tier], ABOVE.get(tier, tier)
    issuer = tiers[issuer_name]
    scheme = SCHEMES[own.signed or _usual_scheme(issuer.key)]
    public = private_key(own.key, family + tier).public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    begins, ends = now - timedelta(days=10), now + timedelta(days=100)
    fields = (
        own.version,
        tlv(INTEGER, own.serial),
        own.inner or scheme.identifier,
        _subject(issuer, family + issuer_name),
        _sequence(_time(begins), _time(begins if own.ended else ends)),
        _subject(own, family + tier),
        own.spki(spki),
        own.unique_id,
        _extensions((*own.extensions, *own.more)),
    )
    tbs = _sequence(*fields)
    signer = private_key(issuer.key, family + issuer_name)
    return splice(tbs, scheme.identifier, scheme.sign(signer, tbs))


def _subject(tier: Tier, title: str) -> bytes:
    return _common_name(title) if tier.subject is None else tier.subject


def _time(moment: datetime) -> bytes:
    return tlv(23, moment.astimezone(UTC).strftime("%y%m%d%H%M%SZ").encode())


def _extensions(extensions: tuple[Extension, ...]) -> bytes:
    if not extensions:
        return b""
    items = (
        _sequence(
            oid(identifier.dotted_string),
            _TRUE if critical else b"",
            tlv(OCTET_STRING, value),
        )
        for identifier, critical, value in extensions
    )
    return tlv(0xA3, _sequence(*items))


def key_parts(spki: bytes) -> tuple[bytes, bytes, bytes]:
    """Take a SubjectPublicKeyInfo apart: OID, parameters, and the key's bytes."""
    identifier, bits = elements(content(spki))
    kind, *parameters = elements(content(identifier))
    return kind, b"".join(parameters), content(bits)[1:]


def public_key_info(kind: bytes, parameters: bytes, key: bytes) -> bytes:
    """Put a SubjectPublicKeyInfo together."""
    return _sequence(_sequence(kind, parameters), tlv(BIT_STRING, b"\0" + key))
