"""Makes a throwaway hierarchy: offline root, regional intermediate, issuing CA.

It is the hierarchy file of three CAs, made by the code of a ceremony. Its keys are not
those of one: they are made on this machine and lie in one folder. Only the issuing CA's
key may be in a token instead, and never comes here.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from secrets import token_hex

from cryptography import x509

from bridge.dataplanes.planes import RUSTLS_PLANES, DataPlane
from bridge.errors import ConfigError
from bridge.hierarchy.keys import LocalKey
from bridge.hierarchy.schema import (
    HierarchyFile,
    parse,
)
from bridge.hierarchy.schema.file import BACKDATE
from bridge.hierarchy.signing import SigningStep, issue
from bridge.spiffe import TrustDomain
from bridge.system.clock import Clock, system_clock
from bridge.x509.algorithm import CAPrivateKey, CAPublicKey, KeyAlgorithm, new_key

_CLUSTER_DNS = ("svc", "cluster.local", "localhost")
_NO_MAIL_HOST = "invalid"
_YEAR = timedelta(days=365)
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LONGEST_ORGANISATION = 64


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
    now = clock().replace(microsecond=0)
    file = _file(spec, now - BACKDATE)
    tiers: list[Tier] = []
    for name in file.order():
        own = None if name == "issuing" and issuing_key else make_key(spec.key)
        public_key = own.public_key() if own else issuing_key
        signing_key = tiers[0].key if tiers else own
        if public_key is None or signing_key is None:
            raise TypeError("a tier whose key is elsewhere signs nothing here")
        step = SigningStep(
            file=file,
            name=name,
            public_key=public_key,
            above=[tier.certificate for tier in tiers],
            now=now,
            with_others=False,
        )
        tiers.insert(0, Tier(issue(step, LocalKey(signing_key)), own))
    issuing, intermediate, root = tiers
    return Hierarchy(root, intermediate, issuing, tuple(_notes(spec)))


def _file(spec: ThrowawaySpec, start: datetime) -> HierarchyFile:
    """Return the hierarchy file that a ceremony for the three CAs would have."""
    # Two hierarchies in one trust store must not share a subject: verifiers look up
    # issuers by name, and some try only the first.
    mark = token_hex(3)
    constraints = _constraints(spec)
    tiers = (
        ("root", None, f"Throwaway root CA {mark}", spec.root_ttl),
        (
            *("intermediate", "root"),
            *(f"Throwaway regional CA {spec.region} {mark}", spec.intermediate_ttl),
        ),
        (
            *("issuing", "intermediate"),
            *(f"Throwaway issuing CA {spec.region} {mark}", spec.issuing_ttl),
        ),
    )
    cas = {
        name: {
            "parent": parent,
            "common_name": common_name,
            "key": {"backend": "file", "path": f"{name}.key", "algorithm": spec.key},
            "validity": {
                "not_before": start.isoformat(),
                "not_after": (start + ttl).isoformat(),
            },
            "path_len": 2 - depth,
            "name_constraints": constraints if parent else None,
        }
        for depth, (name, parent, common_name, ttl) in enumerate(tiers)
    }
    cas["issuing"]["purpose"] = "mesh"
    content = {
        "version": 1,
        "name": "throwaway",
        "organisation": str(spec.trust_domains[0])[:_LONGEST_ORGANISATION],
        "trust_domains": [str(domain) for domain in dict.fromkeys(spec.trust_domains)],
        "data_planes": sorted(spec.data_planes),
        "cas": cas,
    }
    return parse(json.dumps(content).encode(), Path("throwaway.json")).file


def _constraints(spec: ThrowawaySpec) -> dict[str, dict[str, list[str]]]:
    """Return the name constraints as a hierarchy file has them.

    Each host stands there twice, alone and with a leading dot: strict verifiers take
    the one for this host only and the other for its subdomains only.

    Source:
        RFC 5280, 4.2.1.10.
    """
    domains = dict.fromkeys(str(domain) for domain in spec.trust_domains)
    hosts = dict.fromkeys((*domains, *_CLUSTER_DNS, *spec.permitted_dns))
    permitted = {
        "dns": [form for host in hosts for form in (host, f".{host}")],
        # "No e-mail at all" cannot be said in a way that all verifiers read alike; a
        # host that cannot exist (RFC 6761, 6.4) can.
        "email": [_NO_MAIL_HOST],
    }
    if spec.has_uri_constraint:
        permitted["uri"] = [form for host in domains for form in (host, f".{host}")]
    return {"permitted": permitted, "excluded": {"ip": ["0.0.0.0/0", "::/0"]}}


def _notes(spec: ThrowawaySpec) -> Iterator[str]:
    if not spec.has_uri_constraint:
        planes = ", ".join(sorted(spec.data_planes & RUSTLS_PLANES))
        yield (
            "URI names are not constrained: a URI constraint does not work with "
            f"{planes}; only the bridge holds leaves to the trust domain"
        )
    yield (
        "IP addresses are excluded: no leaf may carry one, and Envoy refuses any IP "
        "name under such a constraint"
    )
    yield (
        f"e-mail addresses are permitted at the host {_NO_MAIL_HOST!r} only, which "
        "cannot exist"
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
