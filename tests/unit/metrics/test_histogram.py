import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.metrics.histogram import TallyFamily

BOUNDS = (25e-6, 0.001, 0.01, 10.0)


class Adapter(Collector):
    def __init__(self, family: TallyFamily) -> None:
        self.family = family

    def collect(self) -> Iterator[Metric]:
        return self.family.collect()


def shown(family: TallyFamily) -> str:
    registry = CollectorRegistry()
    registry.register(Adapter(family))
    return generate_latest(registry).decode()


def by_the_library(values: list[float]) -> str:
    registry = CollectorRegistry()
    histogram = Histogram("s", "Text.", ["step"], buckets=BOUNDS, registry=registry)
    child = histogram.labels("sign")
    for value in values:
        child.observe(value)
    lines = generate_latest(registry).decode().splitlines(keepends=True)
    return "".join(line for line in lines if "s_created" not in line)


@given(st.lists(st.sampled_from((0.0, 0.0005, *BOUNDS, 0.0011, 0.2, 70.0))))
def test_it_shows_what_the_library_shows(values: list[float]) -> None:
    family = TallyFamily("s", "Text.", "step", BOUNDS)
    series = family.labels("sign")
    for value in values:
        series.observe(value)
    assert shown(family) == by_the_library(values)


def test_a_series_is_shown_when_it_is_asked_for_and_is_one() -> None:
    family = TallyFamily("s", "Text.", "step", BOUNDS)
    assert family.labels("sign") is family.labels("sign")
    assert 's_bucket{le="2.5e-05",step="sign"} 0.0' in shown(family)


def test_no_value_is_lost_between_threads() -> None:
    family = TallyFamily("s", "Text.", "step", BOUNDS)
    series = family.labels("sign")
    together = threading.Barrier(4)

    def fill() -> None:
        together.wait()
        for _ in range(20_000):
            series.observe(0.05)

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    buckets, total = series.totals()
    assert buckets[2:] == [("0.01", 0), ("10.0", 80_000), ("+Inf", 80_000)]
    assert total == pytest.approx(4_000)
