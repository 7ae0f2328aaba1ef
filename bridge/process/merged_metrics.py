"""The metrics of several processes as those of one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]

_LOOSE = re.compile(r"^# TYPE (\S+)(?<!_total) counter$", re.MULTILINE)
_CUMULATIVE = frozenset({"counter", "histogram", "unknown"})
_SMALLEST = re.compile(r"_expiry_|_cert_ttl_|^process_(start_time_seconds|max_fds)$")
"""What all processes share, or of which the worst counts."""
_LARGEST = re.compile(r"^meshca_(archive_lag_seconds|build_info)$")


@dataclass(slots=True)
class Family:
    """One metric with its samples."""

    kind: str
    text: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)
    """By name and labels, in the order that they came."""


Page = dict[str, Family]
"""By name of the metric."""


def parse(text: str) -> Page:
    """Read what a process answered to a scrape.

    Raises:
        ValueError: It is not in the text format.
    """
    # The parser would rename a counter whose name does not end as the library has it.
    page: Page = {}
    for found in text_string_to_metric_families(_LOOSE.sub(r"# TYPE \1 untyped", text)):
        family = Family(found.type, found.documentation)
        for sample in found.samples:
            family.samples[sample.name, tuple(sample.labels.items())] = sample.value
        page[found.name] = family
    return page


class Totals:
    """Sums over processes that come and go.

    What a process had counted stays counted when it has ended: a counter that goes
    back looks like a restart of everything, and a rate over it is wrong.
    """

    def __init__(self) -> None:
        self._last: dict[int, Page] = {}
        self._gone: Page = {}

    def merge(self, pages: Mapping[int, Page | None]) -> Iterator[Metric]:
        """Yield the metrics of all.

        Args:
            pages: By process ID, of every process there is; None for one that does not
                answer, whose counters stay at what they were.
        """
        for pid in self._last.keys() - pages.keys():
            ended = _cumulative(self._last.pop(pid))
            self._gone = _sum([self._gone, ended])
        silent = [pid for pid, page in pages.items() if page is None]
        self._last |= {pid: page for pid, page in pages.items() if page is not None}
        parts = [
            _cumulative(page) if pid in silent else page
            for pid, page in self._last.items()
        ]
        for name, family in _sum([self._gone, *parts]).items():
            metric = Metric(name, family.text, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def _cumulative(page: Page) -> Page:
    return {name: each for name, each in page.items() if each.kind in _CUMULATIVE}


def _sum(pages: Iterable[Page]) -> Page:
    total: Page = {}
    for page in pages:
        for name, family in page.items():
            into = total.setdefault(name, Family(family.kind, family.text)).samples
            for key, value in family.samples.items():
                into[key] = _joined(name, into[key], value) if key in into else value
    return total


def _joined(name: str, one: float, other: float) -> float:
    if _SMALLEST.search(name):
        return min(one, other)
    if _LARGEST.search(name):
        return max(one, other)
    return one + other
