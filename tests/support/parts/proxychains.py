"""Chains for proxies, signed by a CA that signs whatever a test wants to be wrong."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bridge.x509.certificate import key_usage
from tests.support.clients.linkerd_go import name_of
from tests.support.parts.pki import bundle, key_pem, new_key
from tests.support.parts.proxies import Proxy

BOTH_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
DAY = timedelta(days=1)
_UTF8 = x509.name._ASN1Type.UTF8String


@dataclass(frozen=True, kw_only=True)
class Made:
    """One certificate to be made, good unless a row says otherwise."""

    subject: str
    key: Any
    ca: bool
    path_length: int | None = None
    usages: tuple[ObjectIdentifier, ...] = ()
    names: tuple[x509.GeneralName, ...] = ()
    constraints: x509.NameConstraints | None = None
    lasts: tuple[timedelta, timedelta] = (-DAY, DAY)
    unknown: bool = False
    string: x509.name._ASN1Type = _UTF8
    """How the issuer's name is written into it."""
    pss: bool = False
    hash: Any = None

    def by(self, issuer: "Made") -> x509.Certificate:
        """Let the issuer sign it."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(self.subject))
            .issuer_name(named(issuer.subject, self.string))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + self.lasts[0])
            .not_valid_after(now + self.lasts[1])
        )
        for extension, critical in self._extensions():
            builder = builder.add_extension(extension, critical=critical)
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if self.pss else None
        by_hash = self.hash or hashes.SHA256()
        return builder.sign(issuer.key, by_hash, rsa_padding=pss)

    def _extensions(self) -> list[tuple[x509.ExtensionType, bool]]:
        usage = key_usage(
            digital_signature=not self.ca,
            key_encipherment=not self.ca,
            key_cert_sign=self.ca,
        )
        path_length = self.path_length if self.ca else None
        found: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(self.ca, path_length), True),
            (usage, True),
        ]
        if self.usages:
            found.append((x509.ExtendedKeyUsage(self.usages), False))
        if self.names:
            san = x509.SubjectAlternativeName(self.names)
            found.append((san, not self.subject))
        if self.constraints is not None:
            found.append((self.constraints, True))
        if self.unknown:
            extra = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0")
            found.append((extra, True))
        return found


def named(name: str, kind: x509.name._ASN1Type = _UTF8) -> x509.Name:
    """Make a name of one common name, or an empty one."""
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name, kind)] if name else []
    return x509.Name(parts)


@dataclass(frozen=True)
class Chain:
    """Root, regional CA, issuing CA and leaf."""

    root: Made
    regional: Made
    issuing: Made
    leaf: Made

    def certificates(self) -> list[x509.Certificate]:
        """Return them from the leaf to the root."""
        return [
            self.leaf.by(self.issuing),
            self.issuing.by(self.regional),
            self.regional.by(self.root),
            self.root.by(self.root),
        ]

    def proxy(self) -> Proxy:
        """Give them to a proxy."""
        *chain, root = self.certificates()
        return Proxy(bundle(root), bundle(*chain), key_pem(self.leaf.key))

    def but(self, tier: str, **change: object) -> "Chain":
        """Return the same chain with one tier changed."""
        made = replace(getattr(self, tier), **change)
        return replace(self, **{tier: made})


def good(account: str = "web") -> Chain:
    """Return a chain that a proxy of this account takes."""
    return Chain(
        Made(subject="Root", key=key_of("root"), ca=True),
        Made(subject="Regional CA", key=key_of("regional"), ca=True),
        Made(subject="Issuing CA", key=key_of("issuing"), ca=True),
        Made(
            subject="",
            key=key_of(account),
            ca=False,
            usages=BOTH_USAGES,
            names=(x509.DNSName(name_of(account)),),
        ),
    )


_keys: dict[str, Any] = {}


def key_of(name: str) -> Any:
    """Return the one key of this name."""
    return _keys.setdefault(name, new_key())
