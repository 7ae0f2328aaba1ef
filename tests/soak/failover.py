"""Two equal issuing CAs at half the highest rate, and the first one is lost.

Clients ask at fixed moments, and do not ask again.
"""

import time
from collections.abc import Callable, Mapping

from tests.bench.load import SERVER_CORE
from tests.soak.ground import TRUST_DOMAIN, Ground, say
from tests.soak.result import Fault, Result, counted
from tests.support.clients.callers import RETRYABLE
from tests.support.harness.hsm import Backend, HSMBridge

_FAULTS: Mapping[str, Callable[[HSMBridge, Backend], None]] = {
    "refuses": lambda _, first: first.refuse(),
    "stalls": lambda _, first: first.stall(),
    "is stopped": lambda bridge, first: bridge.stop_signers(first),
}
_FAULT_SECONDS = 20.0
_BEFORE_SECONDS = 3.0
_PART = 0.5
_MOST_FAILED = 0.01
_PATIENCE_SECONDS = 5
_RETRYABLE = frozenset(code.replace("_", "").lower() for code in RETRYABLE)


def run(ground: Ground) -> Result:
    """Lose the first of two tokens, in each of three ways."""
    result = Result("failover")
    for name, lose in _FAULTS.items():
        folder = ground.folder / name.replace(" ", "-")
        bridge = HSMBridge(
            folder,
            names=("first", "second"),
            issuers=[ground.issuer],
            trust_domain=TRUST_DOMAIN,
            prefix=("taskset", "-c", SERVER_CORE),
        )
        with bridge:
            rate = ground.highest_rate(bridge, 5.0)
            _lose(ground, bridge, result, name, lose, rate * _PART)
            bridge.backends["first"].shim.clear()
        bridge.require_sound_ledger()
    return result


def _lose(
    ground: Ground,
    bridge: HSMBridge,
    result: Result,
    name: str,
    lose: Callable[[HSMBridge, Backend], None],
    rate: float,
) -> None:
    seconds = _BEFORE_SECONDS + min(_FAULT_SECONDS, ground.sizes.seconds)
    options = (
        *("-qps", f"{rate:.0f}", "-duration", f"{seconds}s", "-warmup", "0s"),
        *("-timeout", f"{_PATIENCE_SECONDS}s"),
        *("-inflight", f"{rate * _PATIENCE_SECONDS:.0f}"),
    )
    with ground.load(bridge, *options) as load:
        time.sleep(_BEFORE_SECONDS)
        load.require_running()
        lose(bridge, bridge.backends["first"])
        report = load.report()
    errors = report["errors"]
    failed = sum(errors.values()) + report["unfinished"]
    part = failed / (failed + report["ok"])
    by_second = bridge.metric(
        "meshca_backend_calls_total", issuing_ca="second", result="ok"
    )
    say(f"{name}: {rate:.0f}/s asked, {report['ok']} served, errors {errors}")
    result.figures[name] = report | {"asked_per_second": rate}
    result.judge(
        f"the first of two equal CAs {name}, {rate:.0f}/s asked: {part:.2%} of the "
        f"calls fail, bound {_MOST_FAILED:.0%}",
        good=part < _MOST_FAILED and by_second > 0,
    )
    others = {code for code in errors if code.lower() not in _RETRYABLE}
    result.judge(
        f"the first of two equal CAs {name}: statuses that nobody asks again after: "
        f"{sorted(others) or 'none'}",
        good=not others and not report["unfinished"],
    )
    result.faults.append(
        Fault(
            fault=f"the first of two equal CAs {name}, at half the highest rate",
            saw=f"{counted({'OK': report['ok']} | errors)}; p99 "
            f"{report['p99_ms']:.0f} ms",
            on_record="each attempt, also those at the first",
            recovery=f"{by_second:,.0f} certificates by the second; none is waited for",
        )
    )
