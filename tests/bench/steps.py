"""Where the microseconds of one request go (`make bench`).

First in process and without a network: one call after the other through the whole path,
measured by the bridge's own histogram of steps. Then the same request over gRPC (with
TLS for Istio, in the clear for Linkerd) on the loopback interface, to a bridge of its
own, one caller at a time.
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
from bridge._proto.linkerd_identity_pb2 import CertifyRequest
from bridge.config import BridgeConfig, read
from bridge.identity.caller import TokenCredential
from bridge.issuance.call import Call
from bridge.issuance.procedure import Issuance
from bridge.issuance.signing import Signing
from bridge.ledger.ledger import Ledger
from bridge.metrics.instruments import STEPS, Metrics
from bridge.policy.bars import Bars
from bridge.policy.certificate_renewal import CertificateRenewal
from bridge.resilience.budget import Budget
from bridge.resilience.failover import Failover, Guards
from bridge.resilience.quarantine import StoppedCAs
from bridge.server import linkerd
from bridge.server.istio import METHOD
from bridge.server.status import status_name
from bridge.snapshot.builder import Assembly
from bridge.system.clock import system_clock
from bridge.x509.algorithm import KeyAlgorithm
from tests.support.clients.linkerd_go import AUDIENCE, name_of
from tests.support.harness.archive import FeederThread
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.parts import builds
from tests.support.parts.tokens import TokenIssuer

_CASES: tuple[tuple[str, KeyAlgorithm], ...] = (
    ("istio", "p256"),
    ("istio", "rsa2048"),
    ("linkerd", "p256"),
)
"""Front and key of the CA of each column."""
_IDENTITY = name_of("web", trust_domain="corp.example")
_AUDIENCES = {"istio": "istio-ca", "linkerd": AUDIENCE}
_WARMUP = 200
_TTL_SECONDS = 86_400


def main() -> None:
    """Measure both fronts and print the table."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="requests (3000)")
    parser.add_argument(
        "--csr", choices=("p256", "rsa2048"), default="p256", help="of Istio's callers"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # a key in a file is what is measured here
    csrs: dict[str, str | bytes] = {"istio": _csr(options.csr), "linkerd": _der_csr()}
    # Not under /tmp, which may be memory: a journal there would cost nothing.
    home = builds.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory("-bench", dir=home) as folder:
        columns = [
            _measured(
                Path(folder) / f"{front}-{key}", front, key, csrs[front], options.count
            )
            for front, key in _CASES
        ]
    lines = [
        f"microseconds of a request, mean of {options.count}; CSR {options.csr}",
        "",
        _row("step", [f"{front}, CA {key}" for front, key in _CASES]),
        "|" + "---|" * (len(_CASES) + 1),
        *(_row(name, [f"{one[name]:.0f}" for one in columns]) for name in columns[0]),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _measured(
    folder: Path, front: str, ca_key: KeyAlgorithm, csr: str | bytes, count: int
) -> dict[str, float]:
    folder.mkdir()
    issuer = TokenIssuer()
    bridge = Bridge(
        folder / "bridge",
        issuers=[issuer],
        ca_key=ca_key,
        fronts=("istio", "linkerd"),
        prefix=("taskset", "-c", "0"),
    )
    file = folder / "tokens"
    issuer.write_many(file, 2 * (count + _WARMUP), audiences=[_AUDIENCES[front]])
    tokens = file.read_text().split()
    half = len(tokens) // 2
    with _on_core(0):
        found = _in_process(read(bridge.configuration), front, csr, tokens[:half])
    over_grpc = {"istio": _over_tls, "linkerd": _in_the_clear}[front]
    with _on_core(1), bridge:
        seconds = list(over_grpc(bridge, csr, tokens[half:]))
    found["over gRPC, median"] = statistics.median(seconds) * 1e6
    found["over gRPC, 99 of 100"] = statistics.quantiles(seconds, n=100)[98] * 1e6
    return found


def _in_process(
    config: BridgeConfig, front: str, csr: str | bytes, tokens: Sequence[str]
) -> dict[str, float]:
    with _issuance(config) as (issuance, metrics):
        for token in tokens[:_WARMUP]:
            issuance.issue(_call(front, csr, token))
        before, cpu, began = _sums(metrics), _cpu(), time.perf_counter()
        for token in tokens[_WARMUP:]:
            issuance.issue(_call(front, csr, token))
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
    # The composition root's (bridge/process/composition.py), without what listens.
    clock = system_clock
    metrics = Metrics(__version__, clock)
    snapshot = Assembly(config=config, clock=clock, warn=lambda _text: None).snapshot()
    with ExitStack() as parts:
        for issuer in snapshot.issuers.values():
            parts.callback(issuer.ca.close)
        parts.callback(snapshot.clusters.close)
        ledger = Ledger.open(
            config.ledger,
            writer="bench",
            clock=clock,
        )
        parts.callback(ledger.close)
        feeding = FeederThread(config.ledger)
        feeding.start()
        parts.callback(feeding.close)
        snapshot.clusters.start()
        guards = Guards(config.limits.threads, metrics.backend)
        stopped = StoppedCAs(config.ledger.latch, clock)
        issuance = Issuance(
            snapshot=lambda: snapshot,
            ledger=ledger,
            signing=Signing(ledger, metrics, status_name, stopped, guards),
            failover=Failover(guards),
            metrics=metrics,
            clock=clock,
            status_name=status_name,
            ready=lambda: True,
            renewal=CertificateRenewal(),
            bars=Bars(config.ledger.bars),
            events=None,
        )
        yield issuance, metrics


def _over_tls(
    bridge: Bridge, csr: str | bytes, tokens: Sequence[str]
) -> Iterator[float]:
    request = IstioCertificateRequest(csr=str(csr), validity_duration=_TTL_SECONDS)
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


def _in_the_clear(
    bridge: Bridge, csr: str | bytes, tokens: Sequence[str]
) -> Iterator[float]:
    with grpc.insecure_channel(bridge.linkerd_address) as channel:
        ask = channel.unary_unary(linkerd.METHOD)
        for number, token in enumerate(tokens):
            request = CertifyRequest(
                identity=_IDENTITY,
                token=token.encode(),
                certificate_signing_request=csr if isinstance(csr, bytes) else b"",
            )
            message = request.SerializeToString()
            began = time.perf_counter()
            ask(message, timeout=10)
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


def _call(front: str, csr: str | bytes, token: str) -> Call:
    return Call(
        front=front,
        csr=csr,
        credential=TokenCredential((f"Bearer {token}",), ("Kubernetes",)),
        audiences=frozenset({_AUDIENCES[front]}),
        identity=_IDENTITY if front == "linkerd" else "",
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


def _der_csr() -> bytes:
    # As proxy-identity makes it, but for a common name that is too long to be written.
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName(_IDENTITY)])
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    builder = builder.add_extension(names, critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


if __name__ == "__main__":
    main()
