"""Linkerd's front beside Istio's, in one run (the second half of `make bench`).

Both are served by one process with a P-256 CA, alone on core 0, in short runs in turn;
`caload` is on core 1. The bridge does everything that it does in production: see
`tests.bench.peers`. Then Linkerd's front of another process is asked for a minute, in
which there may be no error, and no serial number twice.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.load import (
    BenchError,
    Load,
    Result,
    build,
    measure_bridge,
    measure_running,
    require_on_record,
)
from tests.bench.peers import BUSY_PERCENT, say, surroundings, verdict
from tests.support.clients.linkerd_go import AUDIENCE
from tests.support.harness.real_process import Bridge
from tests.support.parts import builds
from tests.support.parts.tokens import TokenIssuer

_ROOT = Path(__file__).resolve().parents[2]
_FLOOR = 1.0
"""The least rate of Linkerd's front, as a part of that of Istio's."""
_MOST_PER_SECOND = 3_000
"""More than one core can do: so many tokens are made for a second of load."""
_MINUTE_TOKENS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Both fronts, one after the other."""

    istio: Result
    linkerd: Result

    @property
    def results(self) -> tuple[Result, Result]:
        """Both."""
        return self.istio, self.linkerd

    @property
    def ratio(self) -> float:
        """Linkerd's rate as a part of Istio's."""
        return self.linkerd.per_second / self.istio.per_second

    @property
    def ratio_by_cpu(self) -> float:
        """The same by what each spent on a reply: less moved by a busy machine."""
        return self.istio.cpu_us / self.linkerd.cpu_us


def main() -> int:
    """Measure, print tables and verdicts; return the exit status."""
    options = _options()
    try:
        rounds, minute = _measured(options)
    except (BenchError, builds.BuildError) as error:
        sys.stderr.write(f"bench-fronts: {error}\n")
        return 2
    results = [one for pair in rounds for one in pair.results]
    results += [minute] if minute else []
    verdicts = list(_verdicts(rounds, minute, results))
    say("", *_table(rounds), "", *(text for _, text in verdicts))
    busiest = max(one.other_percent for one in results)
    if busiest > BUSY_PERCENT:
        say(
            f"NOTE: something else used up to {busiest:.0f} % of this machine, so "
            "these rates say little: run again when it is idle"
        )
    return 0 if all(good for good, _ in verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-fronts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="of both fronts (12)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (3)")
    parser.add_argument(
        "--minute", type=float, default=60.0, help="seconds of the long run (60)"
    )
    parser.add_argument("--quick", action="store_true", help="1 x 3 s, and 10 s")
    parser.add_argument("--tokens", choices=("RS256", "ES256"), default="RS256")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.minute = 1, 3.0, 10.0
    return options


def _measured(options: argparse.Namespace) -> tuple[list[Round], Result | None]:
    if (os.cpu_count() or 1) < 2:
        raise BenchError("needs two cores: one for the server, one for the client")
    peers = os.environ.get("MESHCA_PEERS")
    say("building the load client (minutes, the first time)")
    programs = build(Path(peers) if peers else _ROOT.parent / "shared/peers")
    load = Load(programs=programs, ca_key="p256", csr="p256", seconds=options.seconds)
    # Not under /tmp, which may be memory: a journal there would cost nothing.
    home = builds.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory("-bench", dir=home) as name:
        folder = Path(name)
        say(*surroundings(folder, options))
        rounds = _rounds(load, folder, options)
        long = replace(
            load, front="linkerd", seconds=options.minute, tokens_are_for_one=False
        )
        here = folder / "minute"
        here.mkdir()
        minute = None
        if options.minute:
            issuer = TokenIssuer(algorithm=options.tokens)
            tokens = _tokens(here, issuer, _MINUTE_TOKENS)
            minute = measure_bridge(long, tokens, _bridge(long, here / "b", issuer))
    return rounds, minute


def _rounds(load: Load, folder: Path, options: argparse.Namespace) -> list[Round]:
    # One process, and short runs in turn: the speed of a machine moves by itself, less
    # within seconds than within minutes.
    issuer = TokenIssuer(algorithm=options.tokens)
    bridge = _bridge(load, folder / "bridge", issuer)
    # Nothing that was said of a token is kept, so the same ones do for every run.
    tokens = _tokens(folder, issuer, int(_MOST_PER_SECOND * load.all_seconds))
    with bridge:
        rounds = [
            _round(load, number, tokens, bridge) for number in range(options.rounds)
        ]
    require_on_record(bridge, *(one for pair in rounds for one in pair.results))
    return rounds


def _round(load: Load, number: int, tokens: Path, bridge: Bridge) -> Round:
    fronts = ("istio", "linkerd") if number % 2 else ("linkerd", "istio")
    found = {
        front: measure_running(replace(load, front=front), tokens, bridge)
        for front in fronts
    }
    one = Round(istio=found["istio"], linkerd=found["linkerd"])
    say(
        f"round {number}: istio {one.istio.per_second:.0f}/s, "
        f"linkerd {one.linkerd.per_second:.0f}/s, ratio {one.ratio:.2f}"
    )
    return one


def _tokens(folder: Path, issuer: TokenIssuer, count: int) -> Path:
    file = folder / "tokens"
    say(f"{folder.name}: making {count} tokens")
    issuer.write_many(file, count, audiences=("istio-ca", AUDIENCE))
    return file


def _bridge(load: Load, folder: Path, issuer: TokenIssuer) -> Bridge:
    return Bridge(
        folder,
        issuers=[issuer],
        trust_domain="cluster.local",
        ca_key=load.ca_key,
        fronts=("istio", "linkerd"),
        prefix=("taskset", "-c", "0"),
    )


def _table(rounds: list[Round]) -> Iterator[str]:
    yield (
        "| front | req/s | CPU us | p50 ms | p99 ms | errors | duplicates | other CPU |"
    )
    yield "|" + "---|" * 8
    for pair in rounds:
        for name, one in (("istio", pair.istio), ("linkerd", pair.linkerd)):
            yield (
                f"| {name} | {one.per_second:,.0f} | {one.cpu_us:.0f} | "
                f"{one.p50_ms:.1f} | {one.p99_ms:.1f} | {sum(one.errors.values())} | "
                f"{one.duplicates} | {one.other_percent:.0f} % |"
            )


def _verdicts(
    rounds: list[Round], minute: Result | None, results: list[Result]
) -> Iterator[tuple[bool, str]]:
    ratio = statistics.median(one.ratio for one in rounds)
    by_cpu = statistics.median(one.ratio_by_cpu for one in rounds)
    text = (
        f"CA p256, CSR p256: linkerd's rate is {ratio:.2f} of istio's (median; by CPU "
        f"{by_cpu:.2f}), floor {_FLOOR}"
    )
    yield verdict(text, good=ratio >= _FLOOR)
    wrong = sum(sum(one.errors.values()) + one.duplicates for one in results)
    text = f"errors and repeated serial numbers of all runs: {wrong}"
    yield verdict(text, good=wrong == 0)
    if minute is not None:
        bad = sum(minute.errors.values()) + minute.duplicates
        text = (
            f"caload -front linkerd for a long run: {minute.good} certificates, "
            f"{minute.per_second:.0f}/s, errors {minute.errors or 0}, "
            f"repeated serial numbers {minute.duplicates}"
        )
        yield verdict(text, good=bad == 0 and minute.good > 0)


if __name__ == "__main__":
    sys.exit(main())
