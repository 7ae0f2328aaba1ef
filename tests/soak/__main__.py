"""Everything that takes longer than `make test` may (`make soak`).

Each part serves a real bridge, does things to it, and holds what it sees against a
bound. The exit status is 1 when a bound is missed.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bridge.x509.algorithm import KeyAlgorithm
from tests.bench.load import CLIENT_CORE, BenchError, build
from tests.soak import (
    failover,
    hostile,
    kills,
    latency,
    memory,
    overload,
    report,
    storm,
    workers,
)
from tests.soak.ground import Ground, Sizes, say
from tests.soak.result import Result
from tests.support.clients.attacks import ATTACKS
from tests.support.clients.istio_go import program
from tests.support.parts import builds

_PARTS: dict[str, Callable[[Ground], Result]] = {
    "kills": kills.run,
    "overload": overload.run,
    "storm": storm.run,
    "memory": memory.run,
    "workers": workers.run,
    "latency": latency.run,
    "failover": failover.run,
    "hostile": hostile.run,
}
_PEERS = Path(__file__).resolve().parents[3] / "shared/peers"
_KEYS: tuple[KeyAlgorithm, ...] = ("p256", "rsa2048")
_SPREADING = {"workers"}
"""Parts whose clients may use every core."""


def main() -> int:
    """Run the parts that were asked for; return the exit status."""
    options = _options()
    try:
        results = _results(options)
    except (BenchError, builds.BuildError) as error:
        sys.stderr.write(f"soak: {error}\n")
        return 2
    say("", *(f"{one.part}: {line}" for one in results for line in one.lines()))
    return 0 if all(one.good for one in results) else 1


def _results(options: argparse.Namespace) -> list[Result]:
    if (os.cpu_count() or 1) < 2:
        raise BenchError("needs two cores: one for the server, one for the clients")
    say("building the clients and Istio's CA (minutes, the first time)")
    peers = Path(os.environ.get("MESHCA_PEERS") or _PEERS)
    programs, istio_client = build(peers), program()
    where = report.surroundings(_command(), options.ca_key)
    say(where)
    results: list[Result] = []
    # Not under /tmp, which may be memory: a journal there would cost nothing.
    home = builds.cache_folder()
    for part in options.parts:
        with tempfile.TemporaryDirectory("-soak", dir=home) as folder:
            ground = Ground(
                folder=Path(folder),
                programs=programs,
                istio_client=istio_client,
                ca_key=options.ca_key,
                threads=options.threads,
                sizes=Sizes(
                    kills=options.kills,
                    seconds=options.seconds,
                    clients=options.clients,
                    issuances=options.issuances,
                    attacks=tuple(options.attacks),
                ),
            )
            results.append(_run(part, ground))
        if options.json:
            _write_json(options.json, results, where)
        if options.docs:
            report.write(results[-1:], where)
    return results


def _run(part: str, ground: Ground) -> Result:
    say("", f"== {part}")
    cores = os.sched_getaffinity(0)
    if part not in _SPREADING | {"kills"}:
        # This process is one of the clients: off the server's core.
        os.sched_setaffinity(0, {int(CLIENT_CORE)})
    try:
        result = _PARTS[part](ground)
    except AssertionError as error:
        # What must never be: told in full, and the other parts still run.
        result = Result(part)
        result.judge(str(error), good=False)
    finally:
        os.sched_setaffinity(0, cores)
    say(*result.lines())
    return result


def _write_json(path: Path, results: list[Result], where: str) -> None:
    parts = {one.part: {"found": one.lines()} | one.figures for one in results}
    found = {"at": datetime.now(UTC).isoformat(), "where": where, "parts": parts}
    path.write_text(json.dumps(found, indent=2) + "\n")


def _command() -> str:
    given = {name: os.environ.get(name) for name in ("SOAK_PARTS", "SOAK_KILLS")}
    settings = [f'{name}="{value}"' for name, value in given.items() if value]
    # Not where the figures go: that is a path of this machine.
    options = re.sub(r"--json[ =]\S+ ?", "", " ".join(sys.argv[1:])).strip()
    return " ".join(
        ["make soak", *settings, *([f'SOAK_ARGS="{options}"'] if options else [])]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parts = os.environ.get("SOAK_PARTS", "").split() or [*_PARTS]
    kills_wanted = int(os.environ.get("SOAK_KILLS") or 1000)
    parser.add_argument("--parts", nargs="+", choices=[*_PARTS], default=parts)
    parser.add_argument("--kills", type=int, default=kills_wanted, help="(1000)")
    parser.add_argument("--seconds", type=float, default=60, help="of a load (60)")
    parser.add_argument("--clients", type=int, default=2_000, help="of a storm (2000)")
    parser.add_argument(
        "--issuances", type=int, default=200_000, help="for memory (200000)"
    )
    parser.add_argument(
        "--attacks", nargs="+", choices=[*ATTACKS], default=(), help="of hostile (all)"
    )
    parser.add_argument("--ca-key", choices=_KEYS, default="p256")
    parser.add_argument("--threads", type=int, help="limits.threads of the bridge")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--no-docs", dest="docs", action="store_false", help="leave docs/ as it is"
    )
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in _PARTS]:
        parser.error(f"SOAK_PARTS: unknown {unknown}, expected some of {[*_PARTS]}")
    return options


if __name__ == "__main__":
    sys.exit(main())
