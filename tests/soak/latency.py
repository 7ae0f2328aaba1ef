"""How long callers wait at a load that the bridge can do."""

from tests.soak.ground import Ground, say
from tests.soak.result import Result

_PART = 0.8
_BOUND_MS = 15.0


def run(ground: Ground) -> Result:
    """Ask at fixed moments, at four fifths of the highest rate."""
    result = Result("latency")
    bridge = ground.bridge("latency")
    with bridge:
        rate = ground.highest_rate(bridge)
        report = ground.measured(
            bridge,
            *("-qps", f"{rate * _PART:.0f}", "-inflight", "512"),
            *("-warmup", "2s", "-duration", f"{ground.sizes.seconds}s"),
        )
    bridge.require_sound_ledger()
    p99 = report["p99_ms"]
    say(f"p50 {report['p50_ms']:.1f} ms, p99 {p99:.1f} ms, errors {report['errors']}")
    result.figures |= {"highest_rate": rate, "report": report}
    text = (
        f"at {_PART:.0%} of the highest rate ({rate:.0f}/s): p50 "
        f"{report['p50_ms']:.1f} ms, p99 {p99:.1f} ms, bound {_BOUND_MS:g} ms"
    )
    good = p99 < _BOUND_MS and not report["errors"] and not report["unfinished"]
    result.judge(text, good=good)
    return result
