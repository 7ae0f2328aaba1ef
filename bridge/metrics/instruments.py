"""The metrics of a process, for Prometheus.

Every metric belongs to one `Metrics` value with a registry of its own: two servers in
one process do not mix, and nothing is counted at import. To look up a child by its
labels costs several times what counting does, so the children that a request needs are
looked up once, here.

The metrics of the meshes' own CAs are in `bridge.metrics.compatibility`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from platform import python_version
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bridge.metrics.compatibility import CitadelMetrics, ServiceMetrics
from bridge.metrics.expiry import Expiries
from bridge.system.clock import system_clock

STEPS = (
    "identify",
    "admit",
    "csr",
    "constrain",
    "prepare",
    "record",
    "sign",
    "verify",
    "reply",
)
"""The steps of one request, in order."""

SHED_REASONS = (
    "in_flight",
    "queue",
    "stalled",
    "deadline",
    "gone",
    "identity",
    "cluster",
    "backend",
)
"""Why a call was shed: too many in progress, too long in the queue, other messages of
its connection overdue, too little time left, the caller has gone, the rate limit of the
identity or of the cluster, no free place at the issuing CA."""

_SHORT = (25e-6, 50e-6, 1e-4, 25e-5, 5e-4, 1e-3, 25e-4, 5e-3, 0.01, 0.05, 0.1, 0.5, 1.0)
_LONG = (1e-3, 25e-4, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


_KEPT_AWAY = ("breaker", "bulkhead")


@dataclass(frozen=True, slots=True)
class _BackendFamilies:
    # The metrics that have the issuing CA's name as a label.
    calls: Counter
    seconds: Histogram
    retries: Counter
    failovers: Counter
    kept_away: Counter
    breaker_open: Gauge
    breaker_opened: Counter


class BackendMetrics:
    """The metrics of one issuing CA, looked up once."""

    def __init__(self, families: _BackendFamilies, issuing_ca: str) -> None:
        self._calls = families.calls
        self._issuing_ca = issuing_ca
        self._results: dict[str, Counter] = {}
        self.seconds = families.seconds.labels(issuing_ca)
        """The duration of a call, of any result."""
        self._retries = families.retries.labels(issuing_ca)
        self._failovers = families.failovers.labels(issuing_ca)
        self._kept_away = {
            reason: families.kept_away.labels(issuing_ca, reason)
            for reason in _KEPT_AWAY
        }
        self._breaker_open = families.breaker_open.labels(issuing_ca)
        self._breaker_opened = families.breaker_opened.labels(issuing_ca)

    def opened(self, is_open: bool, /) -> None:  # noqa: FBT001 - see `Observer`
        """See `bridge.resilience.breaker.Observer`."""
        self._breaker_open.set(is_open)
        if is_open:
            self._breaker_opened.inc()

    def retried(self) -> None:
        """See `bridge.resilience.breaker.Observer`."""
        self._retries.inc()

    def failed_over(self) -> None:
        """See `bridge.resilience.breaker.Observer`."""
        self._failovers.inc()

    def kept_away(self, reason: str, /) -> None:
        """See `bridge.resilience.breaker.Observer`."""
        self._kept_away[reason].inc()

    def called(self, result: str) -> None:
        """Count one call; `result` is `ok` or the rule of the error."""
        child = self._results.get(result)
        if child is None:
            child = self._results[result] = self._calls.labels(self._issuing_ca, result)
        child.inc()


class TokenViews(Protocol):
    """How the tokens of all clusters are verified; see `ClusterRegistry`."""

    def modes(self) -> Iterable[tuple[str, str]]:
        """Return each cluster, and how its tokens are verified now."""

    def watch_ages(self) -> Iterable[tuple[str, float]]:
        """Return each watched cluster, and the age of its watch in seconds."""

    def key_ages(self) -> Iterable[tuple[str, float]]:
        """Return each cluster with keys, and their age in seconds."""

    def refused_keys(self) -> Mapping[str, int]:
        """Return how many keys of each cluster are not used: an earlier one's."""

    def watched_objects(self) -> Iterable[tuple[str, str, int]]:
        """Return each watched cluster, a kind, and how many objects were seen."""


class PluginMeters:
    """The metrics of one plugin, see `bridge.spi.PluginMetrics`."""

    def __init__(self, values: Gauge, events: Counter, issuing_ca: str) -> None:
        self._values = values
        self._events = events
        self._issuing_ca = issuing_ca

    def set(self, name: str, value: float) -> None:
        """Show a value, in place of the last one of this name."""
        self._values.labels(self._issuing_ca, name).set(value)

    def count(self, name: str, amount: int = 1) -> None:
        """Count events."""
        self._events.labels(self._issuing_ca, name).inc(amount)


class Metrics:
    """Every metric of one process."""

    def __init__(
        self, version: str = "", now: Callable[[], datetime] | None = None
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.citadel = CitadelMetrics()
        self.expiries = Expiries(now or system_clock)
        """The expiry of the certificates of all owners."""
        for collector in (_Adapter(self.citadel.collect), self.expiries):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        Info(
            "meshca_build",
            "The versions of the bridge and of Python.",
            registry=self.registry,
        ).info({"version": version, "python": python_version()})
        self._define_requests()
        self._define_backends()
        self._define_plugins()
        self._define_ledger()
        self._define_events()

    def requests(self, front: str, code: str) -> Counter:
        """Return the counter of the calls of `front` that ended with `code`."""
        child = self._requests.get((front, code))
        if child is None:
            child = self._requests[front, code] = self._request_count.labels(
                front, code
            )
        return child

    def request_seconds(self, front: str) -> Histogram:
        """Return the histogram of the time from arrival to answer."""
        return self._request_seconds.labels(front)

    def service(self, method: str) -> ServiceMetrics:
        """Return the metrics of a method under the names of Go's servers.

        Args:
            method: The path of the call. May be asked for once.
        """
        return ServiceMetrics(self.registry, method)

    def backend(self, issuing_ca: str) -> BackendMetrics:
        """Return the metrics of one issuing CA."""
        found = self._backends.get(issuing_ca)
        if found is None:
            made = BackendMetrics(self._backend_families, issuing_ca)
            found = self._backends.setdefault(issuing_ca, made)
        return found

    def watch_archive(
        self, rows: Callable[[], float], seconds: Callable[[], float]
    ) -> None:
        """Set the functions that return the archive's lag, called at each scrape."""
        self._archive_lag_rows.set_function(rows)
        self._archive_lag_seconds.set_function(seconds)

    def watch_latch(self, latched: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Set the function that returns what is latched, called at each scrape.

        Args:
            latched: Returns the issuing CA, and `credential` or `issuing_ca`, of each.
        """

        def collect() -> Iterable[Metric]:
            family = GaugeMetricFamily(
                "meshca_latched",
                "1 for each refused credential and each stopped issuing CA that waits "
                "for an operator.",
                labels=("issuing_ca", "kind"),
            )
            for labels in sorted({*latched()}):
                family.add_metric(labels, 1.0)
            yield family

        self.registry.register(_Adapter(collect))

    def watch_tokens(self, clusters: TokenViews) -> None:
        """Set what says how tokens are verified, asked at each scrape."""

        def collect() -> Iterable[Metric]:
            family = GaugeMetricFamily(
                "meshca_token_verification",
                "The workers that verify the tokens of a cluster in this way now.",
                labels=("cluster", "verified_by"),
            )
            for labels in clusters.modes():
                family.add_metric(labels, 1.0)
            yield family
            family = GaugeMetricFamily(
                "meshca_watch_age_seconds",
                "The time since the watch of a cluster last heard of its API server.",
                labels=("cluster",),
            )
            for cluster, age in clusters.watch_ages():
                family.add_metric((cluster,), age)
            yield family
            family = GaugeMetricFamily(
                "meshca_token_keys_refused",
                "The keys of a cluster that are not used: an earlier cluster has them.",
                labels=("cluster",),
            )
            for cluster, count in clusters.refused_keys().items():
                family.add_metric((cluster,), count)
            yield family
            family = GaugeMetricFamily(
                "meshca_token_key_age_seconds",
                "The time since the token keys of a cluster were last confirmed.",
                labels=("cluster",),
            )
            for cluster, age in clusters.key_ages():
                family.add_metric((cluster,), age)
            yield family
            family = GaugeMetricFamily(
                "meshca_watched_objects",
                "The objects of a cluster that its watch has seen.",
                labels=("cluster", "kind"),
            )
            for cluster, kind, count in clusters.watched_objects():
                family.add_metric((cluster, kind), count)
            yield family

        self.registry.register(_Adapter(collect))

    def render(self) -> tuple[bytes, str]:
        """Return the text of a scrape, and its content type."""
        text = generate_latest(self.registry)
        # The library would call a counter of Istio's `..._total`; as `untyped` it keeps
        # the name. Nothing else here is untyped.
        return text.replace(b" untyped\n", b" counter\n"), CONTENT_TYPE_LATEST

    def _define_requests(self) -> None:
        self._request_count = self._counter(
            "meshca_requests", "Calls that ended, by status code.", "front", "code"
        )
        self._request_seconds = self._histogram(
            "meshca_request_seconds", "Seconds from arrival to answer.", _LONG, "front"
        )
        self._requests: dict[tuple[str, str], Counter] = {}
        steps = self._histogram(
            "meshca_step_seconds", "Seconds of one step of a request.", _SHORT, "step"
        )
        self.steps = {step: steps.labels(step) for step in STEPS}
        """By the names in `STEPS`: how long the step took."""
        self.in_flight = Gauge(
            "meshca_in_flight", "Calls in progress.", registry=self.registry
        )
        shed = self._counter(
            "meshca_shed", "Calls refused or given up, by reason.", "reason"
        )
        self.shed = {reason: shed.labels(reason) for reason in SHED_REASONS}
        """By the names in `SHED_REASONS`."""
        closed = self._counter(
            "meshca_connections_closed",
            "Connections that the bridge has closed: junk, certificate or idle.",
            "reason",
        )
        self.closed = {
            reason: closed.labels(reason) for reason in ("junk", "certificate", "idle")
        }
        """By reason."""
        self.ttl_clamped = self._counter(
            "meshca_ttl_clamped", "Lifetimes shortened to what the issuing CA can give."
        )

    def _define_backends(self) -> None:
        self._backend_families = _BackendFamilies(
            calls=self._counter(
                "meshca_backend_calls",
                "Calls of an issuing CA, by result: ok, or the rule of the error.",
                "issuing_ca",
                "result",
            ),
            seconds=self._histogram(
                "meshca_backend_seconds",
                "Seconds of one call of an issuing CA.",
                _LONG,
                "issuing_ca",
            ),
            retries=self._counter(
                "meshca_backend_retries",
                "Calls that asked the same issuing CA again.",
                "issuing_ca",
            ),
            failovers=self._counter(
                "meshca_backend_failovers",
                "Calls that went to this issuing CA in place of a preferred one.",
                "issuing_ca",
            ),
            kept_away=self._counter(
                "meshca_backend_kept_away",
                "Calls that an issuing CA did not get, by reason: its breaker was "
                "open, or it held its share of the threads (bulkhead).",
                "issuing_ca",
                "reason",
            ),
            breaker_open=Gauge(
                "meshca_breaker_open",
                "1 while an issuing CA fails and gets no calls, in any worker.",
                ["issuing_ca"],
                registry=self.registry,
            ),
            breaker_opened=self._counter(
                "meshca_breaker_opened",
                "How often an issuing CA began to get no calls.",
                "issuing_ca",
            ),
        )
        self._backends: dict[str, BackendMetrics] = {}
        self._misissued = self._counter(
            "meshca_misissued",
            "Certificates that differ from their request. Each is an incident.",
            "issuing_ca",
        )

    def _define_plugins(self) -> None:
        self._plugin_values = Gauge(
            "meshca_plugin_value",
            "A value that a plugin shows, summed over the workers.",
            ("issuing_ca", "name"),
            registry=self.registry,
        )
        self._plugin_events = self._counter(
            "meshca_plugin_events",
            "Events that a plugin counts.",
            "issuing_ca",
            "name",
        )

    def plugin(self, issuing_ca: str) -> PluginMeters:
        """Return the metrics of the plugin of an issuing CA."""
        return PluginMeters(self._plugin_values, self._plugin_events, issuing_ca)

    def misissued(self, issuing_ca: str) -> Counter:
        """Return the counter of mis-issuances; asking shows it as 0."""
        return self._misissued.labels(issuing_ca)

    def _define_ledger(self) -> None:
        self.journal_commit_seconds = self._histogram(
            "meshca_journal_commit_seconds", "Seconds of one durable write.", _SHORT
        )
        self.journal_batch_rows = self._histogram(
            "meshca_journal_batch_rows", "Rows that shared one durable write.", _ROWS
        )
        self._archive_lag_rows = Gauge(
            "meshca_archive_lag_rows",
            "Rows that the archive does not have yet.",
            registry=self.registry,
        )
        self._archive_lag_seconds = Gauge(
            "meshca_archive_lag_seconds",
            "Age of the oldest row that the archive does not have yet.",
            registry=self.registry,
        )

    def _define_events(self) -> None:
        events = self._counter(
            "meshca_events",
            "Kubernetes events: sent, requests that failed, certificates without one.",
            "result",
        )
        self.events = {
            result: events.labels(result) for result in ("sent", "failed", "dropped")
        }
        """By the results of `bridge.kubernetes.events`."""

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class _Adapter(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()
