"""The rules that a hierarchy file is held to, and what is found against them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from cryptography import x509

from bridge.hierarchy.schema import CAEntry, HierarchyFile
from bridge.x509.name_constraints import ChainConstraints, NameConstraints

Severity = Literal["error", "warning", "info"]

RULES: Mapping[str, Severity] = MappingProxyType(
    {
        "tree.issuing-has-children": "error",
        "tree.signs-nothing": "warning",
        "tree.no-trust-domain": "error",
        "tree.no-data-plane": "error",
        "tree.trust-domain-wider": "error",
        "tree.data-plane-wider": "error",
        "tree.depth": "error",
        "tree.anchor-issues": "error",
        "names.shared-subject": "error",
        "key.shared": "error",
        "key.csr-signs": "error",
        "key.root-online": "warning",
        "key.weaker-than-child": "warning",
        "validity.expired": "error",
        "validity.before-parent": "error",
        "validity.outlives-parent": "error",
        "validity.long": "warning",
        "validity.renewal-budget": "error",
        "path_len.not-below-parent": "error",
        "path_len.too-short": "error",
        "path_len.too-long": "warning",
        "key_usage.no-cert-sign": "error",
        "key_usage.no-crl-sign": "warning",
        "ext_key_usage.missing": "error",
        "urls.shared": "error",
        "urls.root": "warning",
        "officers.none": "info",
        "officers.shared-key": "error",
        "officers.public-key": "error",
        "constraints.wider": "error",
        "constraints.not-critical": "warning",
        "constraints.uri-unconstrained": "warning",
        "constraints.dns-unconstrained": "warning",
        "constraints.ip-unconstrained": "warning",
        "constraints.email-unconstrained": "warning",
        "constraints.half-host": "warning",
        "constraints.foreign-domain": "warning",
        "constraints.uri-ambient": "error",
        "constraints.uri-linkerd": "warning",
        "constraints.shuts-out": "error",
        "constraints.no-addresses": "error",
        "constraints.ip-sidecar": "info",
        "client-ca.anchor": "error",
        "client-ca.mesh-identities": "warning",
        "certificates.names": "error",
        "certificates.usage": "error",
        "accepted.unknown-rule": "error",
        "accepted.no-warning": "error",
        "accepted.unused": "info",
    }
)
"""Each rule with its severity. A warning fails unless the file accepts it."""

_KEYS = {
    "names": "common_name",
    "key": "key",
    "validity": "validity",
    "path_len": "path_len",
    "key_usage": "key_usage",
    "ext_key_usage": "ext_key_usage",
    "constraints": "name_constraints",
    "certificates.names": "name_constraints",
    "certificates.usage": "ext_key_usage",
    "client-ca.anchor": "anchor",
    "client-ca.mesh-identities": "name_constraints",
    "tree.no-trust-domain": "trust_domains",
    "tree.no-data-plane": "data_planes",
    "tree.trust-domain-wider": "trust_domains",
    "tree.data-plane-wider": "data_planes",
    "tree.issuing-has-children": "purpose",
    "tree.signs-nothing": "purpose",
    "tree.anchor-issues": "anchor",
}
"""The key of a CA that a rule, or all rules of a group, are about."""


@dataclass(frozen=True, slots=True)
class PlanFinding:
    """What one rule found."""

    rule: str
    """A key of `RULES`."""
    ca: str | None
    """The CA in question; None where it is the whole file."""
    text: str
    """What is wrong and the way out, without the name of the CA."""
    accepted: str = ""
    """The reason that the file accepts it for."""

    @property
    def path(self) -> str:
        """The key of the file, such as `cas.eu.path_len`."""
        if self.ca is None or self.rule.startswith("accepted."):
            return self.rule.partition(".")[0]
        key = _KEYS.get(self.rule, _KEYS.get(self.rule.partition(".")[0], ""))
        return f"cas.{self.ca}.{key}".rstrip(".")

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return RULES[self.rule]

    @property
    def fails(self) -> bool:
        """Whether nothing may be signed while it stands."""
        is_known = self.severity == "warning" and bool(self.accepted)
        return self.severity != "info" and not is_known


@dataclass(frozen=True)
class Tree:
    """A hierarchy file, with what its rules ask of it again and again."""

    file: HierarchyFile
    now: datetime
    """Aware UTC."""

    @cached_property
    def order(self) -> tuple[str, ...]:
        """All CAs, parents before children."""
        return self.file.order()

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """The CAs right below each CA."""
        found: dict[str, list[str]] = {name: [] for name in self.order}
        for name in self.order:
            parent = self.file.cas[name].parent
            if parent is not None:
                found[parent].append(name)
        return {name: tuple(below) for name, below in found.items()}

    @cached_property
    def height(self) -> Mapping[str, int]:
        """How many CAs stand below each one on the longest way down."""
        found: dict[str, int] = {}
        for name in reversed(self.order):
            below = (found[one] + 1 for one in self.children[name])
            found[name] = max(below, default=0)
        return found

    @cached_property
    def windows(self) -> Mapping[str, tuple[datetime, datetime]]:
        """NotBefore and notAfter of each CA, if it were signed now."""
        found: dict[str, tuple[datetime, datetime]] = {}
        for name in self.order:
            entry = self.file.cas[name]
            above = None if entry.parent is None else found[entry.parent][0]
            found[name] = entry.validity.window(self.now, above)
        return found

    @cached_property
    def values(self) -> Mapping[str, x509.NameConstraints | None]:
        """The name constraints of each CA, as its certificate will have them."""
        return {name: _value(self.file.cas[name]) for name in self.order}

    @cached_property
    def constraints(self) -> Mapping[str, NameConstraints | None]:
        """The name constraints of each CA, to compare."""
        return {name: _read(self.file.cas[name]) for name in self.order}

    def chain_constraints(self, name: str, anchor: str) -> ChainConstraints:
        """Join the constraints of a CA and of what is above it, up to an anchor."""
        chain = self.file.chain(name)
        path = chain[: chain.index(anchor) + 1]
        return ChainConstraints.of_tiers(self.constraints[one] for one in path)


def _value(entry: CAEntry) -> x509.NameConstraints | None:
    return entry.name_constraints.value() if entry.name_constraints else None


def _read(entry: CAEntry) -> NameConstraints | None:
    given = entry.name_constraints
    if given is None:
        return None
    return NameConstraints.of_value(given.value(), critical=given.critical)
