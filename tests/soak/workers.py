"""Two workers beside one: no serial number twice, no row lost, no CPU time wasted."""

import statistics
import time
from contextlib import ExitStack
from typing import Any

from bridge.ledger.archive.archive import Archive
from bridge.ledger.verify import compare
from tests.bench.load import SERVER_CORE
from tests.soak.ground import Ground, Look, say
from tests.soak.result import Fault, Result
from tests.support.harness.kills import Intents
from tests.support.harness.workers import Supervised, await_true

_CLIENTS = 2
"""Of each worker, on the core of that worker: one and two differ in nothing else."""
_ROUNDS = 3
_MORE_CPU = 0.1
_MOST_SECONDS = 15.0
_AGREE_SECONDS = 120.0


def run(ground: Ground) -> Result:
    """Run one worker and two in turn, under four clients."""
    result = Result("workers")
    cpu: dict[int, list[float]] = {1: [], 2: []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    repeated = issued = 0
    for number in range(_ROUNDS):
        for workers in (1, 2):
            bridge = ground.bridge(
                f"workers-{workers}-{number}", workers=workers, core=_core(workers)
            )
            with bridge:
                await_true(lambda: _are_up(bridge, workers))  # noqa: B023 - called here
                used, reports = _loaded(ground, bridge, workers)
                _await_agreement(bridge)
            answers = sum(report["ok"] for report in reports)
            cpu[workers].append(used / answers * 1e6)
            rates[workers].append(sum(report["ok_per_second"] for report in reports))
            intents = _agreeing(bridge)
            repeated += len(intents.repeated)
            repeated += sum(report["duplicate_serials"] for report in reports)
            issued += answers
            say(
                f"{workers} workers: {rates[workers][-1]:.0f}/s, "
                f"{cpu[workers][-1]:.0f} us a request"
            )
    _judge(result, cpu, rates, repeated, issued)
    return result


def _are_up(bridge: Supervised, workers: int) -> bool:
    return bridge.metric("meshca_worker_up") == workers


def _core(workers: int) -> str | None:
    return SERVER_CORE if workers == 1 else None


def _loaded(
    ground: Ground, bridge: Supervised, workers: int
) -> tuple[float, list[dict[str, Any]]]:
    seconds = min(_MOST_SECONDS, ground.sizes.seconds)
    before = _cpu_seconds(bridge)
    with ExitStack() as stack:
        options = ("-warmup", "0s", "-duration", f"{seconds}s", "-inflight", "8")
        loads = [
            stack.enter_context(ground.load(bridge, *options, core=_core(workers)))
            for _ in range(_CLIENTS * workers)
        ]
        reports = [load.report() for load in loads]
    return _cpu_seconds(bridge) - before, reports


def _cpu_seconds(bridge: Supervised) -> float:
    return Look.at(*bridge.children(), *bridge.feeders).cpu_seconds


def _await_agreement(bridge: Supervised) -> None:
    # Nobody asks any more, so the archive comes to the end of the journals.
    until = time.monotonic() + _AGREE_SECONDS
    archive = Archive.open(f"sqlite:///{bridge.folder}/archive.db", make=False)
    try:
        while not (found := compare(bridge.folder / "journal", archive)).agrees:
            if found.problems or time.monotonic() > until:
                raise AssertionError(f"journals and archive differ: {found}")
            time.sleep(1)
    finally:
        archive.close()


def _agreeing(bridge: Supervised) -> Intents:
    bridge.require_sound_ledger("--archive")
    intents = Intents(bridge.folder / "journal")
    intents.read()
    return intents


def _judge(
    result: Result,
    cpu: dict[int, list[float]],
    rates: dict[int, list[float]],
    repeated: int,
    issued: int,
) -> None:
    one, two = (statistics.median(cpu[workers]) for workers in (1, 2))
    more = two / one - 1
    result.figures |= {"cpu_us": cpu, "per_second": rates, "issued": issued}
    text = f"{issued:,} certificates: {repeated} serial numbers came twice"
    result.judge(text, good=repeated == 0)
    result.judge("journals and archive agree to the row", good=True)
    text = (
        f"CPU of a request: {one:.0f} us with one worker, {two:.0f} us with two "
        f"({more:+.0%}, bound {_MORE_CPU:+.0%}); {statistics.median(rates[1]):.0f} and "
        f"{statistics.median(rates[2]):.0f} a second, two clients on the core of each"
    )
    result.judge(text, good=more <= _MORE_CPU)
    result.faults.append(
        Fault(
            fault="two workers and four clients, and one worker and two, in turn",
            saw=f"{issued:,} certificates, {repeated} serial numbers twice",
            on_record="journals and archive agree to the row",
            recovery="-",
        )
    )
