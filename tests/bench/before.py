"""This code beside an earlier commit of it, in one run (`make bench-before`).

Both serve the same load in turn, with everything that they do in production. What is
compared is the CPU time of a request and the memory of all processes of a bridge.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import BenchError, Load, build, measure_running
from tests.bench.peers import say, surroundings, verdict
from tests.soak.ground import Look
from tests.support.harness.processes import descendants
from tests.support.harness.real_process import MESHCA, Bridge
from tests.support.parts import builds
from tests.support.parts.tokens import TokenIssuer

_ROOT = Path(__file__).resolve().parents[2]
_MOST_CPU = 1.10
"""CPU time of a request, as a part of what it was before."""
_MOST_MEMORY = {1: 1.5, 2: 1.1}
"""Memory of all processes, as a part of what it was before, by the workers."""
_MOST_PER_SECOND = 2_800


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two states of the code."""

    name: str
    command: Path
    """Its `meshca`."""
    alone: int
    """What `workers` is for one process that signs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one run of one side showed."""

    cpu_us: float
    resident_mib: float
    processes: int


def main() -> int:
    """Measure, print the figures and the verdicts; return the exit status."""
    options = _options()
    sides = (
        Side(name="before", command=options.before, alone=options.before_alone),
        Side(name="now", command=MESHCA, alone=1),
    )
    try:
        verdicts = list(_verdicts(options, sides))
    except (BenchError, builds.BuildError) as error:
        sys.stderr.write(f"bench-before: {error}\n")
        return 2
    say("", *(text for _, text in verdicts))
    return 0 if all(good for good, _ in verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-before", description=__doc__)
    parser.add_argument(
        "before", type=Path, help="the meshca command of the earlier commit"
    )
    parser.add_argument(
        "--before-alone",
        type=int,
        default=1,
        help="what `workers` was for one process (1; 0 where 0 was allowed)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="pairs (5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run (8)")
    options = parser.parse_args()
    options.tokens = "RS256"
    if not options.before.is_file():
        parser.error(f"{options.before} is not there: expected a command `meshca`")
    return options


def _verdicts(
    options: argparse.Namespace, sides: tuple[Side, Side]
) -> Iterator[tuple[bool, str]]:
    peers = os.environ.get("MESHCA_PEERS")
    programs = build(Path(peers) if peers else _ROOT.parent / "shared/peers")
    load = Load(programs=programs, ca_key="p256", csr="p256", seconds=options.seconds)
    # Not under /tmp, which may be memory: a journal there would cost nothing.
    with tempfile.TemporaryDirectory("-bench", dir=builds.cache_folder()) as name:
        folder = Path(name)
        say(*surroundings(folder, options))
        pairs: dict[int, list[tuple[Seen, Seen]]] = {1: [], 2: []}
        for number in range(options.rounds):
            for workers in (1, 2) if number == 0 else (1,):
                here = folder / f"{workers}-{number}"
                here.mkdir()
                before, now = (_seen(load, side, workers, here) for side in sides)
                pairs[workers].append((before, now))
        ratio = statistics.median(
            now.cpu_us / before.cpu_us for before, now in pairs[1]
        )
        text = f"CPU of a request: {ratio:.2f} of before (median of {options.rounds})"
        yield verdict(f"{text}, bound {_MOST_CPU}", good=ratio <= _MOST_CPU)
        for workers, seen in pairs.items():
            more = statistics.median(n.resident_mib / b.resident_mib for b, n in seen)
            bound = _MOST_MEMORY[workers]
            text = f"memory with {workers} workers: {more:.2f} of before, bound {bound}"
            yield verdict(text, good=more <= bound)


def _seen(load: Load, side: Side, workers: int, folder: Path) -> Seen:
    issuer = TokenIssuer()
    tokens = folder / f"tokens-{side.name}"
    issuer.write_many(tokens, int(_MOST_PER_SECOND * load.all_seconds))
    bridge = Bridge(
        folder / side.name,
        overrides={"workers": side.alone if workers == 1 else workers},
        issuers=[issuer],
        trust_domain="cluster.local",
        prefix=("taskset", "-c", "0"),
        command=side.command,
    )
    with bridge:
        result = measure_running(load, tokens, bridge)
        pids = [bridge.pid, *descendants(bridge.pid)]
        look = Look.at(*pids)
    seen = Seen(
        cpu_us=result.cpu_us,
        resident_mib=look.resident_kb / 1024,
        processes=len(pids),
    )
    say(
        f"{folder.name} {side.name}: {result.per_second:.0f}/s, {seen.cpu_us:.0f} us a "
        f"request, {seen.resident_mib:.0f} MiB in {seen.processes} processes"
    )
    return seen


if __name__ == "__main__":
    sys.exit(main())
