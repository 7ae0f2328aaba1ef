"""How long callers wait at a load that the bridge can do."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bridge.x509.algorithm import KeyAlgorithm
from tests.bench.load import peer
from tests.soak.ground import Ground, Target, say
from tests.soak.result import Result

_PART = 0.8
_MOST_OF_PEER = 2.0
"""The p99, as a part of that of Istio's CA in the same minutes: reported."""
_ROUND_SECONDS = 5.0
_STEADY = 0.07
"""By so much the highest rates before and after a round may differ: beyond, the machine
got faster or slower meanwhile, and four fifths of one are not four fifths of the other.
"""
_FEWEST = 3
_PEER_KEY: KeyAlgorithm = "rsa2048"
"""Istio's default. A request takes it as long as the bridge with a P-256 key."""


@dataclass(frozen=True, slots=True)
class Round:
    """The highest rate, a part of it, and the highest rate again."""

    before: float
    """The highest rate, certificates a second, before and after."""
    after: float
    busiest_us: float
    """CPU time of the server for a request at the highest rate, and at a part of it."""
    us: float
    p50_ms: float
    p99_ms: float

    @property
    def is_steady(self) -> bool:
        """Whether the machine was as fast after as before."""
        return abs(self.after / self.before - 1) <= _STEADY

    @property
    def busy(self) -> float:
        """The share of its core that the server had at a part of the highest rate."""
        return _PART * self.before * self.us / 1e6


class _Side:
    """A server, and what was measured of it."""

    def __init__(
        self, ground: Ground, name: str, target: Target, watch: Mapping[str, int]
    ) -> None:
        self._ground = ground
        self._name = name
        self._target = target
        self._watch = watch
        self.rounds: list[Round] = []
        self.failed = 0
        """Calls without a certificate."""

    def measure(self) -> None:
        """Add a round."""
        say(f"{self._name}:")
        # Anew: while the other side had its turn, the machine may have changed.
        before = self._busiest()
        rate = float(before["ok_per_second"])
        report = self._ground.measured(
            self._target,
            *("-qps", f"{rate * _PART:.0f}", "-inflight", "512"),
            *("-warmup", "2s", "-duration", f"{_ROUND_SECONDS}s"),
            watch=self._watch,
        )
        after = self._busiest()
        self.failed += sum(report["errors"].values()) + report["unfinished"]
        done = Round(
            rate,
            after["ok_per_second"],
            _cpu(before),
            _cpu(report),
            report["p50_ms"],
            report["p99_ms"],
        )
        self.rounds.append(done)
        say(
            f"{_PART:.0%} of it: p50 {done.p50_ms:.1f} ms, p99 {done.p99_ms:.1f} ms, "
            f"the core busy for {done.busy:.0%} of the time"
        )

    def _busiest(self) -> Mapping[str, Any]:
        return self._ground.busiest(self._target, _ROUND_SECONDS, watch=self._watch)


@dataclass(frozen=True, slots=True)
class Summary:
    """What rounds say together."""

    text: str
    p99_ms: float


def run(ground: Ground) -> Result:
    """Ask at fixed moments, at four fifths of the highest rate.

    Both in turn, for some seconds each: where a machine gets a fifth slower between the
    two, four fifths of what it could do are all that it can. Rounds in which that was
    so are shown, and not judged. Istio's CA takes its turn with the bridge, so that it
    can be seen what any server waits for on this machine, at this hour.
    """
    result = Result("latency")
    bridge = ground.bridge("latency")
    with bridge, peer(ground.programs.peer, _PEER_KEY, ground.folder) as other:
        ours = _Side(ground, "the bridge", bridge, bridge.watched)
        theirs = _Side(ground, "Istio's CA", other, {"server": other.pid})
        for _ in range(max(1, int(ground.sizes.seconds / _ROUND_SECONDS))):
            ours.measure()
            theirs.measure()
    bridge.require_sound_ledger()
    found, peers = summary(ours.rounds), summary(theirs.rounds)
    part = found.p99_ms / peers.p99_ms
    result.judge(
        f"at {_PART:.0%} of the highest rate, p99 at most {_MOST_OF_PEER:g} times that "
        f"of Istio's CA: {part:.1f} times. {found.text}",
        good=part <= _MOST_OF_PEER,
    )
    result.judge(f"{ours.failed:.0f} calls failed", good=not ours.failed)
    result.note(
        "Istio's CA in turn with it, with an RSA-2048 key and without a record of "
        f"what it signs. {peers.text}"
    )
    result.figures["rounds"] = [asdict(each) for each in ours.rounds]
    result.figures["peer_rounds"] = [asdict(each) for each in theirs.rounds]
    return result


def summary(rounds: list[Round]) -> Summary:
    """Return the medians of the steady rounds, or of all where too few are steady."""
    steady = [each for each in rounds if each.is_steady]
    which = f"the {len(steady)} of {len(rounds)} rounds on a machine as fast as before"
    judged = steady
    if len(steady) < _FEWEST:
        which, judged = f"all {len(rounds)} rounds, of a machine never steady", rounds

    def median(name: str) -> float:
        return float(statistics.median(getattr(each, name) for each in judged))

    slowest = [each.p99_ms for each in judged]
    p99_ms = median("p99_ms")
    text = (
        f"Medians of {which}: p50 {median('p50_ms'):.1f} ms, p99 {p99_ms:.1f} ms, at "
        f"{_PART:.0%} of {median('before'):.0f}/s. p99 was {min(slowest):.1f} to "
        f"{max(slowest):.1f} ms. A request took {median('us'):.0f} us of the core, "
        f"{median('busiest_us'):.0f} us at the highest rate. The core was busy for "
        f"{median('busy'):.0%} of the time"
    )
    return Summary(text, p99_ms)


def _cpu(report: Mapping[str, Any]) -> float:
    return float(sum(report["cpu_us_per_request"].values()))
