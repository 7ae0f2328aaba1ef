"""Builds chains for tests: every tier with what one wants to be wrong about it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bridge.x509.certificate import key_usage

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
"""The time of tests that need a certain one."""

KEY_KINDS = ("p256", "p384", "p521", "rsa2048", "rsa3072", "rsa4096", "ed25519")
_serials = count(0x1000)


def new_key(kind: str = "p256") -> Key:
    """Make a key: `p256`, `p384`, `p521`, `ed25519`, or `rsa` and a number of bits."""
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves: dict[str, ec.EllipticCurve] = {
        "p256": ec.SECP256R1(),
        "p384": ec.SECP384R1(),
        "p521": ec.SECP521R1(),
    }
    return ec.generate_private_key(curves[kind])


@cache
def shared_key(kind: str) -> Key:
    """Return the one key of this kind in this process (RSA takes long)."""
    return new_key(kind)


@dataclass(frozen=True)
class Authority:
    """A CA of a test: certificate, key, and what stands between it and the root."""

    certificate: x509.Certificate
    key: Key
    above: tuple["Authority", ...] = field(default=())
    """From its issuer up to the root."""

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def root(self) -> x509.Certificate:
        return (self, *self.above)[-1].certificate

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """This CA and the intermediates above it, without the root."""
        return tuple(one.certificate for one in (self, *self.above[:-1]))

    def key_pem(self, passphrase: bytes | None = None, *, pkcs8: bool = True) -> bytes:
        return key_pem(self.key, passphrase, pkcs8=pkcs8)

    def issue_ca(
        self,
        name: str,
        *,
        key: Key | None = None,
        path_length: int | None = None,
        constraints: x509.NameConstraints | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> "Authority":
        """Issue a CA under this one; the validity is this one's by default."""
        own_key = key or new_key()
        certificate = _ca_certificate(
            name,
            own_key,
            self,
            path_length=path_length,
            constraints=constraints,
            validity=(
                not_before or self.certificate.not_valid_before_utc,
                not_after or self.certificate.not_valid_after_utc,
            ),
        )
        return Authority(certificate, own_key, (self, *self.above))

    def issue_leaf(
        self,
        *names: x509.GeneralName,
        key: Key | None = None,
        not_before: datetime = NOW,
        not_after: datetime | None = None,
        subject: x509.Name | None = None,
    ) -> x509.Certificate:
        """Issue a leaf of the mesh's profile, whose subject is empty by default."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject or x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key((key or new_key()).public_key())
            .serial_number(next(_serials))
            .not_valid_before(not_before)
            .not_valid_after(not_after or not_before + timedelta(hours=1))
            .add_extension(
                key_usage(digital_signature=True, key_encipherment=True), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage(
                    [
                        ExtendedKeyUsageOID.SERVER_AUTH,
                        ExtendedKeyUsageOID.CLIENT_AUTH,
                    ]
                ),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_aki(self.certificate), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
        )
        return builder.sign(self.key, _hash(self.key))


def new_root(
    name: str = "root",
    *,
    key: Key | None = None,
    not_before: datetime = NOW - timedelta(days=1),
    not_after: datetime | None = None,
) -> Authority:
    """Make a self-signed root that is valid at `NOW`, for ten years."""
    own_key = key or new_key()
    validity = (not_before, not_after or not_before + timedelta(days=3650))
    return Authority(_ca_certificate(name, own_key, None, validity=validity), own_key)


def new_chain(kind: str = "p256", *, not_before: datetime | None = None) -> Authority:
    """Make root, intermediate and issuing CA; return the issuing CA.

    Its key is of the given kind and shared by the tests of this process; the names of
    the tiers are new each time.
    """
    number = next(_serials)
    root = new_root(f"root {number}", not_before=not_before or NOW - timedelta(days=1))
    intermediate = root.issue_ca(f"intermediate {number}", path_length=1)
    key = shared_key(kind)
    return intermediate.issue_ca(f"issuing {number}", key=key, path_length=0)


def bundle(*certificates: x509.Certificate) -> bytes:
    """Write certificates as PEM, in order."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def key_pem(key: Key, passphrase: bytes | None = None, *, pkcs8: bool = True) -> bytes:
    """Write a key as PKCS#8 or in its traditional form (SEC1, PKCS#1)."""
    form = PrivateFormat.PKCS8 if pkcs8 else PrivateFormat.TraditionalOpenSSL
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption)


def public_pem(key: Key) -> bytes:
    """Write the public half of a key."""
    form = PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(Encoding.PEM, form)


def write_private(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """Write a file that only its owner can read."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


def _ca_certificate(
    name: str,
    key: Key,
    issuer: Authority | None,
    *,
    validity: tuple[datetime, datetime],
    path_length: int | None = None,
    constraints: x509.NameConstraints | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(next(_serials))
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(True, path_length), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(_aki(issuer.certificate), critical=False)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    signing_key = issuer.key if issuer else key
    return builder.sign(signing_key, _hash(signing_key))


def _aki(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    make = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    return make(found.value)


def _hash(key: Key) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name == "secp521r1":
            return hashes.SHA512()
        if key.curve.name == "secp384r1":
            return hashes.SHA384()
    return hashes.SHA256()


def revoking(
    ca: Authority,
    *revoked: Authority,
    number: int | None = 1,
    next_update: datetime = NOW + timedelta(days=30),
    key: Key | None = None,
    extra: x509.ExtensionType | None = None,
    encoding: Encoding = Encoding.DER,
) -> bytes:
    """Return the list of a CA that revokes the certificates of others."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(min(NOW, next_update) - timedelta(days=1))
        .next_update(next_update)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    for one in revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(one.certificate.serial_number)
            .revocation_date(NOW - timedelta(days=2))
            .build()
        )
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key or ca.key, hashes.SHA256()).public_bytes(encoding)
