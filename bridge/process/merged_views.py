"""The readiness and metrics that the parent shows for all workers together.

Workers are asked in parallel and for a bounded time: one that hangs delays nobody.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import wait
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bridge.admin.endpoints import PARTS, Views
from bridge.process.merged_metrics import Page, Totals, parse
from bridge.process.reload import Reloads
from bridge.process.supervisor import Supervisor
from bridge.process.worker_process import RunningWorker, Worker, readiness
from bridge.system.background import SteadyPool

_ASK_SECONDS = 1.0
_ASKERS = 16
_WORKERS = "workers"
_Answer = TypeVar("_Answer")


class Pages:
    """Readiness and metrics of all workers.

    Args:
        supervisor: Has the workers.
        reloads: Has the last refusal of a configuration.
        registry: Holds the parent's own metrics.
        warnings: Returns further warnings of the parent.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        reloads: Reloads,
        registry: CollectorRegistry,
        warnings: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._supervisor = supervisor
        self._reloads = reloads
        self._registry = registry
        self._warnings = warnings
        self._totals = Totals()
        self._merging = threading.Lock()
        self._askers = SteadyPool(_ASKERS, "ask")

    def views(self) -> Views:
        """Return the views of the admin address."""
        return Views(self.readiness, self.metrics)

    def start(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        self._askers.start()

    def close(self) -> None:
        """Stop asking workers."""
        self._askers.shutdown(wait=False, cancel_futures=True)

    def readiness(self) -> dict[str, object]:
        """Return the readiness of the bridge: it is ready if one worker is."""
        workers = self._supervisor.serving()
        answers = self._ask(workers, lambda child: readiness(child, _ASK_SECONDS))
        states = {
            worker.order.writer: _state(worker, answers.get(worker))
            for worker in workers
        }
        warnings = {**self._reloads.warnings(), **self._warnings()}
        unready = [name for name, state in states.items() if state["ready"] is not True]
        if unready and len(unready) < len(states):
            warnings[_WORKERS] = f"not ready: {', '.join(unready)}"
        return {
            "ready": len(unready) < len(states),
            "parts": _parts(states),
            "warnings": warnings,
            _WORKERS: states,
        }

    def metrics(self) -> tuple[bytes, str]:
        """Return the text of a scrape, and its content type."""
        workers = self._supervisor.workers()
        answers = self._ask(workers, _page)
        pages: dict[int, Page | None] = {}
        for worker in workers:
            child = worker.child
            if child is not None:
                pages[child.pid] = answers.get(worker)
        own = CollectorRegistry()
        own.register(_Families(self._of_workers(workers, answers)))
        with self._merging:
            own.register(_Families(self._totals.merge(pages)))
        text = generate_latest(self._registry) + generate_latest(own)
        # See `Metrics.render`.
        return text.replace(b" untyped\n", b" counter\n"), CONTENT_TYPE_LATEST

    def _ask(
        self,
        workers: Iterable[Worker],
        question: Callable[[RunningWorker], _Answer | None],
    ) -> Mapping[Worker, _Answer]:
        asked = {
            worker: self._askers.submit(question, child)
            for worker in workers
            if (child := worker.child) is not None
        }
        done, _ = wait(asked.values(), timeout=_ASK_SECONDS * 1.5)
        answers = {worker: one.result() for worker, one in asked.items() if one in done}
        return {worker: each for worker, each in answers.items() if each is not None}

    def _of_workers(
        self, workers: Iterable[Worker], answers: Mapping[Worker, Page]
    ) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "meshca_worker_up", "1 if the worker answers.", labels=["worker"]
        )
        for worker in workers:
            up.add_metric([worker.order.writer], float(worker in answers))
        yield up
        restarts = CounterMetricFamily(
            "meshca_worker_restarts",
            "Workers that were started again after they had ended.",
            labels=["worker"],
        )
        for writer, number in self._supervisor.restarts().items():
            restarts.add_metric([writer], number)
        yield restarts


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _page(child: RunningWorker) -> Page | None:
    try:
        return parse(child.get("/metrics", _ASK_SECONDS)[1])
    except (OSError, ValueError):
        return None


def _state(worker: Worker, answer: Mapping[str, Any] | None) -> dict[str, Any]:
    if answer is not None:
        return dict(answer)
    reason = worker.reason or "it does not answer"
    return {"ready": False, "parts": {"worker": reason}, "warnings": {}}


def _parts(states: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    # A part is ok if one worker says so. Workers that are not ready count only where
    # none is.
    parts: dict[str, object] = {}
    ready = [state for state in states.values() if state["ready"] is True]
    for state in ready or states.values():
        for part, text in state["parts"].items():
            if parts.get(part, text) != "ok" or part not in parts:
                parts[part] = text
    return parts or dict.fromkeys(PARTS, "there is no worker")
