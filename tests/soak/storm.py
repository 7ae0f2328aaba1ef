"""All proxies of a mesh at once: as many clients, each with a connection of its own.

They are Istio's own client, with its rule for asking again.
"""

import json
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.load import CLIENT_CORE, BenchError
from tests.soak.ground import TRUST_DOMAIN, Ground, Look, say
from tests.soak.result import Fault, Result, counted
from tests.support.harness.real_process import PEER_SERVER_NAME
from tests.support.harness.workers import Supervised

_STORMS = 4
_GROWTH = 0.10
_REST_SECONDS = 4.0
_LONGEST_REST_SECONDS = 20.0
_RETRIED = {"Canceled", "DeadlineExceeded", "ResourceExhausted"} | {
    *("Aborted", "Internal", "Unavailable")
}


def run(ground: Ground) -> Result:
    """Let the storm come down on one process on one core, four times."""
    result = Result("storm")
    clients = ground.sizes.clients
    tokens = _tokens(ground, clients)
    bridge = ground.bridge("storm")
    looks: list[Look] = []
    storms: list[dict[str, Any]] = []
    with bridge:
        # In service for a while: what the archive keeps in memory is full.
        ground.highest_rate(bridge)
        for number in range(1, _STORMS + 1):
            storms.append(_storm(ground, bridge, tokens))
            looks.append(_at_rest(bridge))
            say(f"storm {number}: {storms[-1]}, {looks[-1]}")
        shed = bridge.metric("meshca_requests_total", code="RESOURCE_EXHAUSTED")
    bridge.require_sound_ledger()
    result.figures |= {
        "storms": storms,
        "resident_kb": [look.resident_kb for look in looks],
        "shed": shed,
    }
    _judge(result, clients, storms, looks)
    _tell(result, clients, storms, shed)
    return result


def _storm(ground: Ground, bridge: Supervised, tokens: Path) -> dict[str, Any]:
    command: list[str | Path] = [
        *("taskset", "-c", CLIENT_CORE, ground.istio_client),
        *("-storm", str(ground.sizes.clients), "-token", tokens),
        *("-address", bridge.address, "-server-name", PEER_SERVER_NAME),
        *("-roots", bridge.roots, "-ttl", "3600"),
        *("-identity", f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"Istio's client failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _at_rest(bridge: Supervised) -> Look:
    # When the connections are closed, the archive has all rows, and memory that was
    # given back is seen to be so.
    until = time.monotonic() + _LONGEST_REST_SECONDS
    looks = [Look.at(*bridge.watched.values())]
    while time.monotonic() < until:
        time.sleep(_REST_SECONDS)
        looks.append(Look.at(*bridge.watched.values()))
        if looks[-2].resident_kb <= looks[-1].resident_kb:
            break
    return looks[-1]


def _tokens(ground: Ground, count: int) -> Path:
    folder = ground.folder / "storm-tokens"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    say(f"making {count} tokens")
    for number, token in enumerate(ground.issuer.many(count, now=datetime.now(UTC))):
        (folder / str(number)).write_text(token)
    return folder


def _judge(
    result: Result, clients: int, storms: list[dict[str, Any]], looks: list[Look]
) -> None:
    least = min(storm["ok"] for storm in storms)
    text = f"{clients} clients at once: at least {least} got a certificate"
    result.judge(text, good=least == clients)
    strange = {code for storm in storms for code in storm["codes"]} - _RETRIED
    text = f"statuses that Istio's client does not ask again after: {sorted(strange)}"
    result.judge(text, good=not strange)
    repeats = sum(storm["repeated_serials"] for storm in storms)
    result.judge(f"serial numbers that came twice: {repeats}", good=repeats == 0)
    first, *later = [look.resident_kb for look in looks]
    growth = max(later) / first - 1
    text = f"memory of storms 2 to {_STORMS}: {growth:+.1%}, bound {_GROWTH:+.0%}"
    result.judge(text, good=growth < _GROWTH)


def _tell(
    result: Result, clients: int, storms: list[dict[str, Any]], shed: float
) -> None:
    codes: dict[str, float] = {"OK": sum(storm["ok"] for storm in storms)}
    for storm in storms:
        for code, count in storm["codes"].items():
            codes[code] = codes.get(code, 0) + count
    slowest = max(storm["seconds"] for storm in storms)
    result.faults.append(
        Fault(
            fault=f"{clients} clients at once, each with a new connection, "
            f"{_STORMS} times",
            saw=f"after Istio's retries: {counted(codes)}",
            on_record=f"an intent and an outcome for each certificate; {shed:,.0f} "
            "refusals are only counted",
            recovery=f"the last has its certificate after {slowest:.1f} s",
        )
    )
