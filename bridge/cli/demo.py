"""`meshca demo`: the main job, for real, on throwaway keys."""

import hashlib
import logging
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from cryptography import x509

from bridge.cli import demo_scenario as stage
from bridge.cli import demolinkerd
from bridge.cli.chain_tree import chain_tree
from bridge.cli.console import complain, results
from bridge.client.istio import IstioReply, IstioRequest, ask
from bridge.config import read
from bridge.errors import BackendRefusedError, LedgerError, MisissuedError
from bridge.ledger.verify import read_journal, verify
from bridge.process.composition import Process
from bridge.spiffe import SpiffeID
from bridge.system.clock import system_clock
from bridge.system.linux import harden
from bridge.x509.path import validate_chain
from bridge.x509.pem import parse_certificates

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
Result = TypeVar("Result")
_out = results()
_NAMESPACE, _ACCOUNT = "shop", "web"


@app.command()
def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to put everything; new or empty."),
    ] = None,
) -> None:
    """Run a bridge under a throwaway hierarchy and get certificates from it.

    Makes an offline root, a regional intermediate and an issuing CA with name
    constraints; serves both fronts, Istio's and Linkerd's, on the loopback address;
    asks as a workload of each mesh would; checks what comes back; and shows refusals.
    Exits with 1 if anything is not as it must be.
    """
    logging.basicConfig(level="ERROR")
    harden()
    began = time.monotonic()
    with ExitStack() as stack:
        if folder is None and keep:
            folder = Path(tempfile.mkdtemp(prefix="meshca-demo-"))
        elif folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        elif folder.exists() and any(folder.iterdir()):
            complain(f"{folder}: expected a new or empty folder")
            raise typer.Exit(1)
        scenario = _say(
            "making an offline root, a regional intermediate and an issuing CA",
            lambda: stage.prepare(folder, system_clock),
        )
        process = Process(read(scenario.configuration), warn=lambda _text: None)
        with _running(process):
            _out.print("\n[bold]Istio[/]")
            _show(scenario, process)
            _out.print("\n[bold]Linkerd[/]")
            wanted = demolinkerd.wish(scenario, process, _NAMESPACE, _ACCOUNT)
            demolinkerd.show(scenario, wanted, _say)
            _out.print("\n[bold]refused[/]")
            _refusal(scenario)
            demolinkerd.refusal(wanted, demolinkerd.identity_of("payments", "api"))
            took = time.monotonic() - began
            _out.print(f"\n[bold green]all as it must be[/], in {took:.1f} s")
            if keep:
                _keep(scenario, process)
        _require_ledger(scenario)


@contextmanager
def _running(process: Process) -> Iterator[None]:
    _say("starting the bridge", process.start)
    try:
        yield
    finally:
        process.stop()


def _show(scenario: stage.Scenario, process: Process) -> None:
    wanted = f"spiffe://{stage.TRUST_DOMAIN}/ns/{_NAMESPACE}/sa/{_ACCOUNT}"
    asked: dict[str, IstioReply] = {}
    for key in ("rsa2048", "p256"):
        asked[key] = _say(
            f"asking with a service-account token of {_NAMESPACE}/{_ACCOUNT}, "
            f"{key} key",
            lambda key=key: ask(_request(scenario, process, key=key)),  # type: ignore[misc]
        )
    _say(
        "asking again with that certificate instead of a token",
        lambda: ask(_renewal(scenario, process, asked["p256"])),
    )
    certificates = _certificates(asked["p256"])
    _out.print()
    _out.print(chain_tree(certificates))
    _out.print("\n[bold]checked[/]")
    for text in _checks(scenario, certificates, wanted):
        _out.print(f"  ok  {text}")


def _request(
    scenario: stage.Scenario,
    process: Process,
    *,
    key: str = "p256",
) -> IstioRequest:
    return IstioRequest(
        address=process.server.istio_address,
        roots=scenario.roots.read_bytes(),
        token=scenario.cluster.token(_NAMESPACE, _ACCOUNT, system_clock()),
        cluster=scenario.cluster.name,
        key=key,
        server_name=stage.SERVER_NAME,
    )


def _renewal(
    scenario: stage.Scenario, process: Process, answer: IstioReply
) -> IstioRequest:
    return IstioRequest(
        address=process.server.mtls_address,
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
    digest = hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()
    rows = read_journal(scenario.folder / "journal")
    if not any(row.values.get("tbs_sha256") == digest for _, row in rows):
        raise LedgerError("the certificate is not on record")
    yield f"the ledger had it before it was signed: TBS digest {digest[:16]}..."


def _refusal(scenario: stage.Scenario) -> None:
    # The same bridge with a mistake in its configuration: the chain holds all the same.
    process = Process(read(scenario.mistaken), warn=lambda _text: None)
    process.start()
    try:
        ask(_request(scenario, process))
    except BackendRefusedError as error:
        answer = str(error).partition(": ")[2]
    else:
        raise MisissuedError("a name outside the constraints was not refused")
    finally:
        process.stop()
    if "constraint.permitted" not in answer:
        raise MisissuedError(f"a name was refused for another reason: {answer}")
    _out.print(
        f"  spiffe://{stage.FOREIGN_TRUST_DOMAIN}/ns/{_NAMESPACE}/sa/{_ACCOUNT}, which "
        "a mistaken configuration\n  allows and the chain's name constraints do not:"
    )
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


def _keep(scenario: stage.Scenario, process: Process) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token = scenario.folder / "token"
    token.write_text(
        scenario.cluster.token(_NAMESPACE, _ACCOUNT, system_clock()), "ascii"
    )
    _out.print(f"\nleft running; everything is in {scenario.folder}", markup=False)
    for what, address in process.addresses().items():
        _out.print(f"  {what}: {address}", markup=False)
    _out.print(
        f"  {_called()} request --address {process.server.istio_address} --roots "
        f"{scenario.roots} --token-file {token} --server-name {stage.SERVER_NAME}",
        markup=False,
    )
    linkerd = scenario.folder / "linkerd-token"
    wanted = demolinkerd.wish(scenario, process, _NAMESPACE, _ACCOUNT)
    linkerd.write_bytes(wanted.token)
    _out.print(
        f"  {_called()} request --front linkerd --address {wanted.address} --roots "
        f"{scenario.roots} --token-file {linkerd} --identity {wanted.identity}",
        markup=False,
    )
    _out.print("Ctrl-C ends it")
    stop.wait()
