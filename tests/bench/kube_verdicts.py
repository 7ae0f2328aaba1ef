"""What `make bench-kube` measures, and how it judges that."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.load import Result
from tests.bench.peers import verdict

JWKS, BOUND, REVIEW = BRIDGES = ("jwks", "bound", "token_review")
ISTIO, ISTIO_FREE = "Istio's CA", "Istio's CA, limiter off"
LINKERD, LINKERD_FREE = "linkerd-identity", "linkerd-identity, limiter off"
_SHIPPED = (ISTIO, LINKERD)
_LEAST_TIMES = 6.0
_LEAST_OF_JWKS = 0.8
_LEAST_OF_ISTIO = 0.75
_MOST_CALLS = {BOUND: 0.01, REVIEW: 1.05}
_MOST_MB = 100.0
_MOST_CPU_SECONDS = 10.0
_MB_OF_KB = 1024 / 1e6
"""What the system calls a kB has 1024 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One server, for the time of one load."""

    result: Result
    api_calls: int = 0
    """Requests that the API server answered, by its own count."""
    certificates: int = 0
    """That the bridge gave out in the same time, which is longer than the measured."""


Round = Mapping[str, Side]
"""Each server by its name, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A watcher, from its start until all objects were in the index."""

    source: str
    """What it listed."""
    resident_kb: int
    """The most that it held."""
    empty_kb: int
    """What a watcher of a cluster without pods holds."""
    cpu_seconds: float
    reviewed: int
    """Certificates that callers got by `token_review` meanwhile."""
    refused: int
    """Good callers that got none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watches:
    """How many watches the API server counts beyond those without the bridge."""

    when: str
    by_resource: Mapping[str, int]


def of_rates(rounds: Sequence[Round]) -> Iterator[tuple[bool, str]]:
    """Judge certificates a second, CPU time, and API calls: medians of the rounds."""
    for peer in _SHIPPED:
        times = statistics.median(
            one[BOUND].result.per_second / one[peer].result.per_second for one in rounds
        )
        yield verdict(
            f"{BOUND}: {times:.1f} times the certificates a second of {peer} as "
            f"shipped, floor {_LEAST_TIMES:.0f}",
            good=times >= _LEAST_TIMES,
        )
    for side, other, floor in (
        (BOUND, JWKS, _LEAST_OF_JWKS),
        (REVIEW, ISTIO_FREE, _LEAST_OF_ISTIO),
    ):
        part = statistics.median(
            one[other].result.cpu_us / one[side].result.cpu_us for one in rounds
        )
        yield verdict(
            f"{side}: {part:.2f} of {other} by CPU a request, floor {floor}",
            good=part >= floor,
        )
    for side, most in _MOST_CALLS.items():
        calls = sum(one[side].api_calls for one in rounds)
        certificates = sum(one[side].certificates for one in rounds)
        each = calls / certificates if certificates else float("inf")
        yield verdict(
            f"{side}: {calls} API calls for {certificates} certificates, "
            f"{each:.4f} each, bound {most}",
            good=each <= most,
        )
    wrong = sum(
        sum(side.result.errors.values()) + side.result.duplicates
        for one in rounds
        for name, side in one.items()
        if name in BRIDGES
    )
    text = f"errors and repeated serial numbers of the bridge: {wrong}"
    yield verdict(text, good=wrong == 0)


def of_junk(asked: int, reviews: int) -> tuple[bool, str]:
    """Judge what refused junk costs the API server."""
    text = f"{asked} calls with junk for a token: {reviews} API calls, bound 0"
    return verdict(text, good=asked > 0 and reviews == 0)


def of_list(listed: Listed) -> Iterator[tuple[bool, str]]:
    """Judge what a watcher needs to list a cluster, and its callers meanwhile."""
    grown = (listed.resident_kb - listed.empty_kb) * _MB_OF_KB
    yield verdict(
        f"{listed.source}: the watcher grew by at most {grown:.0f} MB, bound "
        f"{_MOST_MB:.0f}",
        good=grown <= _MOST_MB,
    )
    yield verdict(
        f"{listed.source}: {listed.cpu_seconds:.1f} s of CPU from its start until all "
        f"were listed, bound {_MOST_CPU_SECONDS:.0f}",
        good=listed.cpu_seconds <= _MOST_CPU_SECONDS,
    )
    yield verdict(
        f"{listed.source}: meanwhile {listed.reviewed} certificates by {REVIEW}, "
        f"{listed.refused} callers without one",
        good=listed.reviewed > 0 and listed.refused == 0,
    )


def of_watches(found: Watches) -> tuple[bool, str]:
    """Judge how many watches a bridge has: one of each resource."""
    shown = ", ".join(f"{name} {count}" for name, count in found.by_resource.items())
    return verdict(
        f"{found.when}: watches that the API server counts: {shown}; bound 1 each",
        good=bool(found.by_resource) and set(found.by_resource.values()) == {1},
    )


def table(rounds: Sequence[Round]) -> Iterator[str]:
    """Yield the lines of a table with the medians of each server."""
    yield (
        "| server | req/s | CPU us | least and most | API server CPU us | p50 ms | "
        "p99 ms | API calls a certificate | errors | other CPU |"
    )
    yield "|" + "---|" * 10
    for name in rounds[0]:
        sides = [one[name] for one in rounds]
        results = [side.result for side in sides]
        cpu = [one.cpu_us for one in results]
        calls = sum(side.api_calls for side in sides)
        certificates = sum(side.certificates for side in sides)
        cells = [
            name,
            f"{statistics.median(one.per_second for one in results):,.0f}",
            f"{statistics.median(cpu):.0f}",
            f"{min(cpu):.0f} to {max(cpu):.0f}",
            f"{statistics.median(one.beside_us for one in results):.0f}",
            f"{statistics.median(one.p50_ms for one in results):.1f}",
            f"{statistics.median(one.p99_ms for one in results):.1f}",
            f"{calls / certificates:.4f}" if certificates else "",
            f"{sum(sum(one.errors.values()) for one in results)}",
            f"{max(one.other_percent for one in results):.0f} %",
        ]
        yield f"| {' | '.join(cells)} |"
