"""More than the bridge can do: what is answered, and how soon all is well again.

Clients give up after 5 s and do not ask again, at fixed moments, whatever comes back.
"""

import statistics
from typing import Any

from tests.soak.ground import Ground, say
from tests.soak.result import Fault, Result, counted
from tests.support.clients.load import Prober
from tests.support.harness.workers import Supervised

_FLOORS = {1.5: 0.8, 3.0: 0.6}
"""The least part of the highest rate that is answered, by the load in highest rates."""
_PATIENCE_SECONDS = 5
_OVER = ("DeadlineExceeded", "Canceled")
_NORMAL_SECONDS = 2.0
_AFTER_SECONDS = 6.0


def run(ground: Ground) -> Result:
    """Overload one process on one core.

    What is answered is held against the highest rate before and after: within such
    minutes a machine that others use gets a fifth slower or faster.
    """
    result = Result("overload")
    bridge = ground.bridge("overload")
    with bridge:
        rate = ground.highest_rate(bridge)
        for factor in _FLOORS:
            rate = _overload(ground, bridge, result, factor, rate)
    bridge.require_sound_ledger()
    return result


def _overload(
    ground: Ground, bridge: Supervised, result: Result, factor: float, before: float
) -> float:
    seconds = ground.sizes.seconds
    calls = bridge.metric("meshca_backend_calls_total")
    asked = factor * before
    options = (
        *("-qps", f"{asked:.0f}", "-duration", f"{seconds}s", "-warmup", "0s"),
        *("-timeout", f"{_PATIENCE_SECONDS}s", "-series"),
        # As many as can be under way when each waits until it gives up.
        *("-inflight", f"{asked * _PATIENCE_SECONDS:.0f}"),
    )
    with Prober(bridge) as prober:
        with ground.load(bridge, *options) as load:
            report = load.report()
            # A little early: the client first makes its keys and connects.
            ended = load.began + seconds
        prober.await_normal(ended, _AFTER_SECONDS)
    signed = bridge.metric("meshca_backend_calls_total") - calls
    after = ground.highest_rate(bridge)
    probes = prober.counts()
    answered = report["ok"] / seconds
    part = answered / statistics.mean((before, after))
    normal = prober.normal_after(ended)
    given = report["ok"] + probes["OK"]
    late = _late(report)
    say(
        f"{factor} x {before:.0f}/s: {answered:.0f}/s answered, {part:.0%}, p50 "
        f"{report['p50_ms']:.0f} ms, max {report['max_ms']:.0f} ms, errors "
        f"{report['errors']}, {late} late, normal after {normal}, "
        f"{signed:.0f} signed for {given} answers"
    )
    result.figures[f"at {factor}"] = report | {
        "highest_rate": (before, after),
        "normal_after": normal,
        "signed": signed,
        "given": given,
    }
    floor = _FLOORS[factor]
    at = f"at {factor:g} times the highest rate ({before:.0f}/s)"
    result.judge(
        f"{at}: {answered:.0f}/s answered, {part:.0%} of the mean of before and after "
        f"({after:.0f}/s), floor {floor:.0%}",
        good=part >= floor,
    )
    result.judge(f"{at}: {late} answers late or missing", good=late == 0)
    told = "never" if normal is None else f"{normal:.1f} s after its end"
    good = normal is not None and normal <= _NORMAL_SECONDS
    result.judge(f"{at}: normal again {told}, bound {_NORMAL_SECONDS:g} s", good=good)
    result.faults.append(
        Fault(
            fault=f"{factor:g} times the highest rate for {seconds:.0f} s",
            saw=f"{counted({'OK': report['ok']} | report['errors'])}; {part:.0%} of "
            f"the highest rate answered, at most {report['max_ms'] / 1e3:.1f} s late",
            on_record=f"{signed:,.0f} signed for {given:,.0f} answers; refused calls "
            "are only counted",
            recovery=told,
        )
    )
    return after


def _late(report: dict[str, Any]) -> int:
    # What came after the client's patience, and what never came.
    # Where the server sees first that the client's time is over, it cancels the call.
    over = sum(report["errors"].get(code, 0) for code in _OVER)
    gave_up = over + report["unfinished"]
    return int(gave_up + (report["max_ms"] > _PATIENCE_SECONDS * 1e3))
