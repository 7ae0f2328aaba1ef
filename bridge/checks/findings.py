"""What `meshca check` has to say, and what it says of the fronts."""

from collections.abc import Iterator
from dataclasses import dataclass

from bridge.config import BridgeConfig
from bridge.errors import BridgeError
from bridge.snapshot.model import Snapshot
from bridge.system.clock import system_clock


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    part: str
    what: str
    result: str
    """`ok`, `note` or `FAILED`."""
    detail: str = ""


def fronts(config: BridgeConfig, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield what is listened on, and for whom."""
    if (istio := config.fronts.istio) is not None:
        tokens = f"tokens for {' or '.join(istio.audiences)}"
        yield Finding("front", "istio", "ok", f"{istio.listen}, {tokens}")
    linkerd, cluster = config.fronts.linkerd, config.linkerd_cluster()
    if linkerd is not None and snapshot.linkerd is not None and cluster is not None:
        tokens = f"tokens of {cluster.name} for {' or '.join(linkerd.audiences)}"
        names = f"identities end in {snapshot.linkerd.suffix}"
        yield Finding("front", "linkerd", "ok", f"{linkerd.listen}, {tokens}, {names}")
        if config.fronts.istio and {*linkerd.audiences} & {
            *config.fronts.istio.audiences
        }:
            shared = "both fronts take the same audience: a token of one mesh is one"
            yield Finding("front", "audiences", "note", f"{shared} of the other, too")


def given_pair(config: BridgeConfig) -> Iterator[Finding]:
    """Look at a serving certificate that the configuration names."""
    tls = config.fronts.istio.tls if config.fronts.istio else None
    if tls is None or tls.certificate is None or tls.key is None:
        return
    from bridge.x509.key_pair import read_key_pair  # noqa: PLC0415 - rarely needed

    part, what = "fronts.istio.tls", "serving certificate"
    try:
        pair = read_key_pair(tls.certificate, tls.key)
    except BridgeError as error:
        yield Finding(part, what, "FAILED", str(error))
        return
    now = system_clock()
    if fault := pair.fault(now):
        yield Finding(part, what, "FAILED", f"{fault}: expected one that is valid")
        return
    left = (pair.not_after - now).days
    yield Finding(part, what, "ok", f"its key belongs to it, {left} days left")
