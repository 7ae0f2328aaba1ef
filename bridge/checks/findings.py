"""Finds out whether a configuration would serve, and what it would allow.

Nothing is signed with a real key: names are proven on a throwaway chain of the same
shape.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from bridge.checks.cluster_rows import cluster_rows
from bridge.checks.ledger_storage import ledger_places
from bridge.checks.rule_summary import rule_summary
from bridge.config import (
    BridgeConfig,
    IstioConfig,
    read,
    read_sections,
)
from bridge.dataplanes.exposure import exposure_of
from bridge.dataplanes.planes import data_plane_problems
from bridge.errors import BridgeError, ConfigError, DeniedError, SubjectError
from bridge.hierarchy.replica import openssl_accepts, replicate
from bridge.metrics.expiry import CertificateExpiry, ExpiryLevel
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rules import ISTIO, LINKERD, RoutedCaller
from bridge.resilience.latch_file import Kind
from bridge.resilience.quarantine import StoppedCAs
from bridge.snapshot.builder import Assembly
from bridge.snapshot.continuity import require_continuity
from bridge.snapshot.model import Issuer, Snapshot
from bridge.spiffe import SpiffeID, TrustDomain
from bridge.system.clock import system_clock
from bridge.system.files import read_public
from bridge.x509.key_pair import read_key_pair

_CHECK_SECONDS = 10.0
_LONG_LEAVES = timedelta(days=7)
_MOST_EXAMPLES = 4
"""Of rules that route to one issuing CA: each name costs a process of openssl."""
_RESULTS = {
    ExpiryLevel.OK: "ok",
    ExpiryLevel.NOTE: "note",
    ExpiryLevel.WARNING: "warning",
    ExpiryLevel.ERROR: "FAILED",
}
_TIER = re.compile(
    r"(the certificate of tier ([0-9]+) \(.*?\) )"
    r"((?:has|constrains|permits|excludes) .*)"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    part: str
    what: str
    result: str
    """`ok`, `note`, `warning` or `FAILED`."""
    detail: str = ""


def check_configuration(path: Path, warn: Callable[[str], None]) -> list[Finding]:
    """Load the configuration, open every backend and prove which names may pass.

    Args:
        path: The configuration file.
        warn: Tells the operator about a choice that is legal and unwise.

    Raises:
        ConfigError: The configuration cannot serve. The message lists every problem
            that can be found.
    """
    try:
        config = read(path)
    except ConfigError as error:
        raise with_other_problems(error, path) from error
    with ExitStack() as stack:
        try:
            snapshot = Assembly(
                config=config, clock=system_clock, warn=warn, state=_state(config)
            ).snapshot()
        except BridgeError as error:
            raise with_ledger_problems(error, config) from error
        stack.callback(snapshot.clusters.close)
        for issuer in snapshot.issuers.values():
            stack.callback(issuer.ca.close)
        return [*_findings(config, snapshot)]


def with_other_problems(error: ConfigError, path: Path) -> ConfigError:
    """Add the problems of backends and files, for the sections that could be read."""
    found = read_sections(path)
    if found is None:
        return error
    config, sections = found.config, found.sections
    lines = Assembly(
        config=config, clock=system_clock, warn=_be_quiet, sections=sections
    ).problems()
    if "ledger" in sections:
        lines += _ledger_problems(config)
    return _with(error, lines)


def with_ledger_problems(error: BridgeError, config: BridgeConfig) -> ConfigError:
    """Add the problems of the places where the ledger would write."""
    return _with(error, [*_ledger_problems(config)])


def _with(error: BridgeError, lines: list[str]) -> ConfigError:
    told = dict.fromkeys([*str(error).splitlines(), *lines])
    return ConfigError("\n".join(told), detail=error.detail)


def _ledger_problems(config: BridgeConfig) -> Iterator[str]:
    for key, _, problem in ledger_places(config):
        if problem:
            yield f"{config.path}: {key}: {problem}"


def _state(config: BridgeConfig) -> Path | None:
    # A folder that this user makes is one that the bridge's user may not write to.
    is_there = os.access(config.ledger.journal, os.W_OK)
    return config.ledger.state if is_there else None


def _be_quiet(_: str) -> None:
    # Warnings are for a configuration without errors.
    return


def _findings(config: BridgeConfig, snapshot: Snapshot) -> Iterator[Finding]:
    yield Finding("configuration", "file", "ok", "every key known and consistent")
    for whom, what in rule_summary(config, snapshot.rules):
        yield Finding("issuance", whom, "ok", what)
    yield from _trust_anchors(config, snapshot)
    for warning in snapshot.crl_warnings(system_clock()):
        yield Finding("revocation", "crls", "warning", warning)
    for issuer in snapshot.issuers.values():
        yield from _tiers(snapshot, issuer)
        yield _backend(issuer)
        if not issuer.ended:  # its expiry has failed, and so would each name
            yield from _names(config, snapshot, issuer)
        yield from _exposure(issuer)
    yield from second_certificates(config, snapshot)
    yield from _latched(config, snapshot)
    for row in cluster_rows(config, snapshot.clusters):
        yield Finding("cluster", *row)
    yield from fronts(config, snapshot)
    for problem in snapshot.clusters.unserved(config.callers_by_front()):
        yield Finding("front", "token keys", "FAILED", problem)
    for problem in snapshot.clusters.problems():
        yield Finding("cluster", "token keys", "note", problem)
    yield from given_pair(config)
    for key, fine, problem in ledger_places(config):
        yield Finding("ledger", key, "FAILED" if problem else "ok", problem or fine)


def _trust_anchors(config: BridgeConfig, snapshot: Snapshot) -> Iterator[Finding]:
    part, what = "trust anchors", config.trust_anchors.name
    for problem in snapshot.bundle.problems(system_clock()):
        yield Finding(part, what, "note", problem)
    for one in snapshot.other_anchors():
        if one.not_after > system_clock():  # else it is told already
            yield _expiry(part, one)
    try:
        content = read_public(config.trust_anchors)
        require_continuity(config, content, system_clock())
    except ConfigError as error:
        yield Finding(part, what, "FAILED", str(error))
        return
    accepted = config.accept_new_anchors
    if accepted and accepted != hashlib.sha256(content).hexdigest():
        told = "names other trust anchors than these: take the key out"
        yield Finding(part, "accept_new_anchors", "warning", told)


def _tiers(snapshot: Snapshot, issuer: Issuer) -> Iterator[Finding]:
    tiers = snapshot.expiries(issuer)
    for one in tiers:
        yield _expiry(issuer.name, one)
    longest = max(one.longest for one in tiers)
    if longest > _LONG_LEAVES:
        last = min(one.not_after for one in tiers) - longest
        told = f"certificates live up to {longest.days} days: its replacement has to be"
        yield Finding(issuer.name, "renewal", "note", f"{told} in service by {last:%F}")


def _expiry(part: str, one: CertificateExpiry) -> Finding:
    now = system_clock()
    result = _RESULTS[one.level(now)]
    return Finding(part, one.title, result, one.when(now))


def _backend(issuer: Issuer) -> Finding:
    try:
        issuer.ca.check(timeout=_CHECK_SECONDS)
    except BridgeError as error:
        why = f"{error}: {error.detail}" if error.detail else f"{error}"
        return Finding(issuer.name, "backend", "FAILED", why)
    return Finding(issuer.name, "backend", "ok", issuer.description.assurance)


def second_certificates(config: BridgeConfig, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield what `issuance.second_certificate` means for the issuing CAs."""
    building = [
        issuer.name
        for issuer in snapshot.issuers.values()
        if issuer.description.chooses_serial
    ]
    if not config.issuance.second_certificate:
        return
    detail = (
        f"a lost answer of {', '.join(building)} may be a second certificate that no "
        "caller has"
        if building
        else "true has no effect: no issuing CA here chooses serial numbers itself"
    )
    yield Finding("issuance", "second_certificate", "note", detail)


def _latched(config: BridgeConfig, snapshot: Snapshot) -> Iterator[Finding]:
    # What waits for an operator. An issuing CA with another certificate is used.
    stopped = StoppedCAs(config.ledger.latch)
    certificates = {each.certificate_sha256 for each in snapshot.issuers.values()}
    for entry in stopped.latched():
        what = "credential" if entry.kind == Kind.CREDENTIAL else "issuing CA"
        is_used = entry.kind == Kind.CREDENTIAL or entry.scope in certificates
        yield Finding(
            entry.name,
            "latch",
            "FAILED" if is_used else "note",
            f"the {what} is {entry.state}: {entry.reason}; see meshca ledger latch",
        )
    if trouble := stopped.trouble():
        yield Finding("ledger", "latch", "FAILED", trouble)


def _names(
    config: BridgeConfig, snapshot: Snapshot, issuer: Issuer
) -> Iterator[Finding]:
    replica = replicate(issuer.chain)
    # The same name may be an example of several rules.
    examples = [*dict.fromkeys(_examples(config, snapshot, issuer.name))]
    if not any(is_wanted for _, is_wanted in examples):
        told = "no call is routed to it by issuance.issuing_cas, a signer or a rule"
        yield Finding(issuer.name, "names", "note", told)
    for name, is_wanted in examples:
        try:
            issuer.chain.constraints.require_permitted([name])
            permitted, why = True, ""
        except BridgeError as error:
            permitted, why = False, f"{error}: {error.detail}"
        second = openssl_accepts(replica, replica.leaf([name], system_clock()))
        yield _verdict(issuer, name, is_wanted, (permitted, second), why)


def _examples(
    config: BridgeConfig, snapshot: Snapshot, issuing_ca: str
) -> Iterator[tuple[x509.GeneralName, bool]]:
    # A name, and whether the configuration wants certificates of this issuing CA for
    # it.
    rules = snapshot.rules
    for whom in rules.routes.get(ISTIO, {}).get(issuing_ca, ())[:_MOST_EXAMPLES]:
        for domain in snapshot.trust_domains:
            yield x509.UniformResourceIdentifier(str(_spiffe_id(domain, whom))), True
    istio = config.fronts.istio
    if istio is not None and issuing_ca in rules.policy_of(ISTIO).issuing_cas:
        for host in istio.tls.dns_names:
            yield x509.DNSName(host), True
    for whom in rules.routes.get(LINKERD, {}).get(issuing_ca, ())[:_MOST_EXAMPLES]:
        if snapshot.linkerd is not None:
            for name in _linkerd_names(snapshot.linkerd, whom):
                yield name, True
    foreign = "spiffe://meshca-check.invalid/ns/a/sa/b"
    yield x509.UniformResourceIdentifier(foreign), False
    yield x509.DNSName("meshca-check.invalid"), False


def _linkerd_names(
    linkerd: LinkerdNames, whom: RoutedCaller
) -> tuple[x509.GeneralName, ...]:
    # An account has no identity in Linkerd if its name is too long for a label, or the
    # identity too long for a DNS name: then another account of the namespace is used.
    for one in (whom, replace(whom, service_account=None)):
        with suppress(SubjectError, DeniedError):
            identity = linkerd.identity(*_named(one))
            return linkerd.leaf_names(identity, _spiffe_id(linkerd.trust_domain, one))
    return ()


def _named(whom: RoutedCaller) -> tuple[str, str]:
    # An account with a dot in its name has no identity in Linkerd: the part before the
    # dot is used.
    return whom.namespace or "a", (whom.service_account or "b").partition(".")[0]


def _spiffe_id(domain: TrustDomain, whom: RoutedCaller) -> SpiffeID:
    return SpiffeID.of_service_account(domain, *_named(whom))


def _verdict(
    issuer: Issuer,
    name: x509.GeneralName,
    is_wanted: bool,  # noqa: FBT001 - a column of a table
    opinions: tuple[bool, bool | None],
    why: str,
) -> Finding:
    permitted, second = opinions
    kind = "URI" if isinstance(name, x509.UniformResourceIdentifier) else "DNS"
    what = f"{kind} {name.value}"
    told = {True: "permits it", False: "refuses it", None: "is not installed"}[second]
    if permitted and second is False:
        detail = "the chain permits it here, and openssl verify refuses it"
        return Finding(issuer.name, what, "FAILED", detail)
    if is_wanted and not permitted:
        return Finding(issuer.name, what, "FAILED", f"no certificate for it: {why}")
    if is_wanted:
        return Finding(issuer.name, what, "ok", f"permitted; openssl verify {told}")
    if permitted:
        detail = "only the bridge's configuration refuses it: the chain does not"
        return Finding(issuer.name, what, "note", detail)
    return Finding(issuer.name, what, "ok", f"refused; openssl verify {told}")


def _once(problems: list[str]) -> Iterator[str]:
    # A problem that several tiers have is one finding.
    tiers: dict[str, list[tuple[str, str]]] = {}
    for problem in problems:
        found = _TIER.fullmatch(problem)
        place, tier, text = found.groups() if found else ("", "", problem)
        tiers.setdefault(text, []).append((place, tier))
    for text, ((place, _), *others) in tiers.items():
        also = "".join(f"; tier {tier} does, too" for _, tier in others)
        yield f"{place}{text}{also}"


def _exposure(issuer: Issuer) -> Iterator[Finding]:
    certificates = [certificate for _, certificate in issuer.chain.tiers()]
    for problem in _once(data_plane_problems(certificates)):
        yield Finding(issuer.name, "data planes", "note", problem)
    for exposure in exposure_of(certificates):
        yield Finding(
            issuer.name,
            f"if the issuing key were compromised, {exposure.data_plane}",
            "note",
            exposure.accepts,
        )


def fronts(config: BridgeConfig, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the address of each front, and the tokens that it accepts."""
    if (istio := config.fronts.istio) is not None:
        tokens = f"tokens for {' or '.join(istio.audiences)}"
        yield Finding("front", "istio", "ok", f"{istio.listen}, {tokens}")
        yield from _renewal(istio)
    linkerd, cluster = config.fronts.linkerd, config.linkerd_cluster()
    if linkerd is not None and snapshot.linkerd is not None and cluster is not None:
        tokens = f"tokens of {cluster.name} for {' or '.join(linkerd.audiences)}"
        names = f"identities end in {snapshot.linkerd.suffix}"
        yield Finding("front", "linkerd", "ok", f"{linkerd.listen}, {tokens}, {names}")
        if config.fronts.istio and {*linkerd.audiences} & {
            *config.fronts.istio.audiences
        }:
            shared = "both fronts accept the same audience: a token of one mesh is"
            yield Finding("front", "audiences", "note", f"{shared} valid in the other")


def _renewal(front: IstioConfig) -> Iterator[Finding]:
    if front.mtls_listen is not None and not front.mtls_identities:
        yield Finding(
            "front",
            "mtls_identities",
            "warning",
            "fronts.istio.mtls_listen is open, and every caller there is refused: list "
            "under fronts.istio.mtls_identities who may renew by certificate, such as "
            "[{namespaces: [shop], service_accounts: [vm]}], or remove mtls_listen",
        )
    if front.mtls_listen is None and front.mtls_identities:
        yield Finding(
            "front",
            "mtls_identities",
            "warning",
            "it has no effect without fronts.istio.mtls_listen: add that, or remove it",
        )


def given_pair(config: BridgeConfig) -> Iterator[Finding]:
    """Check a serving certificate that the configuration names."""
    tls = config.fronts.istio.tls if config.fronts.istio else None
    if tls is None or tls.certificate is None or tls.key is None:
        return
    part, what = "fronts.istio.tls", "serving certificate"
    try:
        pair = read_key_pair(tls.certificate, tls.key)
    except BridgeError as error:
        yield Finding(part, what, "FAILED", str(error))
        return
    if fault := pair.fault(system_clock()):
        yield Finding(part, what, "FAILED", f"{fault}: expected one that is valid")
        return
    leaf = x509.load_pem_x509_certificate(pair.certificate_chain_pem)
    end = _expiry(part, CertificateExpiry.of(leaf, "serving"))
    yield replace(end, what=what, detail=f"its key belongs to it, it {end.detail}")
