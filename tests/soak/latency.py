"""How long callers wait at a load that the bridge can do."""

import statistics

from tests.soak.ground import Ground, say
from tests.soak.result import Result

_PART = 0.8
_BOUND_MS = 15.0
_ROUND_SECONDS = 5.0


def run(ground: Ground) -> Result:
    """Ask at fixed moments, at four fifths of the highest rate.

    Both in turn, for some seconds each: where a machine gets a fifth slower between the
    two, four fifths of what it could do are all that it can.
    """
    result = Result("latency")
    bridge = ground.bridge("latency")
    rounds: list[tuple[float, float, float]] = []
    failed = 0
    with bridge:
        for _ in range(max(1, int(ground.sizes.seconds / _ROUND_SECONDS))):
            rate = ground.highest_rate(bridge, _ROUND_SECONDS)
            report = ground.measured(
                bridge,
                *("-qps", f"{rate * _PART:.0f}", "-inflight", "512"),
                *("-warmup", "2s", "-duration", f"{_ROUND_SECONDS}s"),
            )
            failed += sum(report["errors"].values()) + report["unfinished"]
            rounds.append((rate, report["p50_ms"], report["p99_ms"]))
            say(f"p50 {report['p50_ms']:.1f} ms, p99 {report['p99_ms']:.1f} ms")
    bridge.require_sound_ledger()
    result.figures["rounds"] = rounds
    rate, p50, p99 = map(statistics.median, zip(*rounds, strict=True))
    slowest = [one[2] for one in rounds]
    result.judge(
        f"at {_PART:.0%} of the highest rate ({rate:.0f}/s): p50 {p50:.1f} ms, p99 "
        f"{p99:.1f} ms, bound {_BOUND_MS:g} ms (medians of {len(rounds)} rounds; p99 "
        f"from {min(slowest):.1f} to {max(slowest):.1f} ms)",
        good=p99 < _BOUND_MS,
    )
    result.judge(f"{failed:.0f} calls failed", good=not failed)
    return result
