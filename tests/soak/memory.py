"""Many issuances: what grows."""

import time

from tests.soak.ground import Ground, Load, Look, say
from tests.soak.result import Result
from tests.support.harness.workers import Supervised

_WARM = 0.1
"""Of all issuances: from then on nothing may grow."""
_GROWTH = 0.05
_PERIOD_SECONDS = 1.0
_TELL_SECONDS = 15.0


def run(ground: Ground) -> Result:
    """Issue, and look at its processes after the first tenth and at the end."""
    result = Result("memory")
    wanted = ground.sizes.issuances
    bridge = ground.bridge("memory")
    with bridge, ground.load(bridge, "-duration", "24h") as load:
        warm = _look_after(bridge, load, int(wanted * _WARM))
        end = _look_after(bridge, load, wanted)
    growth = end.resident_kb / warm.resident_kb - 1
    result.figures |= {"warm": repr(warm), "end": repr(end), "growth": growth}
    issued = f"after {wanted:,} issuances, compared with {int(wanted * _WARM):,}"
    text = (
        f"{issued}: memory {warm.resident_kb / 1024:.0f} MiB, {growth:+.1%}, bound "
        f"{_GROWTH:+.0%}"
    )
    result.judge(text, good=growth < _GROWTH)
    text = f"{issued}: open files {warm.files} and {end.files}"
    result.judge(text, good=end.files <= warm.files)
    text = f"{issued}: threads {warm.threads} and {end.threads}"
    result.judge(text, good=end.threads <= warm.threads)
    bridge.require_sound_ledger()
    return result


def _look_after(bridge: Supervised, load: Load, issued: int) -> Look:
    told = time.monotonic()
    while (count := bridge.metric("meshca_requests_total", code="OK")) < issued:
        load.require_running()
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            say(f"{count:,.0f} issued: {Look.at(*bridge.watched.values())}")
        time.sleep(_PERIOD_SECONDS)
    look = Look.at(*bridge.watched.values())
    say(f"{count:,.0f} issued: {look}")
    return look
