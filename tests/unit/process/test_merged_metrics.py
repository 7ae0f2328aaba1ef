from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.metrics.expiry import CertificateExpiry
from bridge.metrics.instruments import Metrics
from bridge.process.merged_metrics import Page, Totals, parse


class _Of(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def scrape(*served: str, lag: float = 0.0) -> Page:
    metrics = Metrics("1.0")
    metrics.watch_archive(lambda: 3, lambda: lag)
    for code in served:
        metrics.requests("istio", code).inc()
        metrics.request_seconds("istio").observe(0.02)
        metrics.citadel.csr_count.inc()
    return parse(metrics.render()[0].decode())


def merged(totals: Totals, pages: Mapping[int, Page | None]) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(_Of(list(totals.merge(pages))))
    lines = generate_latest(registry).decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


OK = 'meshca_requests_total{code="OK",front="istio"}'


def test_a_page_is_shown_as_it_was() -> None:
    metrics = Metrics("1.0")
    metrics.requests("istio", "OK").inc()
    metrics.citadel.csr_count.inc()
    text = metrics.render()[0].decode()
    again = merged(Totals(), {1: parse(text)})
    names = {line.rpartition(" ")[0] for line in text.splitlines() if line[:1] != "#"}
    assert {name.split("{")[0] for name in again} == {
        name.split("{")[0] for name in names
    }
    assert again["citadel_server_csr_count"] == 1


def test_counters_histograms_and_gauges_are_summed() -> None:
    found = merged(Totals(), {1: scrape("OK", "OK"), 2: scrape("OK", "INTERNAL")})
    assert found[OK] == 3
    assert found[OK.replace("OK", "INTERNAL")] == 1
    assert found["citadel_server_csr_count"] == 4
    assert found['meshca_request_seconds_count{front="istio"}'] == 4
    assert found['meshca_request_seconds_bucket{front="istio",le="+Inf"}'] == 4
    assert found["meshca_archive_lag_rows"] == 6


def test_what_no_sum_makes_sense_of_is_shown_once() -> None:
    found = merged(Totals(), {1: scrape(lag=2.0), 2: scrape(lag=5.0)})
    assert found["meshca_archive_lag_seconds"] == 5
    assert [value for name, value in found.items() if "build_info" in name] == [1]


def test_the_worst_level_of_an_expiry_counts_and_the_first_end() -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    one = CertificateExpiry(
        issuing_ca="a",
        tier="issuing",
        subject="",
        serial="",
        not_before=now - timedelta(days=365),
        not_after=now + timedelta(days=1),
    )
    pages: dict[int, Page | None] = {}
    for pid, days in ((1, 0), (2, 300)):
        metrics = Metrics("1.0", lambda: now)
        ends = one.not_after + timedelta(days=days)
        metrics.expiries.replace("a", [replace(one, not_after=ends)])
        pages[pid] = parse(metrics.render()[0].decode())
    labels = '{issuing_ca="a",serial="",subject="",tier="issuing"}'
    found = merged(Totals(), pages)
    assert found[f"meshca_certificate_expiry_level{labels}"] == 3
    ends = one.not_after
    name = f"meshca_certificate_expiry_timestamp_seconds{labels}"
    assert found[name] == ends.timestamp()


def test_counters_of_a_process_that_ended_stay() -> None:
    totals = Totals()
    merged(totals, {1: scrape("OK", "OK"), 2: scrape("OK")})
    for _ in range(2):
        found = merged(totals, {3: scrape("OK"), 2: scrape("OK")})
        assert found[OK] == 4
        # What it held is gone with it.
        assert found["meshca_archive_lag_rows"] == 6


def test_counters_of_a_process_that_is_silent_stay() -> None:
    totals = Totals()
    merged(totals, {1: scrape("OK"), 2: scrape("OK")})
    found = merged(totals, {1: None, 2: scrape("OK", "OK")})
    assert found[OK] == 3
    assert found["meshca_archive_lag_rows"] == 3
    assert merged(totals, {1: scrape("OK", "OK"), 2: scrape("OK", "OK")})[OK] == 4


def test_the_metrics_of_plugins_are_those_of_all_workers_together() -> None:
    pages: dict[int, Page | None] = {}
    for pid in (1, 2):
        metrics = Metrics("1.0")
        metrics.plugin("hsm").set("sessions", 4)
        metrics.plugin("hsm").count("logins", pid)
        pages[pid] = parse(metrics.render()[0].decode())
    found = merged(Totals(), pages)
    assert found['meshca_plugin_value{issuing_ca="hsm",name="sessions"}'] == 8
    assert found['meshca_plugin_events_total{issuing_ca="hsm",name="logins"}'] == 3
