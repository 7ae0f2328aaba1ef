"""`kill -9` of workers and of the parent under load, at random moments."""

import random
import secrets
import statistics
from collections import Counter

from tests.soak.ground import Ground, say
from tests.soak.result import Fault, Result, counted
from tests.support.clients.load import Holders
from tests.support.harness.kills import ALL, PARENT, WORKER, Kill, Kills
from tests.support.harness.workers import Supervised

_OF_A_ROUND = 50
"""Kills of one bridge: then another one, since each kill reads a whole ledger."""
_WORKERS = 2
_RETRIED = {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}


def run(ground: Ground) -> Result:
    """Kill until enough were killed."""
    result = Result("kills")
    seed = secrets.randbits(32)
    say(f"seed {seed}")
    moments = random.Random(seed)
    all_kills: list[Kill] = []
    saw: Counter[str] = Counter()
    held = unknown = 0
    wanted = ground.sizes.kills
    while len(all_kills) < wanted:
        count = min(_OF_A_ROUND, wanted - len(all_kills))
        bridge = Supervised(ground.folder / f"kills-{len(all_kills)}", _WORKERS)
        with bridge, Holders(bridge) as holders:
            kills = Kills(bridge, holders, moments)
            all_kills.extend(kills.run(count))
        kills.require_sound()
        with bridge:
            bridge.ask()
        bridge.require_sound_ledger("--archive")
        saw += holders.saw()
        held += len(holders.held())
        unknown += len(bridge.rows(kind="unknown", purpose="workload"))
        say(f"{len(all_kills)} kills, {held} certificates, clients saw {dict(saw)}")
    _judge(result, all_kills, held, saw)
    _tell(result, all_kills, held, unknown, saw)
    result.figures |= {"seed": seed, "held": held, "unknown": unknown, "saw": dict(saw)}
    return result


def _judge(result: Result, kills: list[Kill], held: int, saw: Counter[str]) -> None:
    # What is unsound has ended the run before.
    result.judge(
        f"{len(kills)} kills: the ledger verified after each, and each of {held} "
        "certificates has its intent",
        good=True,
    )
    strange = sorted(set(saw) - _RETRIED)
    text = f"statuses that Istio's client does not ask again after: {strange}"
    result.judge(text, good=not strange)


def _tell(
    result: Result, kills: list[Kill], held: int, unknown: int, saw: Counter[str]
) -> None:
    for what in (WORKER, PARENT, ALL):
        took = [kill.recovery_seconds for kill in kills if kill.what == what]
        if not took:
            continue
        median, most = statistics.median(took), max(took)
        result.figures[what] = {"count": len(took), "median": median, "max": most}
        result.faults.append(
            Fault(
                fault=f"`kill -9` of {what}, {len(took)} times under load",
                saw=f"in all kills: {counted(saw)}",
                on_record=f"in all kills: an intent for each of {held:,} certificates; "
                f"{unknown:,} attempts ended as `unknown`",
                recovery=f"the next certificate after {median:.2f} s (median), "
                f"{most:.1f} s (most)",
            )
        )
