"""One measured run of Istio's CA, or of a front of the bridge, under `caload`.

The server is alone on one core and the client on the other, for both alike.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from bridge.x509.algorithm import KeyAlgorithm
from tests.support.harness.real_process import PEER_SERVER_NAME, Bridge
from tests.support.parts import builds, netports

SERVER_CORE, CLIENT_CORE = "0", "1"
CONNECTIONS, IN_FLIGHT = 8, 32
_WARMUP_SECONDS = 2
_START_SECONDS = 20.0
_LINKERD = Path(__file__).with_name("linkerd_identity")


class BenchError(Exception):
    """The measurement cannot be made, or is not what it says it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What is measured with and against."""

    client: Path
    peer: Path
    """Istio's CA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the load client saw in one run."""

    per_second: float
    cpu_us: float
    """CPU time of the server for each reply, in microseconds."""
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    duplicates: int
    """Serial numbers that came more than once."""
    other_percent: float
    """The machine's CPU time that neither server nor client used, of two cores."""
    beside_us: float = 0.0
    """CPU time of the processes of `Load.beside` for each reply, in microseconds."""
    ready_seconds: float | None = None
    good: int = 0
    """Certificates that the client counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of a server, and for how long."""

    programs: Programs
    ca_key: KeyAlgorithm
    csr: str
    seconds: float
    front: str = "istio"
    """`istio` or `linkerd`."""
    tokens_are_for_one: bool = True
    """Whether a token that was used twice spoils the run."""
    beside: Sequence[int] = ()
    """Processes that work for the server, and are none of its own."""
    connections: int = CONNECTIONS
    in_flight: int = IN_FLIGHT

    @property
    def all_seconds(self) -> float:
        """How long the server works, the warm-up included."""
        return self.seconds + _WARMUP_SECONDS


def build(source: Path) -> Programs:
    """Build the load client and Istio's CA from a copy of `source`.

    Raises:
        BenchError: `source` is not there.
        BuildError: The programs cannot be built.
    """
    copy = _copy(source)
    return Programs(
        client=builds.build(copy, "./cmd/caload"),
        peer=builds.build(copy, "./cmd/istioca"),
    )


def build_linkerd(source: Path) -> Path:
    """Build what stands in for linkerd-identity, in the Go module of the peers.

    Raises:
        BenchError: `source` is not there.
        BuildError: The program cannot be built.
    """
    return builds.build(_copy(source, _LINKERD), f"./cmd/{_LINKERD.name}")


def _copy(source: Path, *commands: Path) -> Path:
    if not (source / "go.mod").is_file():
        raise BenchError(
            f"the peers are not in {source}: set MESHCA_PEERS to the folder that has "
            "cmd/caload and cmd/istioca"
        )
    state = sha256()
    for folder in (source, *commands):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                state.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    # The build completes go.sum, and that folder is not ours to write to.
    copy = builds.cache_folder() / "peers" / state.hexdigest()[:24]
    shutil.copytree(source, copy, dirs_exist_ok=True)
    for folder in commands:
        shutil.copytree(folder, copy / "cmd" / folder.name, dirs_exist_ok=True)
    return copy


def measure_peer(load: Load, folder: Path) -> Result:
    """Measure Istio's CA, which asks nobody for a credential here."""
    with peer(load.programs.peer, load.ca_key, folder) as running:
        watch = {"server": running.pid}
        return run_client(load, running.address, running.roots, watch)


def measure_bridge(load: Load, tokens: Path, bridge: Bridge) -> Result:
    """Measure the bridge with everything that it does for a request.

    Args:
        load: What is asked.
        tokens: One token a line; each is to be used once.
        bridge: Not started yet.

    Raises:
        BenchError: A token was used twice, or the ledger does not hold what was issued.
    """
    with bridge:
        result = measure_running(load, tokens, bridge)
    require_on_record(bridge, result)
    return Result(
        **{name: getattr(result, name) for name in Result.__dataclass_fields__}
        | {"ready_seconds": bridge.ready_seconds}
    )


def measure_running(load: Load, tokens: Path, bridge: Bridge) -> Result:
    """Measure a bridge that serves already. See `measure_bridge`.

    Raises:
        BenchError: A token was used twice.
    """
    address = {"istio": bridge.address, "linkerd": bridge.linkerd_address}[load.front]
    before = bridge.metric("meshca_requests_total", front=load.front)
    result = run_client(load, address, bridge.roots, bridge.watched, tokens)
    asked = bridge.metric("meshca_requests_total", front=load.front) - before
    with tokens.open("rb") as file:
        count = sum(1 for _ in file)
    if load.tokens_are_for_one and not 0 < asked <= count:
        raise BenchError(f"{asked:.0f} requests with {count} tokens: each is for one")
    return result


def require_on_record(bridge: Bridge, *results: Result) -> None:
    """Hold the ledger of a bridge that has ended to what its clients counted.

    Raises:
        BenchError: It does not verify, or lacks a certificate.
    """
    checked = bridge.run("ledger", "verify")
    if checked.returncode:
        raise BenchError(f"the ledger does not verify: {checked.stderr}")
    issued = len(bridge.rows(kind="issued", purpose="workload"))
    good = sum(result.good for result in results)
    if issued < good:
        raise BenchError(f"{issued} certificates on record, and {good} were given out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A peer while it runs."""

    address: str
    roots: Path
    """The file of its root certificate."""
    pid: int


@contextmanager
def peer(program: Path, ca_key: KeyAlgorithm, folder: Path) -> Iterator[Peer]:
    """Run Istio's CA on the server's core, asking nobody for a credential.

    Raises:
        BenchError: It does not start.
    """
    with serving_peer(program, folder, "-auth", "none", "-ca-key", ca_key) as running:
        yield running


@contextmanager
def serving_peer(program: Path, folder: Path, *options: str) -> Iterator[Peer]:
    """Run a peer on the server's core.

    Args:
        program: What serves.
        folder: For its log and its root certificate.
        options: Of the program, but for its address.

    Raises:
        BenchError: It does not start.
    """
    address = netports.address()
    roots = folder / "peer-root.pem"
    roots.unlink(missing_ok=True)
    command = ["taskset", "-c", SERVER_CORE, str(program), "-addr", address]
    command += [*options, "-root-out", str(roots)]
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _await_peer(process, address, roots, folder / "peer.log")
        yield Peer(address=address, roots=roots, pid=process.pid)
    finally:
        process.terminate()
        process.wait(timeout=10)


def _await_peer(
    process: subprocess.Popen[bytes], address: str, roots: Path, log: Path
) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection((host, int(port)), timeout=1):
                if roots.is_file():
                    return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.05)
    raise BenchError(f"the peer did not start: {log.read_text()[-2000:]}")


def run_client(
    load: Load,
    address: str,
    roots: Path,
    watch: Mapping[str, int],
    tokens: Path | None = None,
) -> Result:
    """Put load on a server; return what the client saw.

    Args:
        load: What is asked.
        address: Of the server.
        roots: What its chains end in.
        watch: Processes of the server, by name: their CPU time is that of a reply.
        tokens: One token a line; used in turn.

    Raises:
        BenchError: The client could not do its work.
    """
    beside = {f"beside{pid}": pid for pid in load.beside}
    every = {**watch, **beside}
    watched = ",".join(f"{name}={pid}" for name, pid in every.items())
    command = [
        *("taskset", "-c", CLIENT_CORE, load.programs.client, "-front", load.front),
        *("-addr", address, "-root", roots, "-server-name", PEER_SERVER_NAME),
        *(
            "-csr",
            load.csr,
            "-conns",
            str(load.connections),
            "-inflight",
            str(load.in_flight),
        ),
        *("-warmup", f"{_WARMUP_SECONDS}s", "-duration", f"{load.seconds}s"),
        *("-watch", watched, "-json"),
        *(("-token-file", tokens) if tokens else ()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the load client failed: {done.stderr}")
    report = json.loads(done.stdout)
    cores = os.cpu_count() or 1
    cpu_us = report["cpu_us_per_request"]
    return Result(
        per_second=report["ok_per_second"],
        cpu_us=sum(us for name, us in cpu_us.items() if name not in beside),
        beside_us=sum(us for name, us in cpu_us.items() if name in beside),
        p50_ms=report["p50_ms"],
        p99_ms=report["p99_ms"],
        errors=report["errors"],
        duplicates=report["duplicate_serials"],
        good=report["ok"],
        other_percent=100 * report["other_cpu_s"] / report["seconds"] / cores,
    )
