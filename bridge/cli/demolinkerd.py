"""The second half of `meshca demo`: Linkerd's proxies at the same bridge."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from cryptography import x509

from bridge.cli import demo_scenario as stage
from bridge.cli.chain_tree import chain_tree
from bridge.cli.console import results
from bridge.client.linkerd import LinkerdReply, LinkerdRequest, certify
from bridge.errors import BackendRefusedError, LedgerError, MisissuedError
from bridge.ledger.verify import read_journal
from bridge.system.clock import system_clock
from bridge.x509.pem import parse_certificates

Result = TypeVar("Result")
_out = results()


def identity_of(namespace: str, service_account: str) -> str:
    """Return a service account's identity in the demo's mesh."""
    return (
        f"{service_account}.{namespace}.serviceaccount.identity.linkerd."
        f"{stage.TRUST_DOMAIN}"
    )


def request(
    scenario: stage.Scenario, address: str, namespace: str, service_account: str
) -> LinkerdRequest:
    """Return what a proxy of that service account asks for."""
    token = scenario.cluster.token(
        namespace, service_account, system_clock(), stage.LINKERD_AUDIENCE
    )
    roots = scenario.roots
    return LinkerdRequest(
        address=address,
        anchors=parse_certificates(roots.read_bytes(), str(roots)),
        identity=identity_of(namespace, service_account),
        token=token.encode("ascii"),
    )


def show(
    scenario: stage.Scenario,
    wanted: LinkerdRequest,
    say: Callable[[str, Callable[[], LinkerdReply]], LinkerdReply],
) -> None:
    """Get a certificate over Linkerd's API, and show what was checked.

    Args:
        scenario: Has the ledger.
        wanted: What to ask for.
        say: Tells what is being done, and does it.
    """
    answer = say(
        "asking over Linkerd's API, in the clear, as a proxy does",
        lambda: certify(wanted),
    )
    _out.print()
    _out.print(chain_tree(answer.certificates()))
    _out.print("\n[bold]checked[/]")
    for text in _checks(scenario, answer, wanted.identity):
        _out.print(f"  ok  {text}")


def _checks(
    scenario: stage.Scenario, answer: LinkerdReply, identity: str
) -> Iterator[str]:
    leaf = answer.leaf
    yield "a proxy takes it: path to the root, usages, name and key, as it checks them"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    if [*names.value] != [x509.DNSName(identity)] or not names.critical:
        raise MisissuedError(f"the leaf's names are not {identity} alone")
    if leaf.subject.rdns:
        raise MisissuedError("the leaf has a subject")
    yield f"its only name is {identity}; the CSR's subject is gone"
    left = leaf.not_valid_after_utc - answer.valid_until
    if left <= timedelta(0):
        raise MisissuedError("the proxy is told to keep it for too long")
    yield f"the proxy is told that it ends {left.seconds // 60} minutes before it does"
    digest = hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()
    rows = read_journal(scenario.folder / "journal")
    if not any(row.values.get("tbs_sha256") == digest for _, row in rows):
        raise LedgerError("the certificate is not on record")
    yield f"the ledger had it before it was signed: TBS digest {digest[:16]}..."


def refusal(wanted: LinkerdRequest, other: str) -> None:
    """Ask for somebody else's name with a token of one's own, and show the answer.

    Args:
        wanted: What would be answered.
        other: The identity to ask for instead.
    """
    try:
        certify(replace(wanted, identity=other))
    except BackendRefusedError as error:
        answer = str(error).partition(": ")[2]
    else:
        raise MisissuedError("another workload's identity was not refused")
    if "did not match provided token" not in answer:
        raise MisissuedError(f"an identity was refused for another reason: {answer}")
    _out.print(f"  {other}, with the token of another workload:", markup=False)
    _out.print(f"  {answer}", markup=False)
