"""`meshca demo`: run a bridge on throwaway keys and get certificates from it."""

import hashlib
import http.client
import logging
import queue
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from bridge.cli.chain_tree import print_chain
from bridge.cli.console import complain, results
from bridge.cli.demo_setup import scenario as stage
from bridge.cli.demo_setup.backends import Backend, issuing_key, require_parts
from bridge.client.istio import IstioReply, IstioRequest, ask, renew
from bridge.client.linkerd import LinkerdReply, LinkerdRequest, certify
from bridge.config import ConfigText
from bridge.errors import BackendRefusedError, LedgerError, MisissuedError
from bridge.ledger.verify import read_journal, verify
from bridge.process import parent
from bridge.spiffe import SpiffeID
from bridge.system.clock import system_clock
from bridge.system.linux import harden
from bridge.x509.path import validate_chain
from bridge.x509.pem import parse_certificates

app = typer.Typer(add_completion=False, rich_markup_mode=None)
Result = TypeVar("Result")
_out = results()
_NAMESPACE, _ACCOUNT = "shop", "web"
_ISTIO, _ISTIO_MTLS = "fronts.istio.listen", "fronts.istio.mtls_listen"
_LINKERD = "fronts.linkerd.listen"
_MAKING = "making an offline root, a regional intermediate and an issuing CA"
_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 5.0

Addresses = Mapping[str, str]
"""The addresses of the bridge, `host:port` by the key of the configuration."""


@app.command()
def demo(
    *,
    backend: Annotated[
        Backend, typer.Option(help="Where the issuing key is.")
    ] = "file",
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the bridge running until Ctrl-C.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The folder for all files; new or empty."),
    ] = None,
) -> None:
    """Run a bridge under a throwaway hierarchy and get certificates from it.

    Makes an offline root, a regional intermediate and an issuing CA with name
    constraints. Serves both fronts, Istio's and Linkerd's, on the loopback address.
    Requests certificates as a workload of each mesh would, checks them, and shows
    refusals. Exits with 1 if a check fails.

    The issuing key is made in a file, in a token of SoftHSM, or in a dev server of
    OpenBao or Vault. Programs that this needs are started for the demo and end with it.
    """
    logging.basicConfig(level="ERROR")
    harden()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    require_parts(backend)
    began = time.monotonic()
    with ExitStack() as stack:
        if folder is None and keep:
            folder = Path(tempfile.mkdtemp(prefix="meshca-demo-"))
        elif folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        elif folder.exists() and any(folder.iterdir()):
            complain(f"{folder}: expected a new or empty folder")
            raise typer.Exit(1)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scenario = _prepared(backend, folder.absolute(), stack)
        with _running(scenario.configuration) as addresses:
            _out.print("\n[bold]Istio[/]")
            _show(scenario, addresses)
            _out.print("\n[bold]Linkerd[/]")
            wanted = _linkerd_request(
                scenario, addresses[_LINKERD], _NAMESPACE, _ACCOUNT
            )
            _show_linkerd(scenario, wanted)
            _out.print("\n[bold]refused[/]")
            _refusal(scenario)
            _show_linkerd_refusal(wanted, _identity_of("payments", "api"))
            took = time.monotonic() - began
            _out.print(f"\n[bold green]every check passed[/], in {took:.1f} s")
            if keep:
                _keep(scenario, addresses)
        _require_ledger(scenario)


def _end(number: int, _frame: object) -> None:
    # As an error would: what was started ends, and what was made is removed.
    raise SystemExit(128 + number)


def _prepared(backend: Backend, folder: Path, stack: ExitStack) -> stage.Scenario:
    if backend == "file":
        return _say(_MAKING, lambda: stage.prepare(folder, system_clock))
    key = _say(
        f"opening a place for the issuing key: {backend}",
        lambda: stack.enter_context(issuing_key(backend, folder)),
    )
    return _say(
        f"{_MAKING}, whose key is made in {key.place}",
        lambda: stage.prepare(folder, system_clock, key),
    )


@contextmanager
def _running(configuration: Path) -> Iterator[Addresses]:
    # As `meshca serve` runs it, with the parent in a thread of this process.
    source = ConfigText.read(configuration)
    events: parent.Events = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(parent.run, source, events, log_level="ERROR")
        try:
            admin = source.config.admin.listen
            _say("starting the bridge", lambda: _await_ready(admin, running))
            yield {**source.config.fronts.addresses(), "admin.listen": admin}
        finally:
            events.put(signal.SIGTERM)
        running.result()


def _await_ready(admin: str, running: "Future[None]") -> None:
    while not wait((running,), _LOOK_SECONDS).done:
        connection = http.client.HTTPConnection(admin, timeout=_PATIENCE_SECONDS)
        with suppress(OSError), closing(connection):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == HTTPStatus.OK:
                return
    running.result()


def _show(scenario: stage.Scenario, addresses: Addresses) -> None:
    wanted = f"spiffe://{stage.TRUST_DOMAIN}/ns/{_NAMESPACE}/sa/{_ACCOUNT}"
    asked: dict[str, IstioReply] = {}
    for key in ("rsa2048", "p256"):
        asked[key] = _say(
            f"requesting with a service-account token of {_NAMESPACE}/{_ACCOUNT}, "
            f"{key} key",
            lambda key=key: ask(_request(scenario, addresses, key=key)),  # type: ignore[misc]
        )
    _say(
        "renewing with that certificate instead of a token",
        lambda: renew(_renewal(scenario, addresses, asked["p256"])),
    )
    certificates = _certificates(asked["p256"])
    _out.print()
    print_chain(certificates)
    _out.print("\n[bold]checked[/]")
    for text in _checks(scenario, certificates, wanted):
        _out.print(f"  ok  {text}")


def _request(
    scenario: stage.Scenario,
    addresses: Addresses,
    *,
    key: str = "p256",
) -> IstioRequest:
    return IstioRequest(
        address=addresses[_ISTIO],
        roots=scenario.roots.read_bytes(),
        token=scenario.cluster.token(_NAMESPACE, _ACCOUNT, system_clock()),
        cluster=scenario.cluster.name,
        key=key,
        server_name=stage.SERVER_NAME,
    )


def _renewal(
    scenario: stage.Scenario, addresses: Addresses, answer: IstioReply
) -> IstioRequest:
    return IstioRequest(
        address=addresses[_ISTIO_MTLS],
        roots=scenario.roots.read_bytes(),
        certificate="".join(answer.cert_chain[:-1]).encode("ascii"),
        certificate_key=answer.key_pem,
        server_name=stage.SERVER_NAME,
    )


def _certificates(answer: IstioReply) -> list[x509.Certificate]:
    return [
        certificate
        for text in answer.cert_chain
        for certificate in parse_certificates(text.encode("ascii"), "the answer")
    ]


def _checks(
    scenario: stage.Scenario, certificates: list[x509.Certificate], wanted: str
) -> Iterator[str]:
    leaf, issuing, *between, anchor = certificates
    chain = validate_chain(
        issuing, between, [anchor], now=system_clock(), source="the answer"
    )
    yield "the chain ends in the offline root, in order, each tier signed by the next"
    leaf.verify_directly_issued_by(issuing)
    yield "the issuing CA signed the leaf"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    if found != [wanted] or str(SpiffeID.parse(wanted)) != wanted:
        raise MisissuedError(f"the leaf's names are {found}, not {wanted}")
    yield f"its only name is {wanted}, from the token and not from the CSR"
    chain.constraints.require_permitted([*names])
    yield "that name is within the name constraints of every tier"
    if leaf.not_valid_after_utc > chain.not_after:
        raise MisissuedError("the leaf outlives its chain")
    yield "the leaf ends before its chain does"
    yield _record(scenario, leaf)


def _record(scenario: stage.Scenario, leaf: x509.Certificate) -> str:
    # A backend that builds certificates itself is asked before there is a digest.
    digest = hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()
    whole = leaf.fingerprint(hashes.SHA256()).hex()
    for _, row in read_journal(scenario.folder / "journal"):
        if row.values.get("tbs_sha256") == digest:
            when = "before it was signed"
            return f"the ledger recorded it {when}: TBS digest {digest[:16]}..."
        if row.values.get("certificate_sha256") == whole:
            return f"the ledger recorded it before it was sent: digest {whole[:16]}..."
    raise LedgerError("the certificate is not on record")


def _refusal(scenario: stage.Scenario) -> None:
    # The same bridge with a mistake in its configuration: the chain still refuses.
    with _running(scenario.mistaken) as addresses:
        try:
            ask(_request(scenario, addresses))
        except BackendRefusedError as error:
            answer = str(error).partition(": ")[2]
        else:
            raise MisissuedError("a name outside the constraints was not refused")
    if "constraint.permitted" not in answer:
        raise MisissuedError(f"a name was refused for another reason: {answer}")
    _out.print(
        f"  spiffe://{stage.FOREIGN_TRUST_DOMAIN}/ns/{_NAMESPACE}/sa/{_ACCOUNT}, which "
        "a mistaken configuration\n  allows and the chain's name constraints do not:"
    )
    _out.print(f"  {answer}", markup=False)


def _identity_of(namespace: str, service_account: str) -> str:
    return (
        f"{service_account}.{namespace}.serviceaccount.identity.linkerd."
        f"{stage.TRUST_DOMAIN}"
    )


def _linkerd_request(
    scenario: stage.Scenario, address: str, namespace: str, service_account: str
) -> LinkerdRequest:
    token = scenario.cluster.token(
        namespace, service_account, system_clock(), stage.LINKERD_AUDIENCE
    )
    roots = scenario.roots
    return LinkerdRequest(
        address=address,
        anchors=parse_certificates(roots.read_bytes(), str(roots)),
        identity=_identity_of(namespace, service_account),
        token=token.encode("ascii"),
    )


def _show_linkerd(scenario: stage.Scenario, wanted: LinkerdRequest) -> None:
    answer = _say(
        "requesting over Linkerd's API, without TLS, as a proxy does",
        lambda: certify(wanted),
    )
    _out.print()
    print_chain(answer.certificates())
    _out.print("\n[bold]checked[/]")
    for text in _linkerd_checks(scenario, answer, wanted.identity):
        _out.print(f"  ok  {text}")


def _linkerd_checks(
    scenario: stage.Scenario, answer: LinkerdReply, identity: str
) -> Iterator[str]:
    leaf = answer.leaf
    yield "a proxy accepts it, by its own checks: path to the root, usages, name, key"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    if [*names.value] != [x509.DNSName(identity)] or not names.critical:
        raise MisissuedError(f"the leaf's names are not {identity} alone")
    if leaf.subject.rdns:
        raise MisissuedError("the leaf has a subject")
    yield f"its only name is {identity}; the CSR's subject is gone"
    left = leaf.not_valid_after_utc - answer.valid_until
    if left <= timedelta(0):
        raise MisissuedError("the proxy is given an expiry after the real one")
    early = f"the proxy is given an expiry {left.seconds // 60} minutes early"
    yield f"{early}, to spread renewals"
    yield _record(scenario, leaf)


def _show_linkerd_refusal(wanted: LinkerdRequest, other: str) -> None:
    # Asks for the name of another workload, with a token of its own.
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


def _require_ledger(scenario: stage.Scenario) -> None:
    report = verify(
        scenario.folder / "journal", scenario.folder / "journal-heads.jsonl"
    )
    if not report.intact:
        raise LedgerError(f"the ledger does not verify: {report}")
    rows = sum(writer.rows for writer in report.writers)
    _out.print(f"the ledger verifies: {rows} rows in one chain, its head signed")


def _say(text: str, act: Callable[[], Result]) -> Result:
    began = time.monotonic()
    result = act()
    _out.print(f"[dim]{(time.monotonic() - began) * 1000:6.0f} ms[/]  {text}")
    return result


def _called() -> str:
    # As it was called: it need not be on PATH.
    path = Path(sys.argv[0])
    return "meshca" if path.name == "__main__.py" else shlex.quote(str(path))


def _keep(scenario: stage.Scenario, addresses: Addresses) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token = scenario.folder / "token"
    token.write_text(
        scenario.cluster.token(_NAMESPACE, _ACCOUNT, system_clock()), "ascii"
    )
    _out.print(f"\nleft running; all files are in {scenario.folder}", markup=False)
    for what, address in addresses.items():
        _out.print(f"  {what}: {address}", markup=False)
    _out.print(
        f"  {_called()} request --address {addresses[_ISTIO]} --roots "
        f"{scenario.roots} --token-file {token} --server-name {stage.SERVER_NAME}",
        markup=False,
    )
    linkerd = scenario.folder / "linkerd-token"
    wanted = _linkerd_request(scenario, addresses[_LINKERD], _NAMESPACE, _ACCOUNT)
    linkerd.write_bytes(wanted.token)
    _out.print(
        f"  {_called()} request --front linkerd --address {wanted.address} --roots "
        f"{scenario.roots} --token-file {linkerd} --identity {wanted.identity}",
        markup=False,
    )
    _out.print("Ctrl-C ends it")
    stop.wait()
