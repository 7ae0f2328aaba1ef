"""Peers that mean harm, beside honest callers of both meshes with their own clients.

Each attack runs from one core, without a credential, for a while. The bounds are those
of issue 18.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from tests.bench.load import CLIENT_CORE, BenchError
from tests.soak.ground import TRUST_DOMAIN, Ground, Look, say
from tests.soak.result import Fault, Result, counted
from tests.support.clients import linkerd_go
from tests.support.clients.attacks import ATTACKS
from tests.support.clients.load import Prober
from tests.support.harness.real_process import PEER_SERVER_NAME
from tests.support.harness.workers import Supervised

_PER_SECOND = 5
"""Honest calls on each front."""
_LEAST = 0.95
_RETRIED = {"Aborted", "Internal", "ResourceExhausted", "Unavailable"}
"""After these, Istio's client asks again. A Linkerd proxy does after any."""
_MOST_MEBIBYTES = 512
_READY_SECONDS = 1.0
_NORMAL_SECONDS = 10.0
_PERIOD_SECONDS = 0.25
_ROOT = Path(__file__).resolve().parents[2]


def run(ground: Ground) -> Result:
    """Run each attack against a bridge of its own: one process on one core."""
    result = Result("hostile")
    for kind in ground.sizes.attacks or ATTACKS:
        _attack(ground, result, kind)
    return result


@dataclass(slots=True)
class _Watch:
    """Looks at the worker and at /readyz inside the block."""

    bridge: Supervised
    most_kb: int = 0
    slowest: float = 0.0
    unready: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=self._run, args=(look,), daemon=True)
            for look in (self._look, self._ask)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, look: Any) -> None:
        while not self._over.wait(_PERIOD_SECONDS):
            look()

    def _look(self) -> None:
        self.most_kb = max(self.most_kb, Look.at(self.bridge.worker).resident_kb)

    def _ask(self) -> None:
        began = time.monotonic()
        status = 0
        with suppress(OSError):
            status, _ = self.bridge.get("/readyz")
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.unready += status != 200


def _attack(ground: Ground, result: Result, kind: str) -> None:
    attack = ATTACKS[kind]
    seconds = ground.sizes.seconds
    bridge = ground.bridge(f"hostile-{kind}", fronts=("istio", "linkerd"))
    address = bridge.address if attack.front == "istio" else bridge.linkerd_address
    with bridge:
        idle = Look.at(bridge.worker)
        with Prober(bridge) as prober:
            with _Watch(bridge) as watch:
                attacker = _begin(
                    [
                        *(sys.executable, "-m", "tests.support.clients.attacks"),
                        *(kind, address, str(seconds)),
                    ]
                )
                found = _honest(ground, bridge, seconds)
                sent = _end(attacker)
            ended = time.monotonic()
            prober.await_normal(ended, _NORMAL_SECONDS)
            normal = prober.normal_after(ended)
        _judge(result, kind, found, watch, normal)
        result.figures[kind] = {
            "honest": found,
            "sent": sent,
            "most_kb": watch.most_kb,
            "idle_kb": idle.resident_kb,
            "readyz_seconds": watch.slowest,
            "normal_after": normal,
        }
        rate = f"{sent['sent'] / seconds:,.0f}/s, {sent['bytes'] / seconds / 1e3:,.0f}"
        say(f"{kind}: {result.figures[kind]}")
        result.faults.append(
            Fault(
                fault=f"{kind}: {rate} KB/s over {attack.connections} connections to "
                f"{attack.front.capitalize()}'s port, for {seconds:.0f} s; "
                f"{sent['cut']:,.0f} closed",
                saw="; ".join(
                    f"{front}: {counted({'OK': one['ok']} | one['codes'])}"
                    for front, one in found.items()
                ),
                on_record=f"at most {watch.most_kb / 1024:.0f} MiB of memory; `/readyz`"
                f" within {watch.slowest:.2f} s",
                recovery="never" if normal is None else f"{normal:.1f} s",
            )
        )
    bridge.require_sound_ledger()


def _begin(command: Iterable[str | Path]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["taskset", "-c", CLIENT_CORE, *command],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: "subprocess.Popen[str]") -> Any:
    out, error = process.communicate()
    if process.returncode:
        raise BenchError(f"a client or the attacker failed: {error[-2000:]}")
    return json.loads(out)


def _honest(ground: Ground, bridge: Supervised, seconds: float) -> dict[str, Any]:
    """Ask with Istio's and Linkerd's clients; return what each got, by front."""
    count = int(_PER_SECOND * seconds)
    folder = ground.folder / f"hostile-tokens-{time.monotonic_ns()}"
    folder.mkdir()
    tokens = ground.issuer.many(count, now=datetime.now(UTC))
    for number, token in enumerate(tokens):
        (folder / str(number)).write_text(token)
    istio = _begin(
        [
            *(ground.istio_client, "-storm", str(count), "-within", f"{seconds}s"),
            *("-token", folder, "-address", bridge.address),
            *("-server-name", PEER_SERVER_NAME, "-roots", bridge.roots),
            *("-ttl", "3600", "-identity", f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"),
        ]
    )
    name = linkerd_go.name_of("web", trust_domain=TRUST_DOMAIN)
    token = bridge.token(audiences=[linkerd_go.AUDIENCE])
    linkerd = linkerd_go.ask_together(
        bridge.linkerd_address,
        [(name, token)],
        folder,
        clients=count,
        within=seconds,
    )
    codes: dict[str, int] = {}
    for answer in linkerd:
        codes[answer.code] = codes.get(answer.code, 0) + 1
    given = _end(istio)
    return {
        "istio": {"count": count, "ok": given["ok"], "codes": given["codes"]},
        "linkerd": {"count": count, "ok": codes.pop("OK", 0), "codes": codes},
    }


def _judge(
    result: Result,
    kind: str,
    found: dict[str, Any],
    watch: _Watch,
    normal: float | None,
) -> None:
    for front, one in found.items():
        part = one["ok"] / one["count"]
        text = f"{kind}: {part:.1%} of {front}'s callers got a certificate"
        result.judge(f"{text}, floor {_LEAST:.0%}", good=part >= _LEAST)
    strange = {*found["istio"]["codes"]} - _RETRIED
    text = f"statuses that Istio's client does not ask again after: {sorted(strange)}"
    result.judge(f"{kind}: {text}", good=not strange)
    most = watch.most_kb / 1024
    text = f"{kind}: {most:.0f} MiB of memory, bound {_MOST_MEBIBYTES} MiB"
    result.judge(text, good=most < _MOST_MEBIBYTES)
    text = f"{kind}: /readyz within {watch.slowest:.2f} s, bound {_READY_SECONDS:g} s"
    good = watch.slowest <= _READY_SECONDS and not watch.unready
    result.judge(f"{text}; {watch.unready} times not 200", good=good)
    told = "never" if normal is None else f"{normal:.1f} s after its end"
    result.judge(f"{kind}: normal again {told}", good=normal is not None)
