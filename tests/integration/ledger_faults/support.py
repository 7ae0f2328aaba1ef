"""A bridge whose ledger has a fault, seen by a client and by an operator."""

from pathlib import Path
from typing import Any

from bridge.client.istio import IstioRequest, ask
from bridge.errors import BackendRefusedError, LedgerError
from tests.support.harness.archive import compared
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.harness.workers import await_true


def status(bridge: Bridge, *, token: str | None = None, ttl_seconds: int = 3600) -> str:
    """Ask for a certificate; return `OK`, or the status of the refusal."""
    wanted = IstioRequest(
        address=bridge.address,
        roots=bridge.roots.read_bytes(),
        token=bridge.token() if token is None else token,
        server_name=SERVER_NAME,
        ttl_seconds=ttl_seconds,
    )
    try:
        ask(wanted)
    except BackendRefusedError as error:
        return str(error).split(": ")[1]
    return "OK"


def ready(bridge: Bridge) -> tuple[bool, str]:
    """Return whether it is, and what it says."""
    code, text = bridge.get("/readyz")
    return code == 200, text


def signed(bridge: Bridge) -> float:
    """Return how often the issuing CA was asked to sign."""
    return bridge.metric("meshca_backend_calls_total")


def workload_rows(bridge: Bridge, kind: str) -> list[dict[str, Any]]:
    """Return the rows of clients' certificates."""
    return bridge.rows(kind=kind, purpose="workload", front="istio")


def await_archive(bridge: Bridge) -> None:
    """Wait until the archive holds what the journal does."""

    def agrees() -> bool:
        try:
            return compared(bridge.folder).agrees
        except LedgerError:
            return False  # it is being made

    await_true(agrees)


def segment(bridge: Bridge, number: int = 1) -> Path:
    """Return a segment of the only writer."""
    return bridge.folder / f"journal/w0/{number:08d}.jsonl"
