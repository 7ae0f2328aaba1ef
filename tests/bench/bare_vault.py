"""Calls of Vault in a loop, with nothing around them: what one costs its client.

`python -m tests.bench.bare_vault` takes an order as JSON from its standard input and
writes what it measured as JSON. The client is the plugin's adapter, or hvac's own over
requests.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from hvac.adapters import JSONAdapter

from bridge_vault.adapter import Servers, VaultAdapter
from bridge_vault.connection import Connections

_WARMUP_SECONDS = 0.5
_CALL_SECONDS = 10.0
Call = Callable[[], object]


def main() -> None:
    """Carry out the order, and write rate, CPU time and median of the calls."""
    order: dict[str, Any] = json.loads(sys.stdin.read())
    make = _requests if order["client"] == "requests" else _ours(order["url"])
    calls = [make(order) for _ in range(order["threads"])]
    _looped(calls, _WARMUP_SECONDS)
    cpu, began = time.process_time(), time.perf_counter()
    times = _looped(calls, order["seconds"])
    cpu, whole = time.process_time() - cpu, time.perf_counter() - began
    found = {
        "per_second": len(times) / whole,
        "cpu_us": cpu / len(times) * 1e6,
        "p50_ms": statistics.median(times) * 1e3,
        "cpu_seconds": cpu,
    }
    sys.stdout.write(json.dumps(found))


def _ours(url: str) -> Callable[[dict[str, Any]], Call]:
    servers = Servers([Connections(url, None)])

    def make(order: dict[str, Any]) -> Call:
        def call() -> object:
            deadline = time.monotonic() + _CALL_SECONDS
            adapter = VaultAdapter(servers, deadline, token=order["token"])
            return adapter.post(order["path"], json=order["body"])

        return call

    return make


def _requests(order: dict[str, Any]) -> Call:
    # A session of requests is not safe between threads, so each has one.
    adapter = JSONAdapter(base_uri=order["url"], token=order["token"])
    return lambda: adapter.post(order["path"], json=order["body"])


def _looped(calls: list[Call], seconds: float) -> list[float]:
    """Call for a time, each in a thread; return the seconds of all calls."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def loop(call: Call) -> None:
        while (began := time.perf_counter()) < end:
            call()
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=loop, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


if __name__ == "__main__":
    main()
