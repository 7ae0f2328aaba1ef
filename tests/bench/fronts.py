"""Linkerd's front beside Istio's, in one run (the second half of `make bench`).

Both are served by the same configuration with a P-256 CA, each run by a process of its
own that is alone on core 0; `caload` is on core 1. The bridge does everything that it
does in production: see `tests.bench.peers`. Then Linkerd's front is asked for a minute,
in which there may be no error, and no serial number twice.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.load import BenchError, Load, Result, build, measure_bridge
from tests.bench.peers import BUSY_PERCENT, say, surroundings, verdict
from tests.support import gobuild
from tests.support.harness import Bridge
from tests.support.linkerd import AUDIENCE
from tests.support.tokens import TokenIssuer

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
    except (BenchError, gobuild.BuildError) as error:
        sys.stderr.write(f"bench-fronts: {error}\n")
        return 2
    results = [one for pair in rounds for one in (pair.istio, pair.linkerd)]
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
    parser.add_argument("--rounds", type=int, default=3, help="of both fronts (3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run (8)")
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
    home = gobuild.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory("-bench", dir=home) as name:
        folder = Path(name)
        say(*surroundings(folder, options))
        rounds = [
            _round(load, folder / f"round-{number}", options.tokens)
            for number in range(options.rounds)
        ]
        long = replace(
            load, front="linkerd", seconds=options.minute, tokens_are_for_one=False
        )
        here = folder / "minute"
        here.mkdir()
        minute = None
        if options.minute:
            minute = _one(long, here, _tokens(here, options.tokens, _MINUTE_TOKENS))
    return rounds, minute


def _round(load: Load, folder: Path, algorithm: str) -> Round:
    folder.mkdir()
    made = _tokens(folder, algorithm, int(_MOST_PER_SECOND * load.all_seconds))
    istio = _one(load, folder, made)
    linkerd = _one(replace(load, front="linkerd"), folder, made)
    one = Round(istio=istio, linkerd=linkerd)
    say(
        f"{folder.name}: istio {istio.per_second:.0f}/s, "
        f"linkerd {linkerd.per_second:.0f}/s, ratio {one.ratio:.2f}"
    )
    return one


def _tokens(folder: Path, algorithm: str, count: int) -> tuple[TokenIssuer, Path]:
    issuer = TokenIssuer(algorithm=algorithm)
    file = folder / "tokens"
    say(f"{folder.name}: making {count} tokens")
    # Each process sees them for the first time; a token for both fronts is one for all.
    issuer.write_many(file, count, audiences=("istio-ca", AUDIENCE))
    return issuer, file


def _one(load: Load, folder: Path, made: tuple[TokenIssuer, Path]) -> Result:
    issuer, tokens = made
    bridge = Bridge(
        folder / f"bridge-{load.front}",
        issuers=[issuer],
        trust_domain="cluster.local",
        ca_key=load.ca_key,
        fronts=("istio", "linkerd"),
        prefix=("taskset", "-c", "0"),
    )
    return measure_bridge(load, tokens, bridge)


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
