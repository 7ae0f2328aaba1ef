"""Two equal issuing CAs at half the highest rate, and the first one is lost.

The highest rate is that of the slower one: the second has to carry it alone.

Clients ask at fixed moments, and do not ask again.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.load import SERVER_CORE
from tests.soak.ground import TRUST_DOMAIN, Ground, say
from tests.soak.result import Fault, Result, counted
from tests.support.clients.callers import RETRYABLE
from tests.support.harness.hsm import Backend, HSMBridge, add_equal_hsm
from tests.support.harness.vault import ROLE, VaultBridge
from tests.support.harness.workers import Supervised
from tests.support.parts.vault import OPENBAO, VAULT, Product, Server
from tests.support.parts.vault_mounts import PKI, Transit

_FAULT_SECONDS = 20.0
_BEFORE_SECONDS = 3.0
_PART = 0.5
_MOST_FAILED = 0.01
_PATIENCE_SECONDS = 5
_RETRYABLE = frozenset(code.replace("_", "").lower() for code in RETRYABLE)
_ON_SERVER_CORE = ("taskset", "-c", SERVER_CORE)
_HSM = "hsm"
_ENGINES: Mapping[str, type[PKI | Transit]] = {"pki": PKI, "transit": Transit}
_VAULT_ROLE = {**ROLE, "allowed_uri_sans": [f"spiffe://{TRUST_DOMAIN}/*"]}


@dataclass(frozen=True, slots=True)
class _Pair:
    # A bridge with two equal issuing CAs, and what loses the first one.
    bridge: Supervised
    order: Sequence[str]
    lose: Callable[[], object]
    end: Callable[[], object]


_Made = Callable[[Ground, Path], AbstractContextManager[_Pair]]


@contextmanager
def _tokens(
    lose: Callable[[HSMBridge, Backend], object], ground: Ground, folder: Path
) -> Iterator[_Pair]:
    order = ("first", "second")
    bridge = HSMBridge(
        folder,
        names=order,
        issuers=[ground.issuer],
        trust_domain=TRUST_DOMAIN,
        prefix=_ON_SERVER_CORE,
    )
    first = bridge.backends["first"]
    yield _Pair(bridge, order, partial(lose, bridge, first), first.shim.clear)


@contextmanager
def _with_vault(
    product: Product,
    order: Sequence[str],
    fault: Callable[[Server, Backend], tuple[Callable[[], object], ...]],
    ground: Ground,
    folder: Path,
) -> Iterator[_Pair]:
    (engine,) = set(order) - {_HSM}
    with Server(folder.with_name(f"{folder.name}-server"), product) as server:
        bridge = VaultBridge(
            folder,
            server,
            engines={engine: _ENGINES[engine]},
            issuers=[ground.issuer],
            trust_domain=TRUST_DOMAIN,
            prefix=_ON_SERVER_CORE,
        )
        for made in bridge.engines.values():
            if isinstance(made, PKI):
                made.write_role(**_VAULT_ROLE)
        lose, end = fault(server, add_equal_hsm(bridge, _HSM, order))
        yield _Pair(bridge, order, lose, end)


def _stalled_hsm(_: Server, hsm: Backend) -> tuple[Callable[[], object], ...]:
    return hsm.stall, hsm.shim.clear


def _sealed(server: Server, _: Backend) -> tuple[Callable[[], object], ...]:
    return server.seal, server.unseal


def _stopped(server: Server, _: Backend) -> tuple[Callable[[], object], ...]:
    numbers = (signal.SIGSTOP, signal.SIGCONT)
    return tuple(partial(os.kill, server.pid, number) for number in numbers)


_PAIRS: Mapping[str, _Made] = {
    "the first of two HSMs refuses": partial(_tokens, lambda _, one: one.refuse()),
    "the first of two HSMs stalls": partial(_tokens, lambda _, one: one.stall()),
    "the first of two HSMs is stopped": partial(
        _tokens, lambda bridge, one: bridge.stop_signers(one)
    ),
    "HSM before Vault (PKI): the HSM stalls": partial(
        _with_vault, VAULT, (_HSM, "pki"), _stalled_hsm
    ),
    "HSM before OpenBao (Transit): the HSM stalls": partial(
        _with_vault, OPENBAO, (_HSM, "transit"), _stalled_hsm
    ),
    "OpenBao (PKI) before HSM: OpenBao is sealed": partial(
        _with_vault, OPENBAO, ("pki", _HSM), _sealed
    ),
    "Vault (PKI) before HSM: Vault is stopped": partial(
        _with_vault, VAULT, ("pki", _HSM), _stopped
    ),
    "Vault (Transit) before HSM: Vault is stopped": partial(
        _with_vault, VAULT, ("transit", _HSM), _stopped
    ),
}


def run(ground: Ground) -> Result:
    """Lose the first of two equal issuing CAs, in each of some ways."""
    result = Result("failover")
    for number, (name, make) in enumerate(_PAIRS.items()):
        with make(ground, ground.folder / f"failover-{number}") as pair:
            rate = _second_rate(ground, pair)
            with pair.bridge:
                rate = min(rate, ground.highest_rate(pair.bridge, 5.0))
                try:
                    _lose(ground, pair, result, name, rate * _PART)
                finally:
                    pair.end()
            pair.bridge.require_sound_ledger()
    return result


def _second_rate(ground: Ground, pair: _Pair) -> float:
    # Where the second is slower than half of the first, nothing could stand in.
    order = pair.order
    pair.bridge.change(issuance__issuing_cas=[*reversed(order)])
    with pair.bridge:
        rate = ground.highest_rate(pair.bridge, 5.0)
    pair.bridge.change(issuance__issuing_cas=list(order))
    return rate


def _lose(ground: Ground, pair: _Pair, result: Result, name: str, rate: float) -> None:
    seconds = _BEFORE_SECONDS + min(_FAULT_SECONDS, ground.sizes.seconds)
    options = (
        *("-qps", f"{rate:.0f}", "-duration", f"{seconds}s", "-warmup", "0s"),
        *("-timeout", f"{_PATIENCE_SECONDS}s"),
        *("-inflight", f"{rate * _PATIENCE_SECONDS:.0f}"),
    )
    with ground.load(pair.bridge, *options) as load:
        time.sleep(_BEFORE_SECONDS)
        load.require_running()
        pair.lose()
        report = load.report()
    errors = report["errors"]
    failed = sum(errors.values()) + report["unfinished"]
    part = failed / (failed + report["ok"])
    second = pair.order[-1]
    by_second = pair.bridge.metric(
        "meshca_backend_calls_total", issuing_ca=second, result="ok"
    )
    say(f"{name}: {rate:.0f}/s asked, {report['ok']} served, errors {errors}")
    result.figures[name] = report | {"asked_per_second": rate}
    result.judge(
        f"{name}, {rate:.0f}/s asked: {part:.2%} of the calls fail, bound "
        f"{_MOST_FAILED:.0%}",
        good=part < _MOST_FAILED and by_second > 0,
    )
    others = {code for code in errors if code.lower() not in _RETRYABLE}
    result.judge(
        f"{name}: statuses that nobody asks again after: {sorted(others) or 'none'}",
        good=not others and not report["unfinished"],
    )
    result.faults.append(
        Fault(
            fault=f"{name}, at half the highest rate",
            saw=f"{counted({'OK': report['ok']} | errors)}; p99 "
            f"{report['p99_ms']:.0f} ms",
            on_record="each attempt, also those at the first",
            recovery=f"{by_second:,.0f} certificates by the second; none is waited for",
        )
    )
