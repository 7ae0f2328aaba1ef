"""The bridge beside Istio's own CA, in one run (`make bench-peers`).

The bridge does everything that it does in production: each token is new to it and its
signature is checked, the intent is on disk before anything is signed, and what was
signed is verified before it leaves. The peer asks nobody for a credential.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bridge.x509.algorithm import KeyAlgorithm
from tests.bench.load import (
    BenchError,
    Load,
    Result,
    build,
    measure_bridge,
    measure_peer,
)
from tests.support.harness.real_process import Bridge
from tests.support.parts import builds
from tests.support.parts.tokens import TokenIssuer

_ROOT = Path(__file__).resolve().parents[2]
_P256_FLOOR = 0.22
_RSA_FLOOR, _SLOW_RSA_FLOOR = 0.9, 0.6
_FAST_RSA_US = 400.0
"""OpenSSL signs RSA-2048 faster on a processor with AVX-512 IFMA, and takes as long as
Go on any other: the floor is lower there."""
_KEYS: tuple[KeyAlgorithm, ...] = ("rsa2048", "p256")
_READY_SECONDS = 2.0
BUSY_PERCENT = 5.0
_MOST_PER_SECOND = {"rsa2048": 1_800, "p256": 2_800}
"""More than one core can do: so many tokens are made for a second of load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The peer and the bridge, one after the other."""

    ca_key: KeyAlgorithm
    csr: str
    peer: Result
    bridge: Result

    @property
    def ratio(self) -> float:
        """The bridge's rate as a part of the peer's."""
        return self.bridge.per_second / self.peer.per_second

    @property
    def ratio_by_cpu(self) -> float:
        """The same by what each spent on a reply: less moved by a busy machine."""
        return self.peer.cpu_us / self.bridge.cpu_us

    @property
    def other_percent(self) -> float:
        """What anything else used of the machine, in the worse of both runs."""
        return max(self.peer.other_percent, self.bridge.other_percent)


def main() -> int:
    """Measure, print the table and the verdict; return the exit status."""
    options = _options()
    try:
        rsa_floor = _rsa_floor()
        rounds = list(_rounds(options))
    except (BenchError, builds.BuildError) as error:
        sys.stderr.write(f"bench-peers: {error}\n")
        return 2
    verdicts = list(_verdicts(rounds, rsa_floor))
    say("", *_table(rounds), "", *(text for _, text in verdicts))
    busiest = max(one.other_percent for one in rounds)
    if busiest > BUSY_PERCENT:
        say(
            f"NOTE: something else used up to {busiest:.0f} % of this machine, so "
            "these rates say little: run again when it is idle"
        )
    if options.json:
        figures = [_figures(one) for one in rounds]
        report = {"at": datetime.now(UTC).isoformat(), "rounds": figures}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(good for good, _ in verdicts) else 1


def _figures(one: Round) -> dict[str, object]:
    ratios = {"ratio": one.ratio, "ratio_by_cpu": one.ratio_by_cpu}
    return asdict(one) | ratios


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each pair (3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run (8)")
    parser.add_argument("--quick", action="store_true", help="one round of 3 seconds")
    parser.add_argument("--all", action="store_true", help="CSRs with RSA keys too")
    parser.add_argument("--key", choices=_KEYS, help="only this key of the CA")
    parser.add_argument("--tokens", choices=("RS256", "ES256"), default="RS256")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 3.0
    return options


def _rounds(options: argparse.Namespace) -> Iterator[Round]:
    if (os.cpu_count() or 1) < 2:
        raise BenchError("needs two cores: one for the server, one for the client")
    peers = os.environ.get("MESHCA_PEERS")
    say("building the load client and Istio's CA (minutes, the first time)")
    programs = build(Path(peers) if peers else _ROOT.parent / "shared/peers")
    cases = [
        (key, csr)
        for key in ([options.key] if options.key else _KEYS)
        for csr in (("p256", "rsa2048") if options.all else ("p256",))
    ]
    with ExitStack() as stack:
        # Not under /tmp, which may be memory: a journal there would cost nothing.
        home = builds.cache_folder()
        home.mkdir(parents=True, exist_ok=True)
        name = stack.enter_context(tempfile.TemporaryDirectory("-bench", dir=home))
        folder = Path(name)
        say(*surroundings(folder, options))
        for key, csr in cases:
            load = Load(programs=programs, ca_key=key, csr=csr, seconds=options.seconds)
            for number in range(options.rounds):
                yield _round(load, folder, f"{key}-{csr}-{number}", options.tokens)


def _round(load: Load, folder: Path, name: str, algorithm: str) -> Round:
    here = folder / name
    here.mkdir()
    issuer = TokenIssuer(algorithm=algorithm)
    count = int(_MOST_PER_SECOND[load.ca_key] * load.all_seconds)
    tokens = here / "tokens"
    say(f"{name}: making {count} tokens")
    issuer.write_many(tokens, count)
    peer = measure_peer(load, here)
    bridge = Bridge(
        here / "bridge",
        issuers=[issuer],
        trust_domain="cluster.local",
        ca_key=load.ca_key,
        prefix=("taskset", "-c", "0"),
    )
    ours = measure_bridge(load, tokens, bridge)
    one = Round(ca_key=load.ca_key, csr=load.csr, peer=peer, bridge=ours)
    say(
        f"{name}: peer {peer.per_second:.0f}/s, bridge {ours.per_second:.0f}/s, "
        f"ratio {one.ratio:.2f}"
    )
    return one


def surroundings(folder: Path, options: argparse.Namespace) -> list[str]:
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True
    )
    kind = found.stdout.strip()
    if kind in {"tmpfs", "ramfs"}:
        raise BenchError(
            f"{folder} is in memory ({kind}), so that a durable journal costs nothing: "
            "set MESHCA_CACHE to a folder on a disk"
        )
    sync = statistics.median(_syncs(folder / "sync"))
    return [
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {_versions()}",
        f"load average {os.getloadavg()[0]:.1f} before the start",
        f"{options.rounds} rounds, {options.seconds:.0f} s a run after a warm-up",
        f"journal on {kind}, fdatasync {sync * 1e3:.2f} ms (median of 50)",
        f"tokens {options.tokens}, each used once in a run",
    ]


def _rsa_floor() -> float:
    """Return the floor with an RSA-2048 CA on this processor, and say why.

    Raises:
        BenchError: `openssl speed` does not say how long a signature takes.
    """
    done = subprocess.run(
        ["openssl", "speed", "-seconds", "2", "-mr", "rsa2048"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^\+F2:\d+:2048:([0-9.]+):", done.stdout, re.MULTILINE)
    if found is None:
        raise BenchError(f"openssl speed rsa2048 failed: {done.stderr[-500:]}")
    microseconds = 1e6 / float(found[1])  # it counts signatures a second
    floor = _RSA_FLOOR if microseconds < _FAST_RSA_US else _SLOW_RSA_FLOOR
    say(f"OpenSSL signs RSA-2048 in {microseconds:.0f} us: the floor is {floor}")
    return floor


def _versions() -> str:
    packages = ("grpcio", "cryptography")
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *found])


def _syncs(path: Path) -> Iterator[float]:
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 1000)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            yield time.perf_counter() - started


def _table(rounds: Iterable[Round]) -> Iterator[str]:
    yield (
        "| CA key | CSR | peer req/s | bridge req/s | ratio | peer CPU us | bridge "
        "CPU us | ratio by CPU | peer p50/p99 ms | bridge p50/p99 ms | errors | "
        "duplicates | other CPU | ready s |"
    )
    yield "|" + "---|" * 14
    for one in rounds:
        peer, ours = one.peer, one.bridge
        cells = [
            one.ca_key,
            one.csr,
            f"{peer.per_second:,.0f}",
            f"{ours.per_second:,.0f}",
            f"{one.ratio:.2f}",
            f"{peer.cpu_us:.0f}",
            f"{ours.cpu_us:.0f}",
            f"{one.ratio_by_cpu:.2f}",
            f"{peer.p50_ms:.1f}/{peer.p99_ms:.1f}",
            f"{ours.p50_ms:.1f}/{ours.p99_ms:.1f}",
            _errors(peer.errors, ours.errors),
            f"{peer.duplicates + ours.duplicates}",
            f"{one.other_percent:.0f} %",
            f"{ours.ready_seconds:.2f}",
        ]
        yield f"| {' | '.join(cells)} |"


def _errors(*counts: dict[str, int]) -> str:
    both = [f"{code} {count}" for one in counts for code, count in one.items()]
    return ", ".join(both) or "0"


def _verdicts(rounds: list[Round], rsa_floor: float) -> Iterator[tuple[bool, str]]:
    for pair in dict.fromkeys((one.ca_key, one.csr) for one in rounds):
        ratio = statistics.median(
            one.ratio for one in rounds if (one.ca_key, one.csr) == pair
        )
        floor = _P256_FLOOR if pair[0] == "p256" else rsa_floor
        text = f"CA {pair[0]}, CSR {pair[1]}: median ratio {ratio:.2f}, floor {floor}"
        yield verdict(text, good=ratio >= floor)
    slowest = max(one.bridge.ready_seconds or 0.0 for one in rounds)
    text = f"ready after at most {slowest:.2f} s, bound {_READY_SECONDS}"
    yield verdict(text, good=0 < slowest < _READY_SECONDS)
    wrong = sum(
        sum(side.errors.values()) + side.duplicates
        for one in rounds
        for side in (one.peer, one.bridge)
    )
    yield verdict(f"errors and repeated serial numbers: {wrong}", good=wrong == 0)


def verdict(text: str, *, good: bool) -> tuple[bool, str]:
    return good, f"{'PASS' if good else 'FAIL'}: {text}"


def say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
