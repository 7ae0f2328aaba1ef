"""Finds what is wrong with a configuration, by rule, with what to do about it.

`diagnose` asks `bridge.checks.findings` and adds nothing that is found in another way:
what `meshca check` tells, or is refused with, gets a stable rule and a remedy here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridge.checks.findings import Finding, check_configuration
from bridge.errors import ConfigError

Severity = Literal["error", "warning", "info"]

_SEVERITIES: dict[str, Severity] = {
    "FAILED": "error",
    "warning": "warning",
    "note": "info",
}
_ORDER = tuple(_SEVERITIES.values())
_TRUST_DOMAIN = "trust domain "


@dataclass(frozen=True, slots=True)
class DoctorRule:
    """One kind of finding."""

    name: str
    """Stable, for programs."""
    pattern: str
    """A regular expression: what the text of such a finding has."""
    meaning: str
    """What users see of it. A phrase."""
    remedy: str
    """What to do. A sentence."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, by a rule."""

    rule: str
    """The name of one of `RULES`."""
    severity: Severity
    where: str
    """What it is about; empty if the text says it."""
    found: str
    remedy: str


RULES: tuple[DoctorRule, ...] = (
    DoctorRule(
        "renewal.budget",
        "of its life, in which it is replaced",
        "an issuing CA lives too short for its leaves",
        "Have the CA issued for longer, or lower max_ttl.",
    ),
    DoctorRule(
        "chain.not-a-ca",
        "is not a CA certificate|must not sign certificates|is no issuing CA",
        "a leaf or a root in place of the issuing CA; peers reject all leaves",
        "Have a CA certificate issued for this key, with basicConstraints and "
        "keyCertSign.",
    ),
    DoctorRule(
        "chain.shared-subject",
        "has the subject of certificate",
        "one subject in two tiers; some peers try the wrong issuer",
        "Issue one of the two again, with a subject and a key of its own.",
    ),
    DoctorRule(
        "chain.shared-key",
        "has the key of certificate",
        "one key in two tiers",
        "Make a key of its own for the lower CA, and have it signed.",
    ),
    DoctorRule(
        "chain.own-names",
        "has a name that the constraints above|has an e-mail address in its subject",
        "a CA's own name is outside the constraints above it",
        "Issue the CA again with a name inside, or have the constraints widened above.",
    ),
    DoctorRule(
        "chain.path-length",
        "has the pathLen|CA certificates below the anchor; rustls",
        "more tiers than a CA above or a data plane allows",
        "Issue from fewer tiers, or have the upper CA issued with a longer pathLen.",
    ),
    DoctorRule(
        "chain.key",
        "has an unfit key|has a key that cannot be read|expected RSA with 2048",
        "a key that verifiers refuse, such as RSA-1024",
        "Make a key of P-256, P-384 or RSA of 2048 bits or more, and have it signed.",
    ),
    DoctorRule(
        "constraints.malformed",
        "name constraints that cannot be used|constrains a form that no verifier",
        "a constraint that permits or excludes nothing, such as one with `spiffe://`",
        "Have the CA issued again with hosts alone: no scheme, port, path or wildcard.",
    ),
    DoctorRule(
        "constraints.data-plane",
        "has a URI constraint|constrains URI names|directory name constraint|"
        "has an IP constraint",
        "a constraint under which ztunnel, linkerd2-proxy or Envoy rejects leaves",
        "Give these data planes a chain without it; the bridge holds the trust domain.",
    ),
    DoctorRule(
        "constraints.half-host",
        "the URI host .* without|the empty URI host|constraints that are not critical",
        "a constraint that verifiers read differently",
        "Have the host with and without a leading dot, in a critical extension.",
    ),
    DoctorRule(
        "crl.revoked",
        "is revoked since",
        "a certificate of the chain is revoked; nothing is issued under it",
        "Have a CA certificate issued in its place, or use another issuing CA.",
    ),
    DoctorRule(
        "crl.next-update",
        "its next update is",
        "a revocation list is near its next update, or past it",
        "Make the next list: meshca hierarchy crl.",
    ),
    DoctorRule(
        "crl.file",
        r"\bcrls: |no chain has this CA",
        "a revocation list that cannot be used, or is of no CA here",
        "Get the newest list from whoever runs the CA, or take the file out.",
    ),
    DoctorRule(
        "expiry.alarm",
        "of its life is over|within the longest lifetime that may be",
        "a certificate is at 50, 80 or 95 % of its life, or ends within a leaf's",
        "Plan the next ceremony; have the new CA in service before the end.",
    ),
    DoctorRule(
        "expiry.invalid",
        r"expired on|\bended [0-9]{4}-|is not valid before",
        "a certificate has ended, or is not valid yet",
        "Replace it, or set the clock of this machine.",
    ),
    DoctorRule(
        "renewal.long-leaves",
        "its replacement has to be in service",
        "leaves live longer than seven days, so the CA is replaced that much earlier",
        "Hold the next ceremony before that day, or lower max_ttl.",
    ),
    DoctorRule(
        "trust-domain.not-permitted",
        "URI spiffe://.*no certificate for it",
        "the chain's constraints forbid SPIFFE IDs of a trust domain of a cluster",
        "Correct trust_domain, or have the CAs issued with this trust domain.",
    ),
    DoctorRule(
        "trust-domain.several",
        "trust domains side by side",
        "clusters of several trust domains; peers may refuse each other's SANs",
        "Set meshConfig.trustDomainAliases in each mesh, or one trust domain for all.",
    ),
    DoctorRule(
        "leaf.refused",
        "no certificate for it: ",
        "the issuing CA's own constraints forbid leaves that callers need",
        "Have the CA issued again with these names, or route the callers elsewhere.",
    ),
    DoctorRule(
        "leaf.verifiers-differ",
        "openssl verify refuses it",
        "a throwaway leaf that the bridge takes and OpenSSL rejects",
        "Do not serve it; have the chain issued again by meshca hierarchy.",
    ),
    DoctorRule(
        "leaf.not-constrained",
        "only the bridge's configuration refuses it",
        "a foreign name that the chain itself does not forbid",
        "Constrain the chain where its data planes allow it: docs/constraints.md.",
    ),
    DoctorRule(
        "exposure.issuing-key",
        "if the issuing key were compromised",
        "what a data plane would accept if the issuing key were compromised",
        "Narrow the constraints where the data plane allows it: docs/constraints.md.",
    ),
    DoctorRule(
        "chain.wrong",
        "is not issued by the next|(is|named as) issued by|issued each other|"
        "not on the path to the trust anchor|is itself a trust anchor",
        "a chain that leads to no trust anchor, or has what does not belong there",
        "Put the missing issuer into the chain, and its root into trust_anchors.",
    ),
    DoctorRule(
        "anchors.trouble",
        "^trust anchors: |trust_anchors: ",
        "a trust anchor that is unusable, or a change that cuts workloads off",
        "Follow the message; change roots by having old and new side by side.",
    ),
    DoctorRule(
        "backend.file-key",
        "that is for development: anyone who copies the file",
        "the issuing key is in a file",
        "Use an HSM or Vault in production: docs/hsm.md, docs/vault.md.",
    ),
    DoctorRule(
        "backend.trouble",
        ": backend: |: latch: ",
        "the backend does not answer, or an operator has to clear its latch",
        "Repair the backend; then see meshca ledger latch list.",
    ),
    DoctorRule(
        "cluster.rights",
        "the bridge may not ",
        "the bridge lacks a right at the API server of a cluster",
        "Apply deploy/kubernetes, or give the right to the bridge's own role.",
    ),
    DoctorRule(
        "tokens.keys",
        "token keys|, keys: ",
        "tokens of a cluster cannot be verified",
        "Make the keys of the cluster reachable, or correct its tokens section.",
    ),
    DoctorRule(
        "ledger.place",
        r"^ledger: |: ledger\.",
        "a place where the ledger cannot write",
        "Follow the message; the user of the bridge needs the right to write there.",
    ),
    DoctorRule(
        "config.other",
        "",
        "whatever else is refused or told",
        "Follow the message; docs/troubleshooting.md has more by message.",
    ),
)
"""In order of precedence: the first one that matches counts."""


def rule_of(text: str) -> DoctorRule:
    """Return the rule of a finding's text."""
    return next(one for one in RULES if re.search(one.pattern, text))


def diagnose(path: Path) -> tuple[list[Diagnosis], int]:
    """Find what is wrong with a configuration; errors first. Uses no key.

    Args:
        path: The configuration file.

    Returns:
        What was found, and how many checks found nothing. A configuration that is
        refused has a finding for each line of the refusal.
    """
    warnings: list[str] = []
    try:
        checked = check_configuration(path, warnings.append)
    except ConfigError as error:
        lines = str(error).splitlines()
        found = [_diagnosis("", line, "error") for line in lines]
        checked = []
    else:
        found = [
            _diagnosis(f"{one.part}: {one.what}", one.detail, _SEVERITIES[one.result])
            for one in checked
            if one.result in _SEVERITIES
        ]
        found += _trust_domains(checked)
    found += [_diagnosis("", text, "warning") for text in warnings]
    fine = sum(one.result not in _SEVERITIES for one in checked)
    return sorted(found, key=lambda one: _ORDER.index(one.severity)), fine


def _diagnosis(where: str, found: str, severity: Severity) -> Diagnosis:
    rule = rule_of(f"{where}: {found}" if where else found)
    return Diagnosis(rule.name, severity, where, found, rule.remedy)


def _trust_domains(checked: list[Finding]) -> Iterator[Diagnosis]:
    domains = dict.fromkeys(
        one.detail.removeprefix(_TRUST_DOMAIN)
        for one in checked
        if one.part == "cluster" and one.detail.startswith(_TRUST_DOMAIN)
    )
    if len(domains) > 1:
        told = f"trust domains side by side: {', '.join(domains)}"
        yield _diagnosis("clusters", told, "info")
