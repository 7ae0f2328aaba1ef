"""A Prometheus histogram that threads fill without a lock.

The library's own takes two locks for each value and costs 2 microseconds; a request
observes ten values. Here every thread counts for itself, and a scrape adds them up.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import HistogramMetricFamily, Metric


class Tally:
    """One series of a histogram.

    Args:
        bounds: Upper ends of the buckets, ascending; the last one has no end.
    """

    __slots__ = ("_all", "_bounds", "_own")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        # By thread: a count per bucket, and the sum. Threads are few and stay.
        self._all: list[list[float]] = []
        self._own = threading.local()

    def observe(self, value: float) -> None:
        """Count `value`, which is in the bucket of the first bound not below it."""
        try:
            cells: list[float] = self._own.cells
        except AttributeError:
            cells = self._own.cells = [0.0] * (len(self._bounds) + 2)
            self._all.append(cells)
        cells[bisect_left(self._bounds, value)] += 1
        cells[-1] += value

    def totals(self) -> tuple[list[tuple[str, float]], float]:
        """Return bound and count of the values up to it, for each bucket; their sum."""
        nothing = [0.0] * (len(self._bounds) + 2)
        columns = zip(nothing, *tuple(self._all), strict=True)
        *counts, total = [sum(column) for column in columns]
        buckets, reached = [], 0.0
        ends = (*map(str, self._bounds), "+Inf")
        for end, count in zip(ends, counts, strict=True):
            reached += count
            buckets.append((end, reached))
        return buckets, total


class TallyFamily:
    """All series of one histogram, by the value of its one label.

    Args:
        name: Of the metric.
        text: Its help.
        label: The name of the label.
        bounds: See `Tally`.
    """

    def __init__(
        self, name: str, text: str, label: str, bounds: Sequence[float]
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._bounds = tuple(bounds)
        self._series: dict[str, Tally] = {}

    def labels(self, value: str) -> Tally:
        """Return the series of `value`; asking shows it."""
        found = self._series.get(value)
        if found is None:
            found = self._series.setdefault(value, Tally(self._bounds))
        return found

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram, as `prometheus_client` registries ask for it."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for value, series in tuple(self._series.items()):
            buckets, total = series.totals()
            family.add_metric([value], buckets, total)
        yield family
