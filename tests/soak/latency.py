"""How long callers wait at a load that the bridge can do."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tests.soak.ground import Ground, say
from tests.soak.result import Result

_PART = 0.8
_BOUND_MS = 15.0
_ROUND_SECONDS = 5.0
_STEADY = 0.07
"""By so much the highest rates before and after a round may differ: beyond, the machine
got faster or slower meanwhile, and four fifths of one are not four fifths of the other.
"""
_FEWEST = 3


@dataclass(frozen=True, slots=True)
class _Round:
    before: float
    """The highest rate, certificates a second, before and after."""
    after: float
    busiest_us: float
    """CPU time of the bridge for a request at the highest rate, and at a part of it."""
    us: float
    p50_ms: float
    p99_ms: float

    @property
    def is_steady(self) -> bool:
        return abs(self.after / self.before - 1) <= _STEADY

    @property
    def busy(self) -> float:
        """The share of its core that the bridge had at a part of the highest rate."""
        return _PART * self.before * self.us / 1e6


def run(ground: Ground) -> Result:
    """Ask at fixed moments, at four fifths of the highest rate.

    Both in turn, for some seconds each: where a machine gets a fifth slower between the
    two, four fifths of what it could do are all that it can. Rounds in which that was
    so are shown, and not judged.
    """
    result = Result("latency")
    bridge = ground.bridge("latency")
    rounds: list[_Round] = []
    failed = 0
    with bridge:
        watch = {"server": bridge.pid}

        before = ground.busiest(bridge, _ROUND_SECONDS, watch=watch)
        for _ in range(max(1, int(ground.sizes.seconds / _ROUND_SECONDS))):
            rate = float(before["ok_per_second"])
            report = ground.measured(
                bridge,
                *("-qps", f"{rate * _PART:.0f}", "-inflight", "512"),
                *("-warmup", "2s", "-duration", f"{_ROUND_SECONDS}s"),
                watch=watch,
            )
            after = ground.busiest(bridge, _ROUND_SECONDS, watch=watch)
            failed += sum(report["errors"].values()) + report["unfinished"]
            done = _Round(
                rate,
                after["ok_per_second"],
                _cpu(before),
                _cpu(report),
                report["p50_ms"],
                report["p99_ms"],
            )
            rounds.append(done)
            before = after
            say(
                f"{_PART:.0%} of it: p50 {done.p50_ms:.1f} ms, p99 {done.p99_ms:.1f} "
                f"ms, the core busy for {done.busy:.0%} of the time"
            )
    bridge.require_sound_ledger()
    result.figures["rounds"] = [asdict(each) for each in rounds]
    _judge(result, rounds)
    result.judge(f"{failed:.0f} calls failed", good=not failed)
    return result


def _judge(result: Result, rounds: list[_Round]) -> None:
    steady = [each for each in rounds if each.is_steady]
    which = f"the {len(steady)} of {len(rounds)} rounds on a machine as fast as before"
    judged = steady
    if len(steady) < _FEWEST:
        which, judged = f"all {len(rounds)} rounds, of a machine never steady", rounds

    def median(name: str) -> float:
        return float(statistics.median(getattr(each, name) for each in judged))

    slowest = [each.p99_ms for each in judged]
    result.judge(
        f"at {_PART:.0%} of the highest rate ({median('before'):.0f}/s): p50 "
        f"{median('p50_ms'):.1f} ms, p99 {median('p99_ms'):.1f} ms, bound "
        f"{_BOUND_MS:g} ms (medians of {which}; p99 from {min(slowest):.1f} to "
        f"{max(slowest):.1f} ms). A request took {median('us'):.0f} us of the core, "
        f"{median('busiest_us'):.0f} us at the highest rate: the core was busy for "
        f"{median('busy'):.0%} of the time",
        good=median("p99_ms") < _BOUND_MS,
    )


def _cpu(report: Mapping[str, Any]) -> float:
    return float(report["cpu_us_per_request"]["server"])
