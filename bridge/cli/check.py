"""`meshca check`: would this configuration serve, and what would it let through?"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace

import typer
from cryptography import x509
from rich.markup import escape
from rich.table import Table

from bridge.checks.findings import Finding, fronts, given_pair
from bridge.checks.ledger_storage import ledger_places
from bridge.checks.rule_summary import terms
from bridge.checks.startup import with_places, with_rest
from bridge.cli.console import ConfigOption, OutputOption, print_table, warn
from bridge.config import BridgeConfig, read
from bridge.dataplanes.exposure import exposure_of
from bridge.dataplanes.planes import data_plane_problems
from bridge.errors import BridgeError, ConfigError, DeniedError, SubjectError
from bridge.hierarchy.replica import openssl_accepts, replicate
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rules import ISTIO, LINKERD, Whom
from bridge.snapshot.builder import Assembly
from bridge.snapshot.model import Issuer, Snapshot
from bridge.spiffe import SpiffeID, TrustDomain
from bridge.system.clock import system_clock

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
_CHECK_SECONDS = 10.0
_MOST_EXAMPLES = 4
"""Of rules that lead to one issuing CA: each name costs a process of openssl."""
_TIER = re.compile(
    r"(the certificate of tier ([0-9]+) \(.*?\) )"
    r"((?:has|constrains|permits|excludes) .*)"
)


@app.command()
def check(*, config: ConfigOption, output: OutputOption = "text") -> None:
    """Load the configuration, open every backend and prove what names may pass.

    Signs nothing with a real key: names are proven on a throwaway chain of the same
    shape. Exits with 1 if anything is wrong.
    """
    try:
        found = read(config)
    except ConfigError as error:
        raise with_rest(error, config) from error
    assembly = Assembly(config=found, clock=system_clock, warn=warn)
    with ExitStack() as stack:
        try:
            snapshot = assembly.snapshot()
        except BridgeError as error:
            raise with_places(error, found) from error
        stack.callback(snapshot.clusters.close)
        for issuer in snapshot.issuers.values():
            stack.callback(issuer.ca.close)
        findings = [*_findings(found, snapshot)]
    if output == "json":
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        _print(findings)
    if any(finding.result == "FAILED" for finding in findings):
        raise typer.Exit(1)


def _findings(config: BridgeConfig, snapshot: Snapshot) -> Iterator[Finding]:
    yield Finding("configuration", "file", "ok", "every key known and consistent")
    for whom, what in terms(config, snapshot.rules):
        yield Finding("issuance", whom, "ok", what)
    for issuer in snapshot.issuers.values():
        yield from _tiers(issuer)
        yield _backend(issuer)
        yield from _names(config, snapshot, issuer)
        yield from _exposure(issuer)
    for cluster in config.clusters:
        domain = snapshot.clusters.trust_domain_of(cluster.name)
        yield Finding("cluster", cluster.name, "ok", f"trust domain {domain}")
    yield from fronts(config, snapshot)
    for problem in snapshot.clusters.problems():
        yield Finding("cluster", "token keys", "note", problem)
    yield from given_pair(config)
    for key, fine, problem in ledger_places(config):
        yield Finding("ledger", key, "FAILED" if problem else "ok", problem or fine)


def _tiers(issuer: Issuer) -> Iterator[Finding]:
    for tier, certificate in issuer.chain.tiers():
        left = certificate.not_valid_after_utc - system_clock()
        yield Finding(
            issuer.name,
            tier,
            "ok",
            f"{certificate.subject.rfc4514_string()}, {left.days} days left",
        )


def _backend(issuer: Issuer) -> Finding:
    try:
        issuer.ca.check(timeout=_CHECK_SECONDS)
    except BridgeError as error:
        return Finding(issuer.name, "backend", "FAILED", f"{error} {error.detail}")
    return Finding(issuer.name, "backend", "ok", issuer.description.assurance)


def _names(
    config: BridgeConfig, snapshot: Snapshot, issuer: Issuer
) -> Iterator[Finding]:
    replica = replicate(issuer.chain)
    # The same name may be an example of several rules.
    examples = [*dict.fromkeys(_examples(config, snapshot, issuer.name))]
    if not any(is_wanted for _, is_wanted in examples):
        told = "no call is led to it: neither issuance.issuing_cas, a signer nor a rule"
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


def _linkerd_names(linkerd: LinkerdNames, whom: Whom) -> tuple[x509.GeneralName, ...]:
    # An account may have no identity in Linkerd, as its name is too long for a label,
    # or all of it too long for a DNS name: then another of its namespace will do.
    for one in (whom, replace(whom, service_account=None)):
        with suppress(SubjectError, DeniedError):
            identity = linkerd.identity(*_named(one))
            return linkerd.leaf_names(identity, _spiffe_id(linkerd.trust_domain, one))
    return ()


def _named(whom: Whom) -> tuple[str, str]:
    # Where a rule is for an account with a dot in its name, which has no identity in
    # Linkerd, what is before the dot will do.
    return whom.namespace or "a", (whom.service_account or "b").partition(".")[0]


def _spiffe_id(domain: TrustDomain, whom: Whom) -> SpiffeID:
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
    # The same of several tiers is one thing to know.
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
            f"a thief of the key, {exposure.data_plane}",
            "note",
            exposure.accepts,
        )


def _print(findings: list[Finding]) -> None:
    colours = {"ok": "green", "note": "yellow", "FAILED": "bold red"}
    table = Table("part", "what", "", "detail", box=None, pad_edge=False)
    for finding in findings:
        colour = colours[finding.result]
        table.add_row(
            escape(finding.part),
            escape(finding.what),
            f"[{colour}]{finding.result}[/]",
            escape(finding.detail),
        )
    print_table(table)
