"""Makes a throwaway hierarchy: offline root, regional intermediate, issuing CA.

Its shape, its constraints and its profile are those of a real one; its keys are not:
they are made on this machine and lie in one folder. Only the issuing CA's key may be in
a token instead, and never comes here.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from secrets import randbits, token_hex
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from bridge.dataplanes.planes import RUSTLS_PLANES, DataPlane
from bridge.errors import ConfigError
from bridge.spiffe import TrustDomain
from bridge.system.clock import Clock, system_clock
from bridge.x509.algorithm import CAPrivateKey, CAPublicKey, algorithm_of
from bridge.x509.certificate import key_usage
from bridge.x509.name_constraints import subset_problems

KeyAlgorithm = Literal[
    "p256", "p384", "p521", "rsa2048", "rsa3072", "rsa4096", "ed25519"
]


_CLUSTER_DNS = ("svc", "cluster.local", "localhost")
_NO_MAIL_HOST = "invalid"
_BACKDATE = timedelta(minutes=5)
_YEAR = timedelta(days=365)
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LONGEST_ORGANISATION = 64
_CA_KEY_USAGE = key_usage(key_cert_sign=True, crl_sign=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrowawaySpec:
    """The options of a throwaway hierarchy.

    Raises:
        ConfigError: A name is no DNS name, the list of trust domains or data planes is
            empty, or a tier outlives the one above it.
    """

    trust_domains: tuple[TrustDomain, ...]
    region: str = "eu"
    data_planes: frozenset[DataPlane] = frozenset({DataPlane.SIDECAR})
    key: KeyAlgorithm = "p256"
    """The key algorithm of each tier whose key is made here."""
    root_ttl: timedelta = 10 * _YEAR
    intermediate_ttl: timedelta = 5 * _YEAR
    issuing_ttl: timedelta = _YEAR
    permitted_dns: tuple[str, ...] = ()
    """More DNS names that leaves may carry, each with its subdomains."""

    def __post_init__(self) -> None:
        if not self.trust_domains:
            raise _bad("trust domains: expected at least one (found none)")
        if not self.data_planes:
            raise _bad("data planes: expected at least one (found none)")
        if not _REGION.fullmatch(self.region):
            raise _bad(
                "region: expected 1 to 32 of the characters a-z 0-9 - "
                f"(found {self.region!r})"
            )
        for name in (*map(str, self.trust_domains), *self.permitted_dns):
            _require_host(name)
        ttls = (timedelta(0), self.issuing_ttl, self.intermediate_ttl, self.root_ttl)
        if not ttls[0] < ttls[1] <= ttls[2] <= ttls[3]:
            raise _bad(
                "validity: expected 0 < issuing CA <= intermediate <= root (found "
                f"{self.issuing_ttl}, {self.intermediate_ttl}, {self.root_ttl})"
            )

    @property
    def has_uri_constraint(self) -> bool:
        """Whether all data planes work with a URI constraint."""
        return not self.data_planes & RUSTLS_PLANES


@dataclass(frozen=True, slots=True)
class Tier:
    """One CA of the hierarchy."""

    certificate: x509.Certificate
    key: CAPrivateKey | None = field(repr=False)
    """None where the key was made elsewhere and stays there."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Three tiers, from the root down."""

    root: Tier
    intermediate: Tier
    issuing: Tier
    notes: tuple[str, ...] = ()
    """Notes about the constraints, for people."""


def new_key(algorithm: KeyAlgorithm) -> CAPrivateKey:
    """Make a key with this machine's randomness."""
    match algorithm:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            bits = int(algorithm.removeprefix("rsa"))
            return rsa.generate_private_key(65537, bits)


def make(
    spec: ThrowawaySpec,
    *,
    clock: Clock = system_clock,
    make_key: Callable[[KeyAlgorithm], CAPrivateKey] = new_key,
    issuing_key: CAPublicKey | None = None,
) -> Hierarchy:
    """Make the three tiers.

    The regional intermediate and the issuing CA carry the same critical name
    constraints; the root has none, since other regions hang below a real one.

    Args:
        spec: What it is for.
        clock: notBefore of all tiers is five minutes before its time.
        make_key: Makes the key of each tier.
        issuing_key: The issuing CA's key, where its private half is in a token.
    """
    start = clock().replace(microsecond=0) - _BACKDATE
    constraints = constraints_of(spec)
    # Two hierarchies in one trust store must not share a subject: verifiers look up
    # issuers by name, and some try only the first.
    mark = token_hex(3)
    root = _tier(
        _subject(spec, f"Throwaway root CA {mark}"),
        make_key(spec.key),
        (start, start + spec.root_ttl),
        path_length=2,
    )
    intermediate = _tier(
        _subject(spec, f"Throwaway regional CA {spec.region} {mark}"),
        make_key(spec.key),
        (start, start + spec.intermediate_ttl),
        path_length=1,
        issuer=root,
        constraints=constraints,
    )
    issuing = _tier(
        _subject(spec, f"Throwaway issuing CA {spec.region} {mark}"),
        issuing_key or make_key(spec.key),
        (start, start + spec.issuing_ttl),
        path_length=0,
        issuer=intermediate,
        constraints=constraints,
    )
    if problems := subset_problems(issuing.certificate, intermediate.certificate):
        raise _bad("; ".join(problems))
    return Hierarchy(root, intermediate, issuing, tuple(_notes(spec)))


def constraints_of(spec: ThrowawaySpec) -> x509.NameConstraints:
    """Return the name constraints of the intermediate and the issuing CA.

    Each host stands there twice, alone and with a leading dot: strict verifiers take
    the one for this host only and the other for its subdomains only.

    Source:
        RFC 5280, 4.2.1.10.
    """
    domains = [str(domain) for domain in spec.trust_domains]
    hosts = dict.fromkeys((*domains, *_CLUSTER_DNS, *spec.permitted_dns))
    permitted: list[x509.GeneralName] = [
        x509.DNSName(form) for host in hosts for form in (host, f".{host}")
    ]
    if spec.has_uri_constraint:
        permitted += [
            x509.UniformResourceIdentifier(form)
            for host in dict.fromkeys(domains)
            for form in (host, f".{host}")
        ]
    # "No e-mail at all" cannot be said in a way that all verifiers read alike; a host
    # that cannot exist (RFC 6761, 6.4) can.
    permitted.append(x509.RFC822Name(_NO_MAIL_HOST))
    excluded = [
        x509.IPAddress(ipaddress.ip_network(network))
        for network in ("0.0.0.0/0", "::/0")
    ]
    return x509.NameConstraints(permitted, excluded)


def _notes(spec: ThrowawaySpec) -> Iterator[str]:
    if not spec.has_uri_constraint:
        planes = ", ".join(sorted(spec.data_planes & RUSTLS_PLANES))
        yield (
            f"URI names are not constrained: {planes} do not work with a URI "
            "constraint; only the bridge holds leaves to the trust domain"
        )
    yield (
        "IP addresses are excluded: no leaf may carry one, and Envoy refuses any IP "
        "name under such a constraint"
    )
    yield (
        f"e-mail addresses are permitted at the host {_NO_MAIL_HOST!r} only, which "
        "cannot exist"
    )


def _tier(
    subject: x509.Name,
    key: CAPrivateKey | CAPublicKey,
    validity: tuple[datetime, datetime],
    *,
    path_length: int,
    issuer: Tier | None = None,
    constraints: x509.NameConstraints | None = None,
) -> Tier:
    own_key = key if isinstance(key, CAPrivateKey) else None
    public_key = key.public_key() if isinstance(key, CAPrivateKey) else key
    signing_key = issuer.key if issuer else own_key
    if signing_key is None:
        raise TypeError("a tier whose key is elsewhere signs nothing here")
    own_identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    basic = x509.BasicConstraints(ca=True, path_length=path_length)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(public_key)
        .serial_number(randbits(127) | 1)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(basic, critical=True)
        .add_extension(_CA_KEY_USAGE, critical=True)
        .add_extension(own_identifier, critical=False)
    )
    if issuer is not None:
        found = issuer.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
        by_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
        builder = builder.add_extension(by_key(found.value), critical=False)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    algorithm = algorithm_of(signing_key.public_key())
    return Tier(builder.sign(signing_key, algorithm.hash), own_key)


def _subject(spec: ThrowawaySpec, common_name: str) -> x509.Name:
    organisation = str(spec.trust_domains[0])[:_LONGEST_ORGANISATION]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _require_host(name: str) -> None:
    labels = name.split(".")
    # A last label of digits makes verifiers read an IP address, in which no DNS or URI
    # constraint is legal.
    if not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise _bad(
            "trust domain or DNS name: expected a name such as corp.example, in lower "
            f"case, without a dot at either end (found {name!r})"
        )


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.spec")
