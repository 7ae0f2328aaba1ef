"""Where the microseconds of one request go (`make bench`).

First in process and without a network: one call after the other through the whole path,
measured by the bridge's own histogram of steps. Then the same request over gRPC and TLS
on the loopback interface, to a bridge of its own, one caller at a time.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client.parser import text_string_to_metric_families

from bridge import __version__
from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.assembly import Assembly
from bridge.clock import system_clock
from bridge.config import BridgeConfig, read
from bridge.hierarchy.throwaway import KeyAlgorithm
from bridge.identity.caller import TokenCredential
from bridge.issuance import Call, Issuance
from bridge.ledger.ledger import Ledger
from bridge.metrics import STEPS, Metrics
from bridge.resilience import Budget
from bridge.server.istio import METHOD
from bridge.server.status import status_name
from bridge.signing import Signing
from tests.support import gobuild
from tests.support.harness import SERVER_NAME, Bridge
from tests.support.tokens import TokenIssuer

_CA_KEYS: tuple[KeyAlgorithm, ...] = ("p256", "rsa2048")
_WARMUP = 200
_TTL_SECONDS = 86_400


def main() -> None:
    """Measure both kinds of CA key and print the table."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="requests (3000)")
    parser.add_argument("--csr", choices=("p256", "rsa2048"), default="p256")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # a key in a file is what is measured here
    csr = _csr(options.csr)
    # Not under /tmp, which may be memory: a journal there would cost nothing.
    home = gobuild.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory("-bench", dir=home) as folder:
        columns = [
            _measured(Path(folder) / key, key, csr, options.count) for key in _CA_KEYS
        ]
    lines = [
        f"microseconds of a request, mean of {options.count}; CSR {options.csr}",
        "",
        _row("step", [f"CA {key}" for key in _CA_KEYS]),
        "|" + "---|" * (len(_CA_KEYS) + 1),
        *(_row(name, [f"{one[name]:.0f}" for one in columns]) for name in columns[0]),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _measured(
    folder: Path, ca_key: KeyAlgorithm, csr: str, count: int
) -> dict[str, float]:
    folder.mkdir()
    issuer = TokenIssuer()
    bridge = Bridge(
        folder / "bridge",
        issuers=[issuer],
        ca_key=ca_key,
        prefix=("taskset", "-c", "0"),
    )
    file = folder / "tokens"
    issuer.write_many(file, 2 * (count + _WARMUP))
    tokens = file.read_text().split()
    half = len(tokens) // 2
    with _on_core(0):
        found = _in_process(read(bridge.configuration), csr, tokens[:half])
    with _on_core(1), bridge:
        seconds = list(_over_grpc(bridge, csr, tokens[half:]))
    found["over gRPC and TLS, median"] = statistics.median(seconds) * 1e6
    found["over gRPC and TLS, 99 of 100"] = (
        statistics.quantiles(seconds, n=100)[98] * 1e6
    )
    return found


def _in_process(
    config: BridgeConfig, csr: str, tokens: Sequence[str]
) -> dict[str, float]:
    with _issuance(config) as (issuance, metrics):
        for token in tokens[:_WARMUP]:
            issuance.issue(_call(csr, token))
        before, cpu, began = _sums(metrics), _cpu(), time.perf_counter()
        for token in tokens[_WARMUP:]:
            issuance.issue(_call(csr, token))
        whole = time.perf_counter() - began
        used, after = _cpu(), _sums(metrics)
    count = len(tokens) - _WARMUP
    found = {step: (after[step] - before[step]) / count * 1e6 for step in STEPS}
    found["all steps"] = sum(found.values())
    found["whole call, in process"] = whole / count * 1e6
    for thread, seconds in used.items():
        found[f"CPU of {thread}"] = (seconds - cpu.get(thread, 0.0)) / count * 1e6
    return found


def _cpu() -> dict[str, float]:
    """Return the CPU seconds of each thread so far, by its name."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        file = Path(f"/proc/self/task/{thread.native_id}/schedstat")
        found[f"thread {thread.name}"] = int(file.read_text().split()[0]) / 1e9
    return found | {"the process": time.process_time()}


@contextmanager
def _issuance(config: BridgeConfig) -> Iterator[tuple[Issuance, Metrics]]:
    # The composition root's (bridge/server/process.py), without what listens.
    clock = system_clock
    metrics = Metrics(__version__, clock)
    snapshot = Assembly(config=config, clock=clock, warn=lambda _text: None).snapshot()
    with ExitStack() as parts:
        for issuer in snapshot.issuers.values():
            parts.callback(issuer.ca.close)
        parts.callback(snapshot.clusters.close)
        ledger = Ledger.open(
            config.ledger,
            config.resolve,
            writer="bench",
            version=__version__,
            clock=clock,
            observe_commit=lambda _seconds, _rows: None,
        )
        parts.callback(ledger.close)
        snapshot.clusters.start()
        issuance = Issuance(
            snapshot=lambda: snapshot,
            ledger=ledger,
            signing=Signing(ledger, metrics, status_name),
            metrics=metrics,
            clock=clock,
            status_name=status_name,
        )
        yield issuance, metrics


def _over_grpc(bridge: Bridge, csr: str, tokens: Sequence[str]) -> Iterator[float]:
    request = IstioCertificateRequest(csr=csr, validity_duration=_TTL_SECONDS)
    message = request.SerializeToString()
    credentials = grpc.ssl_channel_credentials(bridge.roots.read_bytes())
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with grpc.secure_channel(bridge.address, credentials, options=options) as channel:
        ask = channel.unary_unary(METHOD)
        for number, token in enumerate(tokens):
            metadata = [
                ("clusterid", "Kubernetes"),
                ("authorization", f"Bearer {token}"),
            ]
            began = time.perf_counter()
            ask(message, metadata=metadata, timeout=10)
            if number >= _WARMUP:
                yield time.perf_counter() - began


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    # A process that moves between cores loses up to a quarter of its speed.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _call(csr: str, token: str) -> Call:
    return Call(
        front="istio",
        csr=csr,
        credential=TokenCredential((f"Bearer {token}",), ("Kubernetes",)),
        audiences=frozenset({"istio-ca"}),
        ttl_seconds=_TTL_SECONDS,
        budget=Budget(time.monotonic() + 10),
    )


def _sums(metrics: Metrics) -> dict[str, float]:
    body, _ = metrics.render()
    return {
        sample.labels["step"]: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "meshca_step_seconds_sum"
    }


def _csr(kind: str) -> str:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if kind == "rsa2048":
        key = rsa.generate_private_key(65537, 2048)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode("ascii")


if __name__ == "__main__":
    main()
